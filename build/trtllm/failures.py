"""What known error messages of TensorRT-LLM and Triton mean, and what helps.

Each entry is a message that users met in public threads; logs of failed steps and of a server that did not start
are searched for all of them.

Example::

    for known in explain(log_text):
        print(known)        # The GPU has not enough memory. See the estimate ... [drafthouse build --check]
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFailure:
    """A message and what is behind it.

    Attributes:
        pattern: regular expression for the message.
        meaning: what went wrong, a sentence.
        remedy: what to do, a sentence.
        reference: public thread or source that knows it.
    """

    pattern: str
    meaning: str
    remedy: str
    reference: str

    def __str__(self) -> str:
        return f"{self.meaning} {self.remedy} [{self.reference}]"


KNOWN_FAILURES = (
    KnownFailure(
        r"larger than maximum number of draft tokens \(0\)",
        "The target engine was built without a draft length.",
        "Build it with --speculative_decoding_mode=draft_tokens_external and --max_draft_len.",
        "tensorrtllm_backend#473",
    ),
    KnownFailure(
        r"larger than maximum number of draft tokens \([1-9]\d*\)",
        "A request drafts more tokens than the target engine was built for.",
        "Rebuild with a larger speculation.draft_length, or send a smaller num_draft_tokens.",
        "tensorrtllm_backend#473",
    ),
    KnownFailure(
        r"Assertion failed: !mTokens\.empty\(\)",
        "The target was given an empty draft.",
        "Leave draft_input_ids out of a request that drafts nothing.",
        "tensorrtllm_backend#678, TensorRT-LLM#2684",
    ),
    KnownFailure(
        r"cannot perform speculative decoding without draft model",
        "NVIDIA's BLS was asked to draft, but its tensorrt_llm_draft_model_name is empty.",
        "Assemble the repository with drafthouse build, which names the draft model.",
        "tensorrt_llm_bls/1/lib/decode.py",
    ),
    KnownFailure(
        r"Speculative decoding module is not set to decoder domain",
        "The decoding mode of the runtime is not the one the engine was built for.",
        "Let parameters.decoding_mode in config.pbtxt match --speculative_decoding_mode of the engine.",
        "TensorRT-LLM#2816",
    ),
    KnownFailure(
        r"Invalid decoding type: ['\"]?(Eagle3|Draft_Target|SA|PARD|DFlash|DSpark|User_Provided)",
        "The speculative configuration is spelt for release line B (1.3 and newer), the container is line A.",
        "Set engine.line to A, or use a container of line B.",
        "TensorRT-LLM PR #10124, #11158",
    ),
    KnownFailure(
        r"found using ['\"]?decoding_type.*does not match any of the expected tags",
        "The speculative configuration names a method that the installed TensorRT-LLM does not have.",
        "Set engine.line to the line of the container.",
        "TensorRT-LLM PR #11158",
    ),
    KnownFailure(
        r"Extra inputs are not permitted|extra_forbidden",
        "The LLM API refuses a key that the installed TensorRT-LLM does not have.",
        "Set engine.line to the line of the container, or correct the key in engine.llm_args.",
        "TensorRT-LLM llm_args.py, StrictBaseModel",
    ),
    KnownFailure(
        r"trtllm-build: (command )?not found|No such file or directory: '?trtllm-build",
        "This TensorRT-LLM has no trtllm-build: engines ended with release line A (1.2.1).",
        "Use a container of line A, or a method that the LLM API has.",
        "TensorRT-LLM release v1.3.0rc20, PR #15918",
    ),
    KnownFailure(
        r"can't open file .*convert_checkpoint\.py",
        "The conversion script of TensorRT-LLM's examples is not in this container.",
        "Use an image of release line A, whose examples lie under /app/examples.",
        "TensorRT-LLM PR #15763",
    ),
    KnownFailure(
        r"No available XQA kernels are found for speculative decoding mode",
        "This GPU or this model's attention has no kernel that verifies several tokens at once.",
        "Serve this model without speculation on this GPU, or another model of the Llama family.",
        "TensorRT-LLM#6067, #2879",
    ),
    KnownFailure(
        r"CUDA_ERROR_OUT_OF_MEMORY|CUDA out of memory|cudaMalloc.*out of memory|Out of memory.*cuda",
        "The GPU has not enough memory.",
        "See the estimate of drafthouse build --check; lower engine.max_batch_size, engine.max_num_tokens or "
        "kv_cache.free_gpu_memory_fraction, quantise, or raise engine.tensor_parallel.",
        "drafthouse build --check",
    ),
    KnownFailure(
        r"Error parsing text-format \S*ModelConfig",
        "A config.pbtxt has an unfilled ${...} or a value whose commas or colons were not escaped.",
        r"Assemble the repository with drafthouse build; with fill_template.py write \, and \: inside values.",
        "tensorrtllm_backend#720, TensorRT-LLM#2709",
    ),
    KnownFailure(
        r"Assertion failed: \d+ != \d+ \(\S*lookaheadDecodingLayer\.cpp",
        "The lookahead numbers of config.pbtxt need another draft length than the engine was built for.",
        "Build both from one spec: drafthouse build computes --max_draft_len from window, ngram and "
        "verification_set.",
        "tensorrtllm_backend#710",
    ),
    KnownFailure(
        r"Decoding mode is set to lookahead but lookahead parameters are not specified",
        "decoding_mode is lookahead, but config.pbtxt misses one of its three numbers.",
        "Assemble the repository with drafthouse build, which fills them.",
        "tensorrtllm_backend model_instance_state.cc",
    ),
    KnownFailure(
        r"No space left on device",
        "The disk is full.",
        "Free some space, or point engine.workspace to another disk.",
        "errno ENOSPC",
    ),
)


def explain(text: str) -> tuple[KnownFailure, ...]:
    """The known failures whose message stands in a log."""
    return tuple(known for known in KNOWN_FAILURES if re.search(known.pattern, text))
