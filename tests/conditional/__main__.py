"""Is a drafter's output matrix worth computing conditionally? Milliseconds and acceptance beside dense ones.

The drafter of a deployment stays as it is and gets a fast feed-forward tree over its output matrix, trained on the
samples that `drafthouse train SPEC --only data` gathered. Compared are its whole output matrix, fewer rows of it (the
tokens written most), and a few leaves of the tree: acceptance length of greedy chains on held-out samples with a
bootstrap interval, and the time of a drafted token, compiled as it is served, in alternating rounds. Two more arms say
what a conditional layer could gain at most: next to no output rows, and next to no feed-forward layer.

    python -m tests.conditional deployments/smollm2-eagle3.yaml

Training takes up where it was stopped. States, records and the result as JSON go to `runs/bench/conditional/NAME`.
"""

import argparse
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from accelerate.utils import set_seed

from deployments.files.writing import write_json
from deployments.spec import DeploymentSpec, SpecError, load_spec
from deployments.speculation import Eagle3, MlpSpeculator
from planner.bench.measure import BenchResult, Subject, alternate
from planner.bench.trainers.judge import interval
from speculators.training.acceptance import Acceptance
from speculators.training.families import Ingredients, layers_read
from speculators.training.features import CachedFeatures, collate
from speculators.training.loop import LoopSettings, TrainingData, TrainingRun
from speculators.training.provenance import target_hash
from speculators.training.records import Evaluation, Started, TrainingStep
from speculators.training.run import usable_samples
from speculators.training.starts import open_start
from speculators.training.target import FrozenTarget
from speculators.training.vocabulary import token_counts
from tests.conditional.arms import ROWS, all_rows, build_arms, leaves, timed
from tests.conditional.trainees import ROUTED, RoutedEagle3, RoutedMlpSpeculator
from tests.conditional.tree import OutputTree

SIZES = (4096, 2048, 1024, 512)
READ = (1, 2, 4, 8, 16)
_RATE = 3e-3
_TOLD_EVERY = 20

Routed = RoutedEagle3 | RoutedMlpSpeculator


@dataclass(frozen=True, slots=True)
class Accepted:
    """Acceptance length with its 95 % interval."""

    length: float
    interval: tuple[float, float]


class Experiment:
    """The data, the drafter and its tree."""

    def __init__(
        self, spec: DeploymentSpec, *, samples: int, held_out_every: int, depth: int, directory: Path
    ) -> None:
        """Compute hidden states and begin with a tree that has learned nothing.

        Raises:
            SpecError: the method has no such experiment.
            DataError: there are no samples.
            CheckpointError, TrainingError: the drafter is damaged, or not as the training section says.
        """
        section = spec.speculation
        if not isinstance(section, Eagle3 | MlpSpeculator):
            raise SpecError(
                f"{spec.name} drafts by {section.method}; {' and '.join(ROUTED)} have output matrices here"
            )
        self.spec, self._directory = spec, directory
        usable = usable_samples(spec.training)
        learned = [sample for sample in usable if sample.id % held_out_every]
        self.learned = learned[:samples]
        self.held_out = [sample for sample in usable if sample.id % held_out_every == 0 and sample.greedy]
        target = FrozenTarget(spec.target.model, torch.device("cpu"))
        begins = spec.training.model_copy(update={"from_pretrained": section.checkpoint})
        start, training = open_start(section.method, begins, target)
        layers = layers_read(training, target.num_layers)
        self._source = CachedFeatures(
            directory / "features", layers, target.hidden_size, target_hash(target.directory)
        )
        every = [*self.held_out, *self.learned]
        self._source.extend(
            every, target, lambda done, all_: print(f"hidden states {done}/{all_}", flush=True)
        )
        self._source.open(every)
        kept = torch.from_numpy(start.kept)
        given = Ingredients(target, kept, self.learned, self._source, training, start)
        set_seed(training.seed)
        self._routed = ROUTED[section.method](given)
        self._routed.route(target.lm_head[kept], depth)
        counts = token_counts(learned, target.vocab_size)[kept]
        self.by_use = torch.sort(counts, descending=True, stable=True).indices
        """Rows of the output matrix, those of the tokens that the target writes most in front."""

    def train(self, epochs: int) -> OutputTree:
        """Train the tree, or take up where it was stopped."""
        training = self.spec.training
        loop = LoopSettings(
            epochs=epochs,
            batch_tokens=training.batch_tokens,
            learning_rate=_RATE,
            seed=training.seed,
            everything=True,
            evaluate_every=sys.maxsize,
            mixed_precision=training.mixed_precision,
        )
        data = TrainingData(self.learned, self.held_out, self._source)
        run = TrainingRun(self._routed, data, loop, self._directory / "tree", cpu=True)
        run.train(_tell)
        trained = run.trained()
        assert isinstance(trained, Routed)
        self._routed = trained
        return trained.router.tree()

    def accepted(self, sizes: Sequence[int], read: Sequence[int]) -> dict[str, Accepted]:
        """By arm: with so many rows of the output matrix, and with so many leaves of the tree."""
        routed, tree = self._routed.eval(), self._routed.router.tree()
        rows = {all_rows(size): partial(_likeliest_of, self.by_use[:size]) for size in sizes}
        routed.choices = rows | {
            leaves(count, tree): partial(routed.router.likeliest, read=count) for count in read
        }
        counts: dict[str, list[tuple[int, int]]] = {name: [] for name in routed.choices}
        for sample in self.held_out:
            routed.hits.clear()
            with torch.no_grad():
                routed(collate([sample], self._source, everything=False))
            for name, hits in routed.hits.items():
                own = Acceptance(routed.depth)
                for start, end in sample.written:
                    own.add(torch.stack(hits)[:, 0], start, end)
                counts[name].append((own.tokens, own.steps))
        return {name: _accepted(found) for name, found in counts.items()}


def measure(
    spec: DeploymentSpec, by_use: torch.Tensor, tree: OutputTree, rounds: int, directory: Path
) -> BenchResult:
    """Times of all arms, by name and number of requests."""
    subjects: dict[str, Subject] = {}
    built = build_arms(spec, by_use.numpy(), tree, _smaller(by_use), _fewer(tree))
    for number, (name, model) in enumerate(built.items()):
        path = directory / f"arm-{number}.onnx"
        onnx.save(model, str(path))
        subjects |= {f"{name}, {rows}": subject for rows, subject in timed(spec, path).items()}
    return BenchResult(spec.name, 0, alternate(subjects, rounds, lambda line, share: None))


def _tell(record: Started | TrainingStep | Evaluation) -> None:
    if isinstance(record, TrainingStep) and record.step % _TOLD_EVERY == 0:
        print(f"step {record.step} of {record.steps}, loss {record.loss:.3f}", flush=True)


def _accepted(counts: Sequence[tuple[int, int]]) -> Accepted:
    counts = [(tokens, steps) for tokens, steps in counts if steps]
    tokens, steps = (sum(part) for part in zip(*counts, strict=True))
    return Accepted(tokens / steps, interval(counts))


def _likeliest_of(chosen: torch.Tensor, states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return chosen[(states.float() @ output[chosen].float().T).argmax(-1)]


def _smaller(by_use: torch.Tensor) -> Sequence[int]:
    return [size for size in SIZES if size < len(by_use)]


def _fewer(tree: OutputTree) -> Sequence[int]:
    return [read for read in READ if read <= len(tree.leaves)]


def _table(result: BenchResult, accepted: Mapping[str, Accepted], base: str) -> Iterator[str]:
    """A line for each arm: times and their ratios to the whole matrix, by requests, and what is accepted."""
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in result.rounds):
        line = f"{name:18}"
        for rows in ROWS:
            ratio = result.ratio(f"{name}, {rows}", f"{base}, {rows}")
            line += f"  {result.median(f'{name}, {rows}'):7.3f} ms x {ratio:.3f}"
        if name in accepted:
            low, high = accepted[name].interval
            line += f"  {accepted[name].length:.3f} ({low:.3f} to {high:.3f})"
        yield line


def main() -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", type=Path, help="deployment whose speculation is eagle3 or mlp_speculator")
    parser.add_argument("--samples", type=int, default=300, help="samples that the tree learns from")
    parser.add_argument(
        "--held-out-every",
        type=int,
        default=32,
        help="of the greedy samples, those whose number it divides are held out; 32: as the drafter's training did",
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes over them")
    parser.add_argument("--depth", type=int, default=7, help="of the tree: 2^depth leaves")
    parser.add_argument("--rounds", type=int, default=40, help="how often each arm is timed")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench/conditional"), help="states and results"
    )
    given = parser.parse_args()
    spec = load_spec(given.spec)
    directory = given.output / spec.name
    directory.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(
        spec,
        samples=given.samples,
        held_out_every=given.held_out_every,
        depth=given.depth,
        directory=directory,
    )
    tree = experiment.train(given.epochs)
    np.savez(directory / "tree.npz", nodes=tree.nodes, leaves=tree.leaves)
    whole = len(experiment.by_use)
    accepted = experiment.accepted((whole, *_smaller(experiment.by_use)), _fewer(tree))
    result = measure(spec, experiment.by_use, tree, given.rounds, directory)
    for line in _table(result, accepted, all_rows(whole)):
        print(line)
    document = {
        "arguments": sys.argv[1:],
        "accepted": {name: asdict(figure) for name, figure in accepted.items()},
        "ms": {name: list(values) for name, values in result.rounds.items()},
        "samples": len(experiment.learned),
        "held_out": len(experiment.held_out),
        "host": platform.platform(),
    }
    write_json(directory / "result.json", document, indent=1)
    print(f"result: {directory / 'result.json'}", flush=True)


if __name__ == "__main__":
    main()
