"""Flags of `gradstore evaluate`."""

from __future__ import annotations

from pydantic import Field, model_validator

from gradstore.errors import ConfigError
from gradstore.flags.query import QuestionSpec
from gradstore.store.format.spec import COMMAS


class EvaluateConfig(QuestionSpec):
    """Options of `gradstore evaluate`. The dataset holds the queries."""

    stores: list[str] = Field(
        min_length=1, description="a training store whose measures are evaluated"
    )
    dataset: str = Field(
        description="held-out images to query: a folder, a .parquet file, digits, or hf://NAME"
    )
    measures: list[str] = Field(
        ["tracin", "retrac", "trak"],
        min_length=1,
        json_schema_extra=COMMAS,
        description="measures to evaluate",
    )
    train: str | None = Field(
        None,
        description="a command that trains the model on some of the samples; {ids} in it becomes a "
        "file of their ids, {seed} the seed, {out} the folder for its checkpoints. Each model is "
        "removed once it was judged [default: figures that need no retraining]",
    )
    subsets: int = Field(32, ge=2, le=100_000, description="random halves to train models on")
    seeds: int = Field(2, ge=1, le=1000, description="models trained on each half")
    removals: int = Field(
        0, ge=0, description="queries whose first proponents are removed before training again"
    )
    removed: int = Field(10, ge=1, description="number of proponents that are removed")
    copies: int = Field(
        20, ge=0, description="training samples to query with, which should find themselves"
    )
    outliers: str | None = Field(
        None,
        description="COLUMN=VALUE of the training samples that self-influence should detect",
    )
    features: list[str] = Field(
        [],
        description="NAME.npz: features of another model, such as CLIP, to compare with: arrays "
        "`train` and `queries`, one row per sample",
    )
    loss_timesteps: int = Field(25, ge=1, le=10_000, description="timesteps of a query's loss")
    loss_draws: int = Field(4, ge=1, le=10_000, description="noises of its loss at each timestep")

    @model_validator(mode="after")
    def _sound(self) -> EvaluateConfig:
        if self.outliers is not None and not all(self.outliers.partition("=")):
            raise ConfigError(f"--outliers is {self.outliers!r}; give COLUMN=VALUE.")
        return self
