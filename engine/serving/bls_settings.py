"""Parameters of `tensorrt_llm_bls` in its config.pbtxt.

Names that NVIDIA's BLS has mean the same here. A template variable that was not filled in (`${...}`) counts as not
given, as in NVIDIA's models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import RequestError
from engine.serving.engine_limits import EngineLimits


@dataclass(frozen=True, slots=True)
class BlsSettings:
    """What the BLS does.

    Attributes:
        tokenizer_dir: directory with `tokenizer.json`.
        embedded: whether the embedded engine is behind it (parameter `engine`: `embedded` or `tensorrt_llm`).
        target: name of the model that generates or verifies (`tensorrt_llm_model_name`).
        draft_model: name of the model that drafts, "" for none (`tensorrt_llm_draft_model_name`).
        drafter: speculator that drafts in this process, "" for none.
        drafter_settings: its settings.
        num_draft_tokens: tokens to draft for requests that do not say it, and the most for any.
        adaptive: draft less for a row whose drafts are rejected.
        max_requests: rows that are served at once.
        max_sequence_length: prompt and output of a row that is drafted for, in tokens; 0: no limit.
        max_one_shot_tokens: most `max_tokens` of a request that is not streamed; None: no limit.
        max_request_seconds: after which a request ends with an error; None: no limit.
        part_cache: requests that give no `cache_salt` share no KV cache with others.
        exclude_input_in_output: answer without the prompt unless a request says otherwise.
        skip_special_tokens: leave special tokens out of the text.
        gpt_model_path: the target's engine, in front of TensorRT-LLM.
        decoding_mode: the target's, if its engine drafts within itself.
        use_draft_logits: accept drafts by their distribution, unless a request says otherwise; engines that were not
            built for it cannot.
        fast_logits: draft logits go from engine to engine (`speculative_decoding_fast_logits`).
    """

    tokenizer_dir: str
    embedded: bool = True
    target: str = "tensorrt_llm"
    draft_model: str = ""
    drafter: str = ""
    drafter_settings: Mapping[str, Any] = field(default_factory=dict)
    num_draft_tokens: int = 0
    adaptive: bool = True
    max_requests: int = 64
    max_sequence_length: int = 0
    max_one_shot_tokens: int | None = None
    max_request_seconds: float | None = None
    part_cache: bool = False
    exclude_input_in_output: bool = True
    skip_special_tokens: bool = True
    gpt_model_path: str = ""
    decoding_mode: str = ""
    use_draft_logits: bool = False
    fast_logits: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "BlsSettings":
        """Take the parameters of the model.

        Raises:
            ValueError: one is missing, or they contradict each other.
        """
        given = {name: value for name, value in parameters.items() if value and not value.startswith("${")}
        if "tokenizer_dir" not in given:
            raise ValueError("tensorrt_llm_bls: the parameter tokenizer_dir is missing")
        engine = given.get("engine", "embedded")
        if engine not in ("embedded", "tensorrt_llm"):
            raise ValueError(f"tensorrt_llm_bls: engine is {engine!r}; it must be embedded or tensorrt_llm")
        draft_model, drafter = given.get("tensorrt_llm_draft_model_name", ""), given.get("drafter", "")
        if draft_model and drafter:
            raise ValueError("tensorrt_llm_bls: give tensorrt_llm_draft_model_name or drafter, not both")
        num_draft_tokens = int(given.get("num_draft_tokens", "0"))
        if bool(draft_model or drafter) != (num_draft_tokens > 0):
            raise ValueError(
                f"tensorrt_llm_bls: num_draft_tokens is {num_draft_tokens}; it must be 1 or more where something "
                "drafts (tensorrt_llm_draft_model_name or drafter), and 0 where nothing does"
            )
        if engine == "tensorrt_llm" and "gpt_model_path" not in given:
            raise ValueError("tensorrt_llm_bls: the parameter gpt_model_path is missing, the target's engine")
        return cls(
            tokenizer_dir=given["tokenizer_dir"],
            embedded=engine == "embedded",
            target=given.get("tensorrt_llm_model_name", "tensorrt_llm"),
            draft_model=draft_model,
            drafter=drafter,
            drafter_settings=json.loads(given.get("drafter_settings", "{}")),
            num_draft_tokens=num_draft_tokens,
            adaptive=given.get("adaptive", "true").lower() == "true",
            max_requests=int(given.get("max_requests", "64")),
            max_sequence_length=int(given.get("max_sequence_length", "0")),
            max_one_shot_tokens=int(given["max_one_shot_tokens"]) if "max_one_shot_tokens" in given else None,
            max_request_seconds=float(given["max_request_seconds"])
            if "max_request_seconds" in given
            else None,
            part_cache=given.get("part_cache", "false").lower() == "true",
            exclude_input_in_output=given.get("exclude_input_in_output", "true").lower() == "true",
            skip_special_tokens=given.get("skip_special_tokens", "true").lower() == "true",
            gpt_model_path=given.get("gpt_model_path", ""),
            decoding_mode=given.get("decoding_mode", ""),
            use_draft_logits=given.get("use_draft_logits", "false").lower() == "true",
            fast_logits=given.get("fast_logits", "false").lower() == "true",
        )

    def within(self, limits: EngineLimits) -> "BlsSettings":
        """The same in front of this engine, which may take less than `max_sequence_length` says."""
        known = [length for length in (self.max_sequence_length, limits.longest) if length]
        return replace(self, max_sequence_length=min(known, default=0))

    def draft_logits(self, asked: bool | None) -> bool:
        """Whether a request's drafts are accepted by their distribution; `asked` is what it says, if anything.

        Raises:
            RequestError: it asks for what there is not.
        """
        if asked and not self.use_draft_logits:
            raise RequestError(
                "use_draft_logits is not supported by tensorrt_llm_bls in this deployment, whose engines give no draft "
                "logits; leave it out, or build with speculation.use_draft_logits: true (method: draft_model, "
                "TensorRT-LLM with runtime: engines)"
            )
        return self.use_draft_logits if asked is None else asked

    def check_length(self, prompt: int, output: int) -> None:
        """Refuse at the start what the target would refuse half way, when the context has grown.

        Raises:
            RequestError: the row is too long.
        """
        if self.max_sequence_length and prompt + output > self.max_sequence_length:
            raise RequestError(
                f"{prompt} prompt tokens and max_tokens {output} make {prompt + output}, more than the limit of "
                f"{self.max_sequence_length} (engine.max_sequence_length)"
            )
