"""Flags of `gradstore evaluate`."""

from __future__ import annotations

from pydantic import Field, model_validator

from gradstore.errors import ConfigError
from gradstore.flags.dataset import DatasetSpec, Device
from gradstore.store.format.spec import COMMAS


class EvaluateConfig(DatasetSpec):
    """Options of `gradstore evaluate`. The dataset holds the queries."""

    stores: list[str] = Field(
        min_length=1, description="a training store whose measures are evaluated"
    )
    dataset: str = Field(
        description="held-out images to query: a folder, a .parquet file, digits, or hf://NAME"
    )
    split: str = Field("test", description="split of digits or of a hub dataset")
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
    timesteps: int = Field(10, ge=1, le=10_000, description="timesteps per query")
    draws: int = Field(4, ge=1, le=10_000, description="noises averaged at each timestep")
    event_seed: int = Field(0, ge=0, description="seed of the queries' noises")
    loss_timesteps: int = Field(25, ge=1, le=10_000, description="timesteps of a query's loss")
    loss_draws: int = Field(4, ge=1, le=10_000, description="noises of its loss at each timestep")
    checkpoints: list[str] | None = Field(
        None, description="the stores' checkpoints, if they moved [default: recorded paths]"
    )
    out: str = Field(description="folder of the results: a new one, or one to resume")
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB of memory in addition to the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    @model_validator(mode="after")
    def _sound(self) -> EvaluateConfig:
        if self.outliers is not None and not all(self.outliers.partition("=")):
            raise ConfigError(f"--outliers is {self.outliers!r}; give COLUMN=VALUE.")
        return self
