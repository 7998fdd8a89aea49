"""Client of a model served by Drafthouse, or by any Triton server with the same contract: gRPC and HTTP,
sync and asyncio.

    from client import DrafthouseClient

    with DrafthouseClient("localhost:8001") as client:
        result = client.generate("The capital of France is", max_tokens=8)
        print(result.text, result.finish_reason, result.acceptance)

Map: `sync_client` and `async_client` are what users call, `common` what they share; `options` and `plans`
    check what they ask for; `contract` writes it as tensors; `transports` carries it; `collector` makes
    `results` of what comes back, or one of `errors`.
"""

from client import errors
from client.async_client import AsyncDrafthouseClient, AsyncStream
from client.chat import ChatTemplate
from client.options import SamplingOptions
from client.results import (
    Acceptance,
    Chunk,
    FinishReason,
    GenerationResult,
    KvCacheUse,
    ModelDescription,
    Timings,
)
from client.sync_client import DrafthouseClient, Stream

__all__ = [
    "Acceptance",
    "AsyncDrafthouseClient",
    "AsyncStream",
    "ChatTemplate",
    "Chunk",
    "DrafthouseClient",
    "FinishReason",
    "GenerationResult",
    "KvCacheUse",
    "ModelDescription",
    "SamplingOptions",
    "Stream",
    "Timings",
    "errors",
]
