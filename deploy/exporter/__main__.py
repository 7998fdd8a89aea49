"""Command line of the exporter: `python -m deploy.exporter`; every option is also an environment variable.

Exit status 2 on options that cannot work.
"""

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.exporter.collector import Collector, Targets
from deploy.exporter.exposition import CONTENT_TYPE
from deploy.exporter.probe import PROBE_SECONDS, Probe

_PROMPT = "Repeat the alphabet three times: a b c d e f g h i j k l m n o p q r s t u v w x y z. a b c"

_OLD_READINGS = 3  # intervals
_CLIENT_SECONDS = 10.0  # whoever does not send his request meanwhile is hung up on


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
    server = ThreadingHTTPServer(
        (options.host, options.port), _handler(collector, _OLD_READINGS * options.interval + PROBE_SECONDS)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Not in this thread, which SIGTERM wakes: a reading that waits for an answer does not hold up the end.
    threading.Thread(target=collector.run, args=(options.interval, stopped), daemon=True).start()
    print(f"exporter on http://{options.host}:{server.server_address[1]}/metrics", flush=True)
    stopped.wait()
    server.shutdown()


def _handler(collector: Collector, most_seconds: float) -> type[BaseHTTPRequestHandler]:
    """`most_seconds`: older readings are a sign that there will be no others."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS

        def do_GET(self) -> None:
            status, page = self._page(self.path.partition("?")[0])
            body = page.encode()
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _page(self, path: str) -> tuple[int, str]:
            if path == "/metrics":
                return 200, collector.families.page()
            if path == "/healthz":
                age = collector.age
                return (
                    (200, "ok\n") if age <= most_seconds else (503, f"the last reading is {age:.0f} s old\n")
                )
            return 404, "pages: /metrics, /healthz\n"

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
