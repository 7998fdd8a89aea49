"""Known failures are recognised in logs as users posted them, and nothing else is."""

import pytest

from build.trtllm.failures import KNOWN_FAILURES, explain

_LOGS = {
    "[TensorRT-LLM][ERROR] Assertion failed: Number of draft tokens (56) is larger than maximum number of draft "
    "tokens (0) (trtGptModelInflightBatching.cpp:536)": "without a draft length",
    "Number of draft tokens (12) is larger than maximum number of draft tokens (10)": "more tokens than",
    "[TensorRT-LLM][ERROR] Assertion failed: !mTokens.empty()": "empty draft",
    "unexpected error when creating modelInstanceState: [TensorRT-LLM][ERROR] Assertion failed: 16 != 40 "
    "(/workspace/tensorrt_llm/cpp/tensorrt_llm/layers/lookaheadDecodingLayer.cpp:56)": "another draft length",
    "Decoding mode is set to lookahead but lookahead parameters are not specified. Please set": "misses one",
    "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: Speculative decoding module is not set to decoder "
    "domain (decodingParams.h:97)": "not the one the engine was built for",
    "[TensorRT-LLM][ERROR] Assertion failed: No available XQA kernels are found for speculative decoding mode. (a)":
    "no kernel",
    "ValueError: Invalid decoding type: Eagle3": "release line B",
    "Input tag 'DraftTarget' found using 'decoding_type' does not match any of the expected tags": "does not have",
    "Eagle3.eagle3_one_model\n  Extra inputs are not permitted [type=extra_forbidden]": "refuses a key",
    "bash: trtllm-build: command not found": "ended with release line A",
    "python3: can't open file '/app/examples/convert_checkpoint.py': [Errno 2]": "not in this container",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB": "not enough memory",
    "[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 29:17: Expected "
    "integer or identifier, got: $": "unfilled",
    "OSError: [Errno 28] No space left on device": "disk is full",
    "cannot perform speculative decoding without draft model": "names",
}  # fmt: skip


@pytest.mark.parametrize("log", _LOGS)
def test_a_posted_message_is_explained(log: str) -> None:
    (found,) = explain(f"before\n{log}\nafter")
    assert _LOGS[log] in f"{found.meaning} {found.remedy}"
    assert found.reference


def test_every_known_failure_is_among_them() -> None:
    assert {known for log in _LOGS for known in explain(log)} == set(KNOWN_FAILURES)


def test_an_ordinary_log_is_not_explained() -> None:
    assert (
        explain(
            "[TRT-LLM] [I] Total time of building all engines: 00:03:12, max_draft_len 0, out of 40 layers"
        )
        == ()
    )
