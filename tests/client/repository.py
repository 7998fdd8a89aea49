"""Lays out the model repository of the client's tests: one Python model under several contracts.

- `ensemble`: a real Triton ensemble around `words`, batching (`max_batch_size` 4), with all of the
  contract that the client uses.
- `tensorrt_llm`: the token-level contract.
- `legacy`: an older server's: no metrics, no token ids, no optional additions, not batching.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MODEL = Path(__file__).parent / "served_model" / "model.py"

Tensors = dict[str, tuple[str, str]]

TEXT_INPUTS: Tensors = {"text_input": ("STRING", "1"), "max_tokens": ("INT32", "1")}
TOKEN_INPUTS: Tensors = {
    "input_ids": ("INT32", "-1"),
    "input_lengths": ("INT32", "1"),
    "request_output_len": ("INT32", "1"),
}
TEXT_OPTIONS: Tensors = {
    "stop_words": ("STRING", "-1"),
    "temperature": ("FP32", "1"),
    "top_k": ("INT32", "1"),
    "top_p": ("FP32", "1"),
    "seed": ("UINT64", "1"),
    "min_tokens": ("INT32", "1"),
    "num_draft_tokens": ("INT32", "1"),
    "cache_salt": ("STRING", "1"),
    "stream": ("BOOL", "1"),
    "exclude_input_in_output": ("BOOL", "1"),
    "return_log_probs": ("BOOL", "1"),
    "return_perf_metrics": ("BOOL", "1"),
    "return_num_input_tokens": ("BOOL", "1"),
    "return_num_output_tokens": ("BOOL", "1"),
}
TOKEN_OPTIONS: Tensors = {
    "end_id": ("INT32", "1"),
    "streaming": ("BOOL", "1"),
    "runtime_top_k": ("INT32", "1"),
    "return_perf_metrics": ("BOOL", "1"),
}
OUTPUTS: Tensors = {
    "output_ids": ("INT32", "-1, -1"),
    "output_log_probs": ("FP32", "-1, -1"),
    "arrival_time_ns": ("INT64", "1"),
    "first_scheduled_time_ns": ("INT64", "1"),
    "first_token_time_ns": ("INT64", "1"),
    "last_token_time_ns": ("INT64", "1"),
    "acceptance_rate": ("FP32", "1"),
    "total_accepted_draft_tokens": ("INT32", "1"),
    "total_draft_tokens": ("INT32", "1"),
    "kv_cache_reused_blocks": ("INT32", "1"),
    "kv_cache_alloc_total_blocks": ("INT32", "1"),
    "num_input_tokens": ("INT32", "1"),
    "num_output_tokens": ("INT32", "1"),
}


def write_repository(folder: Path, journal: Path) -> None:
    """Write all models to `folder`; they note how requests ended in `journal`."""
    text: Tensors = {"text_output": ("STRING", "-1")}
    options = {"stop_words": TEXT_OPTIONS["stop_words"], "stream": TEXT_OPTIONS["stream"]}
    write_model(folder, journal, "words", TEXT_INPUTS, TEXT_OPTIONS, text | OUTPUTS, batch=4)
    write_model(folder, journal, "legacy", TEXT_INPUTS, options, text, batch=0)
    tokens: Tensors = {"sequence_length": ("INT32", "-1")}
    write_model(folder, journal, "tensorrt_llm", TOKEN_INPUTS, TOKEN_OPTIONS, tokens | OUTPUTS, batch=4)
    write_ensemble(folder, text | OUTPUTS)


def write_model(
    folder: Path,
    journal: Path,
    name: str,
    required: Tensors,
    optional: Tensors,
    outputs: Tensors,
    *,
    batch: int,
) -> None:
    config = f"""
name: "{name}"
backend: "python"
max_batch_size: {batch}
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
parameters: {{ key: "journal", value: {{ string_value: "{journal}" }} }}
{_tensors("input", required)}{_tensors("input", optional, "optional: true")}{_tensors("output", outputs)}
"""
    version = folder / name / "1"
    version.mkdir(parents=True)
    shutil.copy(MODEL, version / "model.py")
    (folder / name / "config.pbtxt").write_text(config)


def write_ensemble(folder: Path, outputs: Tensors) -> None:
    inputs = [*TEXT_INPUTS, *TEXT_OPTIONS]
    config = f"""
name: "ensemble"
platform: "ensemble"
max_batch_size: 4
{_tensors("input", TEXT_INPUTS)}{_tensors("input", TEXT_OPTIONS, "optional: true")}{
        _tensors("output", outputs)
    } ensemble_scheduling {{ step [ {{
  model_name: "words"
  model_version: -1
  {_map("input_map", inputs)}
  {_map("output_map", list(outputs))}
}} ] }}
"""
    (folder / "ensemble" / "1").mkdir(parents=True)
    (folder / "ensemble" / "config.pbtxt").write_text(config)


def _tensors(kind: str, tensors: Tensors, extra: str = "") -> str:
    return "".join(
        f'{kind} [ {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {extra} }} ]\n'
        for name, (datatype, dims) in tensors.items()
    )


def _map(kind: str, names: list[str]) -> str:
    return "\n  ".join(f'{kind} {{ key: "{name}" value: "{name}" }}' for name in names)
