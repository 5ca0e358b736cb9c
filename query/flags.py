"""Options of `gradstore query`, `gradstore demo` and the commands for studies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gradstore.errors import ConfigError
from gradstore.flags import DatasetSpec, Device
from gradstore.store.format.spec import Spec
from query.setting import FAST


class SearchConfig(Spec):
    """Options for searching a training store under a measure."""

    store: str = Field(description="the training store")
    measure: str = Field("retrac", description="measure to rank by")
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to omit it [default: the store's]"
    )
    matched: bool = Field(False, description="match slots by timestep instead of averaging them")
    skip_unsealed: bool = Field(
        False, description="omit training samples that are not collected yet"
    )


class SelfInfluenceConfig(SearchConfig):
    """Options of `gradstore self-influence`."""

    measure: str = Field("tracin", description="measure to rank by")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class BreakdownConfig(SearchConfig):
    """Options of `gradstore breakdown`."""

    queries: str = Field(description="a query store, such as gradstore query leaves in its folder")
    query: str = Field(description="id of the query")
    sample: str = Field(description="id of the training sample")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class AskingConfig(SearchConfig):
    """Options for a query store: its samples, or sums of them, are the queries."""

    queries: str = Field(description="a query store, such as gradstore query leaves in its folder")
    mean_by: str | None = Field(
        None, description="query with the mean of the samples of each value of this column"
    )
    minus: str | None = Field(None, description="name of the query to subtract from all others")


class ScoresConfig(AskingConfig):
    """Options of `gradstore scores`."""

    out: str = Field(description="NAME.zarr, a matrix; or NAME.parquet, a row per query and sample")


class RollupConfig(AskingConfig):
    """Options of `gradstore rollup`."""

    by: str = Field("label", description="column of the training samples that holds their groups")
    top: int = Field(10, ge=1, le=10_000, description="number of highest scores in top_mean")
    out: str = Field(description="NAME.parquet or NAME.jsonl")


class HubnessConfig(Spec):
    """Options of `gradstore hubness`."""

    store: str = Field(description="the training store")
    results: str = Field(description="results.parquet of gradstore query")
    out: str = Field(description="folder for a table and a plot per measure; it must not exist")
    skip_unsealed: bool = Field(
        False, description="omit training samples that are not collected yet"
    )


class QueryConfig(DatasetSpec):
    """Options of `gradstore query`."""

    store: str = Field(description="the training store to search")
    dataset: str = Field(
        "", description="images to query: a folder, a .parquet file, digits, or hf://NAME"
    )
    split: str = Field("test", description="split of digits or of a hub dataset")
    queries: str | None = Field(None, description="an existing query store, instead of a dataset")
    generate: int = Field(
        0, ge=0, description="number of images to generate with the last checkpoint and query"
    )
    generate_seed: int = Field(0, ge=0, description="seed of the generated images")
    mean_by: str | None = Field(
        None, description="query with the mean of the samples of each value of this column"
    )
    minus: str | None = Field(None, description="name of the query to subtract from all others")
    measures: list[str] = Field(
        ["tracin", "retrac"], min_length=1, description="measures to rank by"
    )
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to omit it [default: the store's]"
    )
    matched: bool = Field(False, description="match slots by timestep instead of averaging them")
    skip_unsealed: bool = Field(
        False, description="omit training samples that are not collected yet"
    )
    k: int = Field(10, ge=1, description="number of proponents and opponents per query and measure")
    rerank: int = Field(
        0,
        ge=0,
        description="number of candidates per side to rerank by true influence, from recomputed, "
        "unprojected gradients",
    )
    labels: list[str] | None = Field(None, description="search only samples with these labels")
    groups: list[str] | None = Field(None, description="search only samples of these groups")
    ids: list[str] | None = Field(None, description="search only samples with these ids")
    fast: bool = Field(
        False,
        description=f"fewer gradients per query: {FAST.timesteps} timesteps × {FAST.draws} noises, "
        "instead of --timesteps, --draws and --etas",
    )
    timesteps: int = Field(10, ge=1, le=10_000, description="timesteps per query")
    draws: int = Field(4, ge=1, le=10_000, description="noises averaged at each timestep")
    event_seed: int = Field(0, ge=0, description="seed of the noises")
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: recorded paths]"
    )
    out: str = Field(description="folder of the results: a new one, or one to resume")
    format: Literal["parquet", "jsonl"] = Field("parquet", description="format of the results")
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB of memory in addition to the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    def where(self) -> dict[str, list[str]]:
        """Allowed values by manifest column of the training samples."""
        asked = {"label": self.labels, "group": self.groups}
        return {name: values for name, values in asked.items() if values is not None}

    @model_validator(mode="before")
    @classmethod
    def _fast(cls, given: Any) -> Any:
        """Set the timesteps and draws of `FAST`, so that the saved settings record them."""
        if not (isinstance(given, dict) and given.get("fast")):
            return given
        settled = {"timesteps": FAST.timesteps, "draws": FAST.draws, "etas": None}
        for name, value in settled.items():
            if given.get(name, value) != value:
                raise ConfigError(
                    f"--fast chooses timesteps, draws and etas, but --{name} {given[name]} was "
                    "given. Omit one of the two."
                )
        return {**given, **settled}

    @model_validator(mode="after")
    def _one_source(self) -> QueryConfig:
        given = [bool(self.dataset), self.queries is not None, self.generate > 0]
        if sum(given) != 1:
            raise ConfigError(
                "give exactly one of --dataset, --generate and --queries to choose what to query"
            )
        return self


class DemoConfig(Spec):
    """Options of `gradstore demo`."""

    out: str = Field(
        "demo", description="folder of all files of the demo: a new one, or one to resume"
    )
    epochs: int = Field(24, ge=4, description="epochs of training; four checkpoints are kept")
    proj_dim: int = Field(512, ge=1, le=1 << 20, description="projection dimension")
    digits: int = Field(1700, ge=1, le=1700, description="number of training digits")
    heldout: int = Field(50, ge=1, le=97, description="number of held-out digits to query")
    generated: int = Field(16, ge=1, description="number of generated digits to query")
    k: int = Field(10, ge=1, description="number of proponents and opponents per query and measure")
    seed: int = Field(0, ge=0, description="seed of all random numbers")
