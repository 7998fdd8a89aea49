"""Entry point of `drafthouse`."""

import typer

from cli import bench, measure, prepare, serve, verify

app = typer.Typer(
    help="Speculative decoding on Triton Inference Server: build, serve, measure, prove.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    *(prepare.doctor, prepare.model, prepare.build),
    *(serve.serve, serve.generate, verify.verify),
    *(measure.loadtest, bench.bench, measure.demo),
):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
