"""Figures on Triton's `/metrics` from which it can be seen whether a server works, whichever engine it has."""

import re
import urllib.error
import urllib.request

_RUNNING = re.compile(r'^nv_trt_llm_request_metrics\{[^}]*request_type="active"[^}]*\} (\S+)$', re.MULTILINE)
# What moves while requests are served: answers of the models that clients call, and tokens.
_WORK = re.compile(
    r'^(?:nv_inference_request_success\{model="(?:ensemble|tensorrt_llm_bls)"|drafthouse_spec_tokens_total|'
    r"nv_llm_output_token_len_sum)[^ ]* (\S+)$",
    re.MULTILINE,
)
_MOST_BYTES = 8 * 2**20


def running_requests(address: str, seconds: float = 2.0) -> int | None:
    """Requests that the engine has, waiting ones included; None if it does not say, or nothing answers."""
    found = _RUNNING.findall(_page(address, seconds))
    return int(sum(map(float, found))) if found else None


def work_done(address: str, seconds: float = 2.0) -> float | None:
    """Requests that were answered and tokens, since the server began; None if nothing answers."""
    page = _page(address, seconds)
    return sum(map(float, _WORK.findall(page))) if page else None


def _page(address: str, seconds: float) -> str:
    try:
        with urllib.request.urlopen(address, timeout=seconds) as answer:
            return str(answer.read(_MOST_BYTES).decode(errors="replace"))
    except (urllib.error.URLError, OSError):
        return ""
