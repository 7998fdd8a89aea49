"""`SamplingParams` and `GuidedDecodingParams` with the fields that the kit sets; unknown ones are errors."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class GuidedDecodingParams:
    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    max_tokens: int = 32
    bad: list | None = None
    stop: list | None = None
    best_of: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    exclude_input_from_output: bool = True
    add_special_tokens: bool = True
    return_perf_metrics: bool = False
    guided_decoding: GuidedDecodingParams | None = None

    def __post_init__(self):
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
