"""`drafthouse spec`: every key of a deployment spec, and what each method needs."""

from typing import Annotated

import typer

from cli.common import console, told
from deployments.page import markdown_page, terminal_page


def spec(
    section: Annotated[
        str | None, typer.Argument(help="Part of it, such as engine, speculation.eagle3 or training.data.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole page as it stands in deployments/README.md.")
    ] = False,
) -> None:
    """Explain the keys of a deployment spec: what may stand there, defaults, and what each method needs."""
    with told():
        print(
            markdown_page() if markdown else terminal_page(section, width=min(console.width, 100)),
            end="" if markdown else "\n",
        )
