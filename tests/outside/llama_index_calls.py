"""LlamaIndex's Triton connector, called as its documentation shows; runs in the connector's own environment.

Usage: python llama_index_calls.py HOST:PORT PROMPT MAX_TOKENS; prints one JSON document.
"""

import json
import sys

from llama_index.llms.nvidia_triton import NvidiaTriton  # type: ignore[import-not-found]


def main(address: str, prompt: str, max_tokens: int) -> None:
    llm = NvidiaTriton(server_url=address, tokens=max_tokens)
    streamed = list(llm.stream_complete(prompt))
    report = {
        "complete": llm.complete(prompt).text,
        "deltas": [response.delta for response in streamed],
        "streamed": streamed[-1].text,
        "error": error_of(llm, prompt),
    }
    print(json.dumps(report))


def error_of(llm: NvidiaTriton, prompt: str) -> str:
    """What a caller sees who asks for more than the server gives."""
    try:
        llm.complete(prompt, tokens=10**6)
    except Exception as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
