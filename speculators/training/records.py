"""What a run wrote down: one JSON object a step and an evaluation, and the curves drawn from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.files.writing import replace_file, write_text
from speculators.training.errors import TrainingError

_RECORDS, _CURVES = "records.jsonl", "curves.png"


@dataclass(frozen=True, slots=True)
class Started:
    """Where a run begins.

    Attributes:
        run: its name.
        step: steps that are done already.
        steps: number of the last step.
    """

    run: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One step of the optimiser.

    Attributes:
        step, steps: its number from 1, and that of the last.
        loss: mean over its micro-batches.
        learning_rate: of this step.
        accuracy: of each depth, the share of drafted tokens that were right after right ones.
        acceptance: estimated acceptance length on the step's own data.
        tokens: tokens read.
        seconds: wall time.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    accuracy: list[float]
    acceptance: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Greedy speculation on held-out output of the target.

    Attributes:
        step: optimiser steps before it.
        tokens: emitted tokens.
        length: acceptance length; None if nothing was emitted.
        by_position: share accepted of the drafts at each position; None where there were none.
    """

    step: int
    tokens: int
    length: float | None
    by_position: list[float | None]


class Records:
    """`records.jsonl` and `curves.png` of a run's directory; if wanted, TensorBoard's events as well.

    Raises:
        TrainingError: the directory cannot be made, or TensorBoard is not installed.
    """

    def __init__(self, directory: Path, *, tensorboard: bool) -> None:
        self._directory = directory
        self._board = _board(directory) if tensorboard else None
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{directory} cannot be made: {error.strerror}") from error

    def append(self, record: TrainingStep | Evaluation) -> None:
        """Add a record.

        Raises:
            TrainingError: it cannot be written.
        """
        line = json.dumps({"kind": type(record).__name__, **asdict(record)}) + "\n"
        try:
            with (self._directory / _RECORDS).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise TrainingError(
                f"{self._directory / _RECORDS} cannot be written: {error.strerror}"
            ) from error
        if self._board is not None:
            _show(self._board, record)

    def forget_after(self, step: int) -> None:
        """Drop records of steps that are run again."""
        path = self._directory / _RECORDS
        if path.is_file():
            kept = [record for record in self.read() if record["step"] <= step]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def read(self) -> Iterator[dict[str, Any]]:
        """All records; a last line that a kill cut short is left out."""
        for line in (self._directory / _RECORDS).read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def seconds(self) -> float:
        """Wall time of all steps, however often the run was stopped."""
        return float(sum(record.get("seconds", 0.0) for record in self.read()))

    def draw(self) -> Path:
        """Draw loss, accuracy by position and acceptance length over tokens; returns the picture's path."""
        # Matplotlib takes a second to import, and only the end of a run needs it.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        loss, accuracy, length = figure.subplots(1, 3)
        tokens, seen = 0, {0: 0}
        steps = []
        for record in self.read():
            if record["kind"] == TrainingStep.__name__:
                tokens += record["tokens"]
                seen[record["step"]] = tokens
                steps.append((tokens, record))
        loss.plot([at for at, _ in steps], [record["loss"] for _, record in steps], linewidth=0.8)
        loss.set(xlabel="tokens", ylabel="loss", yscale="log")
        evaluations = [record for record in self.read() if record["kind"] == Evaluation.__name__]
        at = [seen[record["step"]] for record in evaluations]
        length.plot(at, [record["length"] for record in evaluations], marker="o", markersize=3)
        length.set(xlabel="tokens", ylabel="acceptance length, held out")
        for position in range(len(evaluations[-1]["by_position"]) if evaluations else 0):
            shares = [record["by_position"][position] for record in evaluations]
            accuracy.plot(at, shares, label=f"position {position + 1}")
        accuracy.set(xlabel="tokens", ylabel="accepted, held out", ylim=(0, 1))
        accuracy.legend(fontsize="small")
        with replace_file(self._directory / _CURVES) as path:
            figure.savefig(path, dpi=120, format="png")
        return self._directory / _CURVES


def _board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError(
            "training.tensorboard needs TensorBoard, which is not installed: pip install tensorboard"
        ) from None
    return SummaryWriter(str(directory / "tensorboard"))


def _show(board: Any, record: TrainingStep | Evaluation) -> None:
    if isinstance(record, TrainingStep):
        board.add_scalar("loss", record.loss, record.step)
        board.add_scalar("learning_rate", record.learning_rate, record.step)
        shares: Sequence[float | None] = record.accuracy
        kind = "accuracy"
    else:
        if record.length is not None:
            board.add_scalar("acceptance_length", record.length, record.step)
        shares, kind = record.by_position, "held_out"
    for position, share in enumerate(shares, start=1):
        if share is not None:
            board.add_scalar(f"{kind}/position_{position}", share, record.step)
    board.flush()
