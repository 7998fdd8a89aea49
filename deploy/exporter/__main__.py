"""Command line of the exporter: `python -m deploy.exporter`; every option is also an environment variable.

Exit status 2 on options that cannot work.
"""

import argparse
import os
import signal
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.exporter.collector import Collector, Targets
from deploy.exporter.exposition import CONTENT_TYPE
from deploy.exporter.probe import Probe

_PROMPT = "Repeat the alphabet three times: a b c d e f g h i j k l m n o p q r s t u v w x y z. a b c"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve `/metrics` and `/healthz` until SIGTERM or SIGINT."""
    options = _options(arguments)
    probe = None
    if options.triton and options.probe_tokens:
        probe = Probe(
            options.triton, options.model, options.prompt, options.probe_tokens, options.draft_length
        )
    collector = Collector(Targets(options.triton_metrics, options.trtllm_serve), probe)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = ThreadingHTTPServer((options.host, options.port), _handler(collector))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"exporter on http://{options.host}:{server.server_address[1]}/metrics", flush=True)
    collector.run(options.interval, stopped)
    server.shutdown()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages: dict[str, Callable[[], str]] = {
                "/metrics": collector.families.page,
                "/healthz": lambda: "ok\n",
            }
            page = pages.get(self.path.partition("?")[0])
            body = (page() if page else "pages: /metrics, /healthz\n").encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line each."""

    return Handler


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.exporter", description="Acceptance for Prometheus."
    )

    def option(name: str, default: str, kind: type, text: str) -> None:
        variable = "EXPORTER_" + name.upper().replace("-", "_")
        value = os.environ.get(variable) or default
        parser.add_argument(
            f"--{name}", type=kind, default=value, help=f"{text} ({variable}; {default or 'not set'})"
        )

    option("triton", "", str, "Triton's HTTP address, for probe requests")
    option("triton-metrics", "", str, "Triton's metrics page")
    option("trtllm-serve", "", str, "address of a trtllm-serve")
    option("model", "", str, "model to probe; not set: ensemble, or else tensorrt_llm")
    option("draft-length", "0", int, "configured draft length; 0: not known")
    option("interval", "30", float, "seconds between readings")
    option("probe-tokens", "64", int, "output tokens of a probe; 0: send none")
    option("prompt", _PROMPT, str, "text of a probe")
    option("host", "0.0.0.0", str, "address to listen on")
    option("port", "9400", int, "port to listen on")
    options = parser.parse_args(arguments)
    if not (options.triton or options.triton_metrics or options.trtllm_serve):
        parser.error("name at least one of --triton, --triton-metrics and --trtllm-serve")
    for name in ("triton", "triton_metrics", "trtllm_serve"):
        address = getattr(options, name).rstrip("/")
        if address and not address.startswith(("http://", "https://")):
            parser.error(f"--{name.replace('_', '-')} must be an http:// address, not {address}")
        setattr(options, name, address)
    if options.interval <= 0 or options.probe_tokens < 0 or options.draft_length < 0:
        parser.error("--interval must be above 0, --probe-tokens and --draft-length at least 0")
    return options


if __name__ == "__main__":
    main()
