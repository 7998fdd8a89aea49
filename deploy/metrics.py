"""Figures on Triton's `/metrics` from which it can be seen whether a server works, whichever engine it has."""

from deploy.exporter.exposition import Sample, parse_samples
from deploy.exporter.fetch import Unanswered, get_text

_ANSWERING = ("ensemble", "tensorrt_llm_bls")  # the models that clients call


def running_requests(address: str, seconds: float = 2.0) -> int | None:
    """Requests that the engine has, waiting ones included; None if it does not say, or nothing answers."""
    found = [sample.value for sample in _samples(address, seconds) or () if _is_running(sample)]
    return int(sum(found)) if found else None


def work_done(address: str, seconds: float = 2.0) -> float | None:
    """Requests that were answered and tokens, since the server began; None if nothing answers."""
    samples = _samples(address, seconds)
    return None if samples is None else sum(sample.value for sample in samples if _is_work(sample))


def _is_running(sample: Sample) -> bool:
    return sample.name == "nv_trt_llm_request_metrics" and sample.labels.get("request_type") == "active"


def _is_work(sample: Sample) -> bool:
    if sample.name == "nv_inference_request_success":
        return sample.labels.get("model") in _ANSWERING
    return sample.name in ("drafthouse_spec_tokens_total", "nv_llm_output_token_len_sum")


def _samples(address: str, seconds: float) -> list[Sample] | None:
    try:
        return list(parse_samples(get_text(address, seconds)))
    except Unanswered:
        return None
