"""The locustfile that a sweep runs; :mod:`loadtest.sweep` starts it.

    locust -f loadtest/sweep_locustfile.py --headless --only-summary --sweep DIRECTORY

It reads what to do from the directory, measures the cells that are missing there, and tells how far it is in
lines of JSON on its standard output.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner

# Locust puts the folder of this file on the import path; what is imported below lies one higher.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.cell_source import CellSource
from loadtest.conductor import Conductor, SweepAborted, tell
from loadtest.prompts import keep_categories, load, render
from loadtest.run_directory import RunDirectory
from loadtest.users import (
    TritonGrpcUser,
    TritonHttpUser,
    TritonUser,
    choose_users,
    prepare_process,
)

__all__ = ["SweepShape", "TritonGrpcUser", "TritonHttpUser"]


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Declare the one option."""
    parser.add_argument("--sweep", required=True, help="Directory of the sweep", include_in_web_ui=False)


class SweepShape(LoadTestShape):
    """Runs the whole sweep when it is asked for the first number of users, and then wants no more."""

    conductor: ClassVar[Conductor]

    def tick(self) -> None:
        """Conduct the sweep; None ends the run."""
        assert self.runner is not None
        try:
            self.conductor.run()
        except SweepAborted as error:
            tell(event="aborted", reason=str(error))
            self.runner.environment.process_exit_code = 3


@events.init.add_listener  # type: ignore[untyped-decorator]
def set_up(environment: Environment, **_: Any) -> None:
    """Make this process the conductor, a place for users, or both."""
    runner, asked = environment.runner, environment.parsed_options
    assert runner is not None and asked is not None
    directory = RunDirectory(Path(asked.sweep))
    settings = directory.read_settings()
    environment.host = f"{settings.protocol}://{settings.host}"
    if isinstance(runner, (LocalRunner, MasterRunner)):
        choose_users(environment)
        SweepShape.conductor = Conductor(runner, directory)
    if not isinstance(runner, MasterRunner):
        prepare_process()
        servers = directory.read_servers()
        prompts = render(
            keep_categories(load(settings.prompts), settings.categories),
            settings.chat_template,
            with_numbers=any(server.cache == "numbered" for server in servers),
        )
        worker = f"{socket.gethostname()}-{os.getpid()}"
        TritonUser.model = settings.model
        TritonUser.source = CellSource(runner, directory, prompts, worker, servers)
