"""The spec's `training` section: how `drafthouse train` makes the speculator that the `speculation` section names."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from deployments.places import KIT_PROMPTS
from deployments.section import Section


class DataSpec(Section):
    """What is learned from."""

    path: Path | None = Field(
        None,
        description="JSONL of conversations or texts, whose answers the target writes anew; none: the target "
        "writes the prompts, too.",
    )
    response_tokens: PositiveInt = Field(1_000_000, description="Tokens that the target is to write.")
    max_response_tokens: PositiveInt = Field(192, description="Longest answer.")
    greedy: float = Field(0.7, ge=0, le=1, description="Share of the samples that are answered greedily.")
    temperature: PositiveFloat = Field(0.8, description="Of the others.")
    max_sample_tokens: PositiveInt = Field(1024, description="Longer samples are left out.")
    batch_size: PositiveInt = Field(64, description="Samples that the target writes at once.")
    held_out: tuple[Path, ...] = Field(
        (),
        description="JSONL of more prompts that must not be trained on, in Spec-Bench's format; the kit's own and "
        "those of Spec-Bench, which it knows by hash, never are.",
    )

    @property
    def held_out_files(self) -> tuple[Path, ...]:
        """The kit's own prompts, and those that the spec names."""
        return KIT_PROMPTS, *self.held_out


class TrainingSpec(Section):
    """How it is learned."""

    directory: Path = Field(
        Path("runs/training/{target}"),
        description="Data, hidden states and states of runs; {target} is the directory name of the model, {name} the "
        "deployment's.",
    )
    checkpoint: Path | None = Field(
        None,
        description="Where the trained speculator goes; none: where the speculation section reads it. {name} is the "
        "deployment's.",
    )
    from_pretrained: Path | None = Field(
        None,
        description="Checkpoint of the method that training begins from, instead of random weights (P-EAGLE: or of "
        "EAGLE-3); what it fixes (vocabulary, layers, heads, stages) is taken from it.",
    )
    data: DataSpec = DataSpec()
    draft_vocab_size: PositiveInt = Field(8192, description="Tokens that can be drafted.")
    depth: int = Field(5, ge=1, le=16, description="Tokens of a chain: heads, stages, what is measured.")
    unroll: int = Field(
        7,
        ge=1,
        le=16,
        description="EAGLE-3: depths of a chain that are trained (training-time test), at most depth.",
    )
    epochs: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        3, description="Passes over the data; of a method with two stages one number for both, or two."
    )
    batch_tokens: PositiveInt = Field(4096, description="Padded tokens of a micro-batch.")
    accumulation: PositiveInt = Field(1, description="Micro-batches of an optimiser step, on each process.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices between hidden states, AdamW for the rest."
    )
    learning_rate: PositiveFloat = Field(1e-3, description="Greatest rate of the optimiser.")
    labels: Literal["soft", "hard"] = Field("soft", description="The target's distribution, or its tokens.")
    layers: tuple[int, ...] | None = Field(
        None,
        description="EAGLE-3, P-EAGLE: hidden states that are read; none: 2, half, and 3 before the last.",
    )
    drafter_layers: int = Field(2, ge=1, le=8, description="P-EAGLE: decoder layers of the drafter.")
    keep_layers: tuple[int, ...] | None = Field(
        None, description="Draft model: layers of the target that are kept; none: first, second and last."
    )
    save_embedding: bool = Field(
        True,
        description="Draft model: keep the target's embedding in the checkpoint, as other engines want it; without, it "
        "is a quarter of the size, and `drafthouse build` puts the embedding in.",
    )
    medusa_blocks: int = Field(1, ge=1, le=4, description="Medusa: residual blocks of a head.")
    stages: Literal["both", "inputs", "outputs"] | None = Field(
        None,
        description="Learn all tokens of the samples, those that the target answered, or one after the other; "
        "none: the method's recipe (both for the MLP speculator, outputs for the others).",
    )
    inputs: Literal["both", "state", "tokens"] = Field(
        "both", description="MLP speculator: what it is conditioned on."
    )
    features: Literal["cached", "online"] = Field(
        "cached", description="Hidden states: computed once and kept on disk, or for every batch."
    )
    save_every: PositiveInt = Field(100, description="Steps between two states that a run can resume from.")
    evaluate_every: PositiveInt = Field(
        100, description="Steps between two measurements on held-out samples."
    )
    seed: int = Field(0, ge=0, description="Of prompts, order and starting weights.")
    device: Literal["auto", "cpu"] = Field("auto", description="auto takes a GPU if there is one.")
    mixed_precision: bool = Field(True, description="Matrix products in bfloat16, where the device has it.")
    tensorboard: bool = Field(False, description="Write the records for TensorBoard as well.")

    @field_validator("epochs", mode="before")
    @classmethod
    def _one_or_two(cls, epochs: object) -> object:
        """Say what would be right, which the errors of a union do not."""
        stages = epochs if isinstance(epochs, (list, tuple)) else (epochs, epochs)
        if len(stages) != 2 or not all(isinstance(number, int) and number > 0 for number in stages):
            raise ValueError("give a whole number of 1 or more, or two of them: one for each stage")
        return epochs

    def epochs_of(self, stage: Literal["inputs", "outputs"]) -> int:
        """Passes over the data of a stage."""
        return self.epochs if isinstance(self.epochs, int) else self.epochs[stage == "outputs"]
