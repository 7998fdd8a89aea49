"""Exports the acceptance of speculative decoding to Prometheus where the server itself does not.

Triton's `/metrics` has no speculative family with TensorRT-LLM, and the figures of a request are zero on the PyTorch
path before TensorRT-LLM PR #17082. The exporter takes acceptance from the best source that is there, and says which
one: `drafthouse_acceptance_source_info{source="..."}`. A figure that nobody has measured is absent, never zero.

| source | what it is | known |
|---|---|---|
| `engine` | Triton's `/metrics` has the families itself (embedded engine); nothing is added | everything |
| `trtllm_prometheus` | `trtllm-serve`'s `/prometheus/metrics`, TensorRT-LLM 1.3 and newer | everything |
| `iteration_stats` | `specDecodingStats` of `trtllm-serve`'s `/metrics`; reading drains that queue | no positions |
| `perf_metrics` | a streamed probe request whose draft totals are filled in | everything, for the probe's text |
| `stream_chunks` | the same probe; a chunk is a decode step, so its tokens less one were accepted | no drafted tokens |

It is self-contained: Python's standard library and nothing else.

Example::

    python -m deploy.exporter --triton http://localhost:8000 --triton-metrics http://localhost:8002/metrics --port 9400
"""
