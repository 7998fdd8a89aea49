"""EAGLE-3 trained by NVIDIA's Model Optimizer and by the kit: which drafts better, and which trains faster?

Both get the same samples in the same micro-batches, target layers, draft vocabulary, depths, optimiser and course of
the learning rate, and run the target in every step; loss, start and training-time test are each trainer's own. Both
checkpoints are judged by the kit's estimator on the same held-out samples. The samples are those that
`drafthouse train` gathered.

    python -m planner.bench.trainers.compare deployments/smollm2-eagle3.yaml --samples 600

Step records, checkpoints and the result as JSON go to `runs/trainers`.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.utils import set_seed

from deployments.cache import cache_directory
from deployments.files.directories import replace_directory
from deployments.files.writing import write_json
from deployments.spec import DeploymentSpec, load_spec
from planner.bench.peers.environments import prepare_environment
from planner.bench.peers.processes import run
from planner.bench.trainers.judge import Judgement, judge
from speculators.data.samples import Sample
from speculators.formats.config import CONFIG_FILE
from speculators.training.arithmetic import product_type
from speculators.training.families import FAMILIES, Ingredients, layers_read
from speculators.training.features import OnlineFeatures
from speculators.training.loop import LoopSettings, TrainingData, TrainingRun
from speculators.training.records import Evaluation, Started, TrainingStep
from speculators.training.run import split_samples, usable_samples
from speculators.training.schedule import Schedule, learning_rate, lengths_of
from speculators.training.target import FrozenTarget
from speculators.training.vocabulary import draft_vocabulary

LOCK = Path(__file__).parent / "requirements" / "modelopt.txt"
_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class TrainerResult:
    """One trainer's figures: judged acceptance, and tokens a second without the first step, which warms up."""

    trainer: str
    steps: int
    tokens_per_second: float
    acceptance: Judgement


class Comparison:
    """The samples, the target and the settings that both trainers get."""

    def __init__(self, spec: DeploymentSpec, count: int, held_out: int, directory: Path) -> None:
        training = spec.training
        samples, reserved = split_samples(usable_samples(training))
        self.samples, self.held_out = samples[:count], reserved[:held_out]
        self.spec, self.directory = spec, directory
        self.target = FrozenTarget(spec.target.model, torch.device("cpu"))
        self.layers = layers_read(training, self.target.num_layers)
        size = min(training.draft_vocab_size, self.target.vocab_size)
        self.kept = draft_vocabulary(self.samples, size, self.target.vocab_size)
        self.settings = LoopSettings(
            batch_tokens=training.batch_tokens,
            learning_rate=training.learning_rate,
            seed=training.seed,
            save_every=sys.maxsize,
            evaluate_every=sys.maxsize,
            mixed_precision=training.mixed_precision,
        )

    def ours(self) -> TrainerResult:
        """Train with the kit, from the start: what an earlier comparison left would be taken up."""
        source = OnlineFeatures(self.target, self.layers)
        set_seed(self.settings.seed)
        given = Ingredients(self.target, self.kept, self.samples, source, self.spec.training)
        data = TrainingData(self.samples, self.held_out, source)
        steps: list[TrainingStep] = []

        def tell(record: Started | TrainingStep | Evaluation) -> None:
            if isinstance(record, TrainingStep):
                steps.append(record)

        with replace_directory(self.directory / "ours", "records.jsonl") as partial:
            run_ = TrainingRun(FAMILIES["eagle3"](given), data, self.settings, partial, cpu=True)
            run_.train(tell)
        checkpoint = self.directory / "ours-checkpoint"
        with replace_directory(checkpoint, CONFIG_FILE) as partial:
            run_.trained().save(partial)
        return self._result("drafthouse", checkpoint, [(step.tokens, step.seconds) for step in steps])

    def modelopt(self, python: Path, variables: dict[str, str]) -> TrainerResult:
        """Train with Model Optimizer, in its own environment.

        Raises:
            ProgramError: it fails.
        """
        checkpoint, records = self.directory / "modelopt-checkpoint", self.directory / "modelopt.jsonl"
        task = self.directory / "task.json"
        steps = self._micro_batches()
        rates = [
            self.settings.learning_rate
            * learning_rate(number, len(steps), self.settings.warmup, self.settings.floor)
            for number in range(len(steps))
        ]
        content = {
            "target": str(self.spec.target.model.resolve()),
            "layers": list(self.layers),
            "kept": self.kept.tolist(),
            "depth": min(self.spec.training.unroll, self.spec.training.depth),
            "steps": [
                [{"tokens": item.tokens, "written": item.written} for item in batch] for batch in steps
            ],
            "rates": rates,
            "betas": self.settings.betas,
            "clip": self.settings.clip,
            "weight_decay": self.settings.weight_decay,
            "seed": self.settings.seed,
            # As ours does, which knows where bfloat16 is slower than float32.
            "mixed_precision": self.settings.mixed_precision and product_type("cpu") == torch.bfloat16,
            "threads": torch.get_num_threads(),
            "checkpoint": str(checkpoint.resolve()),
            "records": str(records.resolve()),
        }
        task.write_text(json.dumps(content), encoding="utf-8")
        command: list[str | Path] = [python, "-m", "planner.bench.trainers.modelopt", task.resolve()]
        root = str(Path(__file__).parents[3])
        run(command, seconds=_SECONDS, variables={**variables, "PYTHONPATH": root})
        lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
        return self._result(
            "nvidia-modelopt", checkpoint, [(line["tokens"], line["seconds"]) for line in lines]
        )

    def _micro_batches(self) -> list[list[Sample]]:
        """Those of our trainer, in its order; a step has one."""
        settings = self.settings
        schedule = Schedule(lengths_of(self.samples), settings.batch_tokens, 1, settings.seed)
        return [
            [self.samples[index] for index in chosen]
            for epoch in range(settings.epochs)
            for (chosen,) in schedule.epoch(epoch)
        ]

    def _result(self, trainer: str, checkpoint: Path, steps: list[tuple[int, float]]) -> TrainerResult:
        measured = steps[1:] or steps
        rate = sum(tokens for tokens, _ in measured) / sum(seconds for _, seconds in measured)
        found = judge(checkpoint, self.target, self.layers, self.held_out, depth=self.spec.training.depth)
        return TrainerResult(trainer, len(steps), rate, found)


def main() -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", type=Path, help="deployment whose speculation is EAGLE-3")
    parser.add_argument("--samples", type=int, default=600, help="samples that both learn from")
    parser.add_argument("--held-out", type=int, default=64, help="samples that both are judged on, at most")
    parser.add_argument("--output", type=Path, default=Path("runs/trainers"), help="records and checkpoints")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    environment = prepare_environment(LOCK, cache_directory() / "trainers")
    comparison = Comparison(load_spec(given.spec), given.samples, given.held_out, given.output)
    results = [comparison.modelopt(environment.python, environment.variables()), comparison.ours()]
    for item in results:
        shares = " ".join("-" if share is None else f"{share:.2f}" for share in item.acceptance.by_position)
        low, high = item.acceptance.interval
        print(
            f"{item.trainer:16} {item.steps} steps, {item.tokens_per_second:7.0f} tokens/s, acceptance length "
            f"{item.acceptance.length:.3f} ({low:.3f} to {high:.3f}; by position {shares})"
        )
    document = {
        "arguments": sys.argv[1:],
        "results": [asdict(item) for item in results],
        "samples": len(comparison.samples),
        "held_out": len(comparison.held_out),
        "training": comparison.spec.training.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "lock": LOCK.read_text(encoding="utf-8").split(),
        "host": platform.platform(),
        "threads": torch.get_num_threads(),
    }
    write_json(given.output / "result.json", document, indent=1)
    print(f"result: {given.output / 'result.json'}", flush=True)


if __name__ == "__main__":
    main()
