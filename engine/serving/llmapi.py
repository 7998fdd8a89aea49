"""The `tensorrt_llm` model on TensorRT-LLM's LLM API: the kit's own counterpart of NVIDIA's `llmapi` model.

It reads the same `model.yaml` and speaks the same tensors. What it adds: a drafter that is a Python object (the
YAML's `drafthouse` block), figures as numbers, acceptance where TensorRT-LLM reports zeros
(`engine.serving.llmapi_response`), and token ids beside the text. As with NVIDIA's, streamed `text_output` is the
text so far; new tokens are in `output_ids`.

TensorRT-LLM is imported when the model is loaded: imported earlier, it would open the GPUs before those of this
instance are chosen.
"""

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
import yaml

from engine.errors import RequestError
from engine.serving.backend import input_names, parameters, refuse, response, tensors, told
from engine.serving.bounded_text import BoundedCodec
from engine.serving.life import Life
from engine.serving.llmapi_request import LlmApiRequest, read_request
from engine.serving.llmapi_response import LlmApiAnswer, draft_length_of
from engine.serving.llmapi_stop import StopView
from engine.serving.request_names import refuse_unknown
from engine.serving.stop_ids import check_stop_id
from engine.serving.text import TextCodec
from engine.stopping import StopWords

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_KIT_KEY = "drafthouse"
_TRITON_KEY = "triton_config"
# What mpirun says about the process it started; workers that the LLM spawns must not inherit it. Settings of a site
# (`OMPI_MCA_*` but for `orte_`, `PMIX_MCA_*`) are no such thing: without them MPI may find no network.
_MPI_JOB = (
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_",
    "OMPI_MCA_orte_",
    "ORTE_",
    "PMIX_",
    "PMI_",
    "OMPI_APP_",
    "OMPI_FIRST_",
)
_MPI_SITE = ("PMIX_MCA_",)


class LlmApiModel:
    """Hands requests to an `LLM` that runs in an event loop of its own; `engine.serving.vllm` has another engine."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Batch size and transaction policy, which the YAML says, as with NVIDIA's model."""
        settings = _read_yaml(Path(pb_utils.get_model_dir()))[_TRITON_KEY]
        config.set_max_batch_size(int(settings["max_batch_size"]))
        config.set_model_transaction_policy({"decoupled": bool(settings["decoupled"])})
        return config

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the model that the YAML describes.

        Raises:
            RequestError: an instance has no GPUs of its own, or the drafter is unknown.
        """
        self._inputs = input_names(arguments)
        directory = Path(arguments["model_repository"]) / arguments["model_version"]
        content = _read_yaml(directory)
        settings = content.pop(_TRITON_KEY)
        self._decoupled = bool(settings["decoupled"])
        self._stop_by_id = bool(settings.get("stop_by_id", True))  # as NVIDIA's model does
        self._check_seconds = float(settings.get("cancellation_check_period_ms", 100)) / 1000
        self._prepare(content, arguments, directory)
        self._codec = _codec_of(content)
        self._running: dict[str, set[Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmapi", daemon=True)
        self._thread.start()
        self._llm = self._in_loop(self._load(content))
        self._life = Life(arguments)

    def _prepare(self, content: Mapping[str, Any], arguments: Mapping[str, str], directory: Path) -> None:
        """Set what the engine's processes inherit, before it is loaded."""
        _prepare_process(parameters(arguments), arguments, directory if content.get(_KIT_KEY) else None)
        self._draft_length = int(
            (content.get(_KIT_KEY) or {}).get("draft_length") or draft_length_of(content)
        )

    async def _load(self, content: dict[str, Any]) -> Any:
        """The `LLM`, made in a thread so that its own event loop does not meet this one."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: _make_llm(content))

    def _make_answer(self, wanted: LlmApiRequest) -> LlmApiAnswer:
        """What makes the responses of a generation."""
        return LlmApiAnswer(wanted, self._draft_length)

    def execute(self, requests: list[Any]) -> None:
        """Start generations; their responses follow from the event loop."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._serve(request), self._loop)

    def finalize(self) -> None:
        """Unload the model."""
        self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._life.end()

    def _in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            inputs = tensors(request)
            if "stop" in inputs and inputs["stop"].any():
                self._stop(request.request_id())
                sender.send(flags=_FINAL)
            else:
                refuse_unknown(request.parameters(), self._inputs)
                await self._generate(request, sender, read_request(inputs))
        except Exception as error:  # nobody else would tell the client
            refuse(sender, error)

    async def _generate(self, request: Any, sender: Any, wanted: LlmApiRequest) -> None:
        if wanted.streaming and not self._decoupled:
            raise RequestError("streaming is set, but triton_config.decoupled is false in model.yaml")
        view = self._stop_view(wanted)
        promise = self._submit(wanted, by_tokens=view is None)
        identity = request.request_id()
        self._running.setdefault(identity, set()).add(promise)
        watch = asyncio.create_task(_abort_when_cancelled(promise, sender, self._check_seconds))
        try:
            answer = self._make_answer(wanted)
            await _answer(promise, sender, answer, request.requested_output_names(), view)
        finally:
            watch.cancel()
            self._running[identity].discard(promise)
            if not self._running[identity]:
                del self._running[identity]

    def _stop_view(self, wanted: LlmApiRequest) -> StopView | None:
        """Looks for the request's stop words in its text.

        Not in several candidates, of which the best is not known, nor where the prompt is a part of the output.
        """
        several = wanted.sampling.get("best_of", 1) > 1
        echoed = not wanted.sampling.get("exclude_input_from_output", True)
        if self._codec is None or not wanted.stop_words or several or echoed:
            return None
        return StopView(StopWords(wanted.stop_words, self._codec), self._codec)

    def _submit(self, wanted: LlmApiRequest, *, by_tokens: bool) -> Any:
        """`by_tokens`: TensorRT-LLM looks for the tokens of the stop words; if not, each step must be seen here."""
        words = {"stop": list(wanted.stop_words)} if by_tokens and wanted.stop_words else {}
        streaming = wanted.streaming or (bool(wanted.stop_words) and not by_tokens)
        try:
            return self._llm.generate_async(
                wanted.prompt,
                sampling_params=_sampling_params(wanted, words, self._is_formatted(wanted.prompt)),
                streaming=streaming,
                **({"cache_salt": wanted.cache_salt} if wanted.cache_salt else {}),
            )
        except ValueError as error:  # SamplingParams and the LLM check their arguments so
            raise RequestError(str(error)) from None

    def _is_formatted(self, prompt: str) -> bool:
        return self._codec is not None and self._codec.is_formatted(prompt)

    def _stop(self, identity: str) -> None:
        """End the generations of a request id; harmless if they have ended."""
        check_stop_id(identity, by_any=self._stop_by_id)
        for promise in self._running.get(identity, ()):
            promise.abort()


async def _answer(
    promise: Any, sender: Any, answer: LlmApiAnswer, names: list[str], view: StopView | None
) -> None:
    """Send a generation's results. One whose client has gone gets its end and nothing more."""
    begun = False
    try:
        async for result in promise:
            if sender.is_cancelled() or (view and view.stops(result)):
                promise.abort()
            if sender.is_cancelled() or (view and view.stopped and not result.finished):
                continue  # its last result is still to come, with its figures
            seen = view.view(result) if view else result
            if result.finished:
                sender.send(response(answer.tensors(seen), names), flags=_FINAL)
                return
            if answer.streaming and seen is not None:
                sender.send(response(answer.tensors(seen), names))
                begun = True
    except Exception as error:  # the LLM's failure, at whatever step
        if not answer.errors_as_output:
            refuse(sender, error, begun=begun)
            return
        sender.send(response(answer.failure(told(error)[0])))
    sender.send(flags=_FINAL)


async def _abort_when_cancelled(promise: Any, sender: Any, seconds: float) -> None:
    """Watch for a client that leaves while nothing is sent to it."""
    while not sender.is_cancelled():
        await asyncio.sleep(seconds)
    promise.abort()


def _read_yaml(directory: Path) -> dict[str, Any]:
    """The YAML beside the model; LLM_CONFIG_PATH names another one, as with NVIDIA's model."""
    path = directory / os.environ.get("LLM_CONFIG_PATH", "model.yaml")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _prepare_process(settings: Mapping[str, str], arguments: Mapping[str, str], modules: Path | None) -> None:
    """Set the environment of this process and of the workers that the LLM spawns, before CUDA is touched.

    Args:
        settings: parameters of the model.
        arguments: as Triton gives them.
        modules: where the workers find the kit's drafter; behind what they have, which it must not hide.
    """
    for name in [name for name in os.environ if name.startswith(_MPI_JOB) and not name.startswith(_MPI_SITE)]:
        del os.environ[name]
    if modules is not None:
        there = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [there, str(modules)]))
    groups = [group for group in settings.get("gpu_device_ids", "").split(";") if group]
    if not groups:
        return
    instance = int(arguments["model_instance_name"].rsplit("_", 1)[1]) if len(groups) > 1 else 0
    if instance >= len(groups):
        raise RequestError(f"gpu_device_ids has {len(groups)} groups, but there is an instance {instance}")
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["TRTLLM_VISIBLE_DEVICES"] = groups[instance]


def _codec_of(content: Mapping[str, Any]) -> TextCodec | None:
    """The tokenizer, which knows where a stop word is met and how a prompt begins; None if it is no file at hand."""
    directory = Path(str(content.get("tokenizer") or content["model"]))
    if not (directory / "tokenizer.json").is_file():
        return None
    longest = content.get("max_model_len") or content.get("max_seq_len")  # vLLM's name and TensorRT-LLM's
    return BoundedCodec(directory, most_tokens=longest if isinstance(longest, int) else 0)


def _make_llm(content: dict[str, Any]) -> Any:
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi.llm_utils import update_llm_args_with_extra_dict

    drafter = content.pop(_KIT_KEY, None)
    arguments = update_llm_args_with_extra_dict({}, content)
    if drafter:
        arguments["speculative_config"] = _user_drafter(drafter, content)
    return LLM(**arguments)


def _user_drafter(block: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    """The speculative configuration of a drafter that is a Python object."""
    from tensorrt_llm.llmapi import UserProvidedDecodingConfig

    from engine.user_drafter import AnpdDrafter

    if block["drafter"] != "anpd":
        raise RequestError(f"{_KIT_KEY}.drafter is {block['drafter']!r}; the only one is anpd")
    drafter = AnpdDrafter(
        draft_length=block["draft_length"],
        ngram=block["ngram"],
        max_sequence_length=content["max_seq_len"],
        max_requests=content["max_batch_size"],
        max_concurrency=block.get("max_concurrency"),
    )
    # The drafter decides when to draft; that there may be steps without drafts the engine learns from its configuration
    # alone, and captures CUDA graphs for them (_torch/pyexecutor/model_engine.py).
    return UserProvidedDecodingConfig(
        max_draft_len=block["draft_length"],
        max_concurrency=block.get("max_concurrency"),
        drafter=drafter,
        resource_manager=drafter.spec_resource_manager,
    )


def _sampling_params(wanted: LlmApiRequest, words: Mapping[str, Any], is_formatted: bool) -> Any:
    """The LLM tokenizes itself, and would put a second beginning before a chat that spells one."""
    from tensorrt_llm import SamplingParams

    guide: dict[str, Any] = {}
    if wanted.guide is not None:
        from tensorrt_llm.sampling_params import GuidedDecodingParams

        guide["guided_decoding"] = GuidedDecodingParams(**wanted.guide)
    return SamplingParams(**wanted.sampling, **words, **guide, add_special_tokens=not is_formatted)
