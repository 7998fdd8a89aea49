"""Entry point of `drafthouse`."""

import typer

from cli import bench, demo, doctor, measure, peers, plan, prepare, profile, serve, spec, train, verify

app = typer.Typer(
    help="Speculative decoding on Triton Inference Server: train, build, serve, measure, prove.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    *(doctor.doctor, prepare.model, spec.spec, train.train, prepare.build),
    *(serve.serve, serve.generate, verify.verify),
    *(measure.loadtest, bench.bench, peers.peers, profile.profile, plan.plan, demo.demo),
):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
