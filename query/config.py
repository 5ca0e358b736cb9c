"""What `gradstore query` and `gradstore demo` can be told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gradstore.config import DatasetSpec, Device
from gradstore.errors import ConfigError
from gradstore.store.format.spec import Spec
from query.setting import FAST


class SearchConfig(Spec):
    """A training store under a measure."""

    store: str = Field(description="the training store")
    measure: str = Field("retrac", description="what to rank by")
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to leave it out [default: the store's]"
    )
    matched: bool = Field(
        False, description="match slots timestep by timestep, where they are averaged otherwise"
    )
    skip_unsealed: bool = Field(
        False, description="leave out training samples that are not collected yet"
    )


class SelfInfluenceConfig(SearchConfig):
    """Training samples by their influence on themselves."""

    measure: str = Field("tracin", description="what to rank by")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class BreakdownConfig(SearchConfig):
    """One score by checkpoint and pair of timesteps."""

    queries: str = Field(description="a query store, such as gradstore query leaves in its folder")
    query: str = Field(description="id of the query")
    sample: str = Field(description="id of the training sample")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class AskingConfig(SearchConfig):
    """What is asked of a query store, by sums of its samples or themselves."""

    queries: str = Field(description="a query store, such as gradstore query leaves in its folder")
    mean_by: str | None = Field(
        None, description="ask about the mean of the queries of each value of this column"
    )
    minus: str | None = Field(None, description="ask about every query less the one of this name")


class ScoresConfig(AskingConfig):
    """All scores of all queries."""

    out: str = Field(description="NAME.zarr, a matrix; or NAME.parquet, a row per query and sample")


class RollupConfig(AskingConfig):
    """Influence of whole groups of training samples."""

    by: str = Field("label", description="column of the training samples that holds their groups")
    top: int = Field(10, ge=1, le=10_000, description="how many highest scores top_mean averages")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class HubnessConfig(Spec):
    """Which training samples are influential for everyone."""

    store: str = Field(description="the training store")
    results: str = Field(description="results.parquet of gradstore query")
    out: str = Field(description="folder of a table and a plot per measure; it must not exist")
    skip_unsealed: bool = Field(
        False, description="leave out training samples that are not collected yet"
    )


class QueryConfig(DatasetSpec):
    """From images to ranked training samples."""

    store: str = Field(description="the training store to search")
    dataset: str = Field(
        "", description="images to ask about: a folder, a .parquet file, digits, or hf://NAME"
    )
    split: str = Field("test", description="split of digits or of a hub dataset")
    queries: str | None = Field(
        None, description="a query store that was made before, in place of a dataset"
    )
    generate: int = Field(0, ge=0, description="ask about so many images of the last checkpoint")
    generate_seed: int = Field(0, ge=0, description="seed of the generated images")
    mean_by: str | None = Field(
        None, description="ask about the mean of the queries of each value of this column"
    )
    minus: str | None = Field(None, description="ask about every query less the one of this name")
    measures: list[str] = Field(["tracin", "retrac"], min_length=1, description="what to rank by")
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to leave it out [default: the store's]"
    )
    matched: bool = Field(
        False, description="match slots timestep by timestep, where they are averaged otherwise"
    )
    skip_unsealed: bool = Field(
        False, description="leave out training samples that are not collected yet"
    )
    k: int = Field(10, ge=1, description="proponents, and opponents, per query and measure")
    rerank: int = Field(
        0,
        ge=0,
        description="rank so many candidates of each side again, by true influence, from gradients "
        "that are computed anew and not projected",
    )
    labels: list[str] | None = Field(None, description="search only samples of these labels")
    groups: list[str] | None = Field(None, description="search only samples of these groups")
    ids: list[str] | None = Field(None, description="search only the samples of these ids")
    fast: bool = Field(
        False,
        description=f"fewer gradients per query: {FAST.timesteps} timesteps × {FAST.draws} noises, "
        "in place of --timesteps, --draws and --etas",
    )
    timesteps: int = Field(10, ge=1, le=10_000, description="timesteps per query")
    draws: int = Field(4, ge=1, le=10_000, description="noises averaged into each timestep")
    event_seed: int = Field(0, ge=0, description="seed of the noises")
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: where they were]"
    )
    out: str = Field(description="folder of the results; it must not exist")
    format: Literal["parquet", "jsonl"] = Field("parquet", description="format of the results")
    batch_size: int = Field(32, ge=1, description="events per gradient computation, at most")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB to take beside the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    def where(self) -> dict[str, list[str]]:
        """Values that a training sample must have in the columns of its manifest."""
        asked = {"label": self.labels, "group": self.groups}
        return {name: values for name, values in asked.items() if values is not None}

    @model_validator(mode="before")
    @classmethod
    def _fast(cls, given: Any) -> Any:
        """With the timesteps and draws of `FAST`, so that the settings that are kept tell them."""
        if not (isinstance(given, dict) and given.get("fast")):
            return given
        settled = {"timesteps": FAST.timesteps, "draws": FAST.draws, "etas": None}
        for name, value in settled.items():
            if given.get(name, value) != value:
                raise ConfigError(
                    f"--fast chooses timesteps, draws and etas, but --{name} {given[name]} was "
                    "given. Leave one of the two out."
                )
        return {**given, **settled}

    @model_validator(mode="after")
    def _one_source(self) -> QueryConfig:
        given = [bool(self.dataset), self.queries is not None, self.generate > 0]
        if sum(given) != 1:
            raise ConfigError(
                "what to ask about? Give exactly one of --dataset, --generate and --queries."
            )
        return self


class DemoConfig(Spec):
    """The whole road on scikit-learn's digits."""

    out: str = Field("demo", description="folder of everything the demo makes; it must not exist")
    epochs: int = Field(24, ge=4, description="epochs of training; four checkpoints are kept")
    proj_dim: int = Field(512, ge=1, le=1 << 20, description="projection dimension")
    digits: int = Field(1700, ge=1, le=1700, description="training digits to use")
    heldout: int = Field(50, ge=1, le=97, description="held-out digits to ask about")
    generated: int = Field(16, ge=1, description="generated digits to ask about")
    k: int = Field(10, ge=1, description="proponents, and opponents, per query and measure")
    seed: int = Field(0, ge=0, description="seed of everything")
