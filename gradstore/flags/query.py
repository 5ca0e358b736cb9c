"""Flags of `gradstore query`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gradstore.errors import ConfigError
from gradstore.flags.dataset import DatasetSpec, Device
from gradstore.flags.fast import FAST
from gradstore.flags.question import QueryEvents
from gradstore.store.format.spec import COMMAS


class QuestionSpec(QueryEvents, DatasetSpec):
    """How queries are collected."""

    split: str = Field("test", description="split of digits, of shards, or of a hub dataset")
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: recorded paths]"
    )
    base: str | None = Field(
        None, description="the base of the store's checkpoints, if it moved [default: as recorded]"
    )
    out: str = Field(description="folder of the results: a new one, or one to resume")
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB of memory in addition to the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")


class QueryConfig(QuestionSpec):
    """Options of `gradstore query`."""

    store: str = Field(description="the training store to search")
    dataset: str = Field(
        "", description="images to query: a folder, a .parquet file, digits, or hf://NAME"
    )
    queries: str | None = Field(None, description="an existing query store, instead of a dataset")
    images: str | None = Field(
        None, description="the images of --queries, if they moved [default: as recorded]"
    )
    generate: int = Field(
        0, ge=0, description="number of images to generate with the last checkpoint and query"
    )
    prompt: list[str] = Field(
        [],
        description="what to generate with a text-to-image model; --generate images of each prompt "
        "[default: 1]",
    )
    seed: int = Field(0, ge=0, lt=2**62, description="seed of the generated images")
    mean_by: str | None = Field(
        None, description="query with the mean of the samples of each value of this column"
    )
    minus: str | None = Field(None, description="name of the query to subtract from all others")
    measures: list[str] = Field(
        ["tracin", "retrac"],
        min_length=1,
        json_schema_extra=COMMAS,
        description="measures to rank by",
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
    format: Literal["parquet", "jsonl"] = Field("parquet", description="format of the results")

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

    def filter_text(self) -> str:
        """What the filter leaves, in words; empty without one."""
        found = [f"{name} {', '.join(values)}" for name, values in self.where().items()]
        if self.ids is not None:
            found.append(f"one of {len(self.ids):,} ids")
        return f"Only samples with {' and '.join(found)} were searched." if found else ""

    @model_validator(mode="after")
    def _one_source(self) -> QueryConfig:
        generated = self.generate > 0 or bool(self.prompt)
        given = [bool(self.dataset), self.queries is not None, generated]
        if sum(given) != 1:
            raise ConfigError(
                "give exactly one of --dataset, --generate and --queries to choose what to query; "
                "--prompt says what to generate"
            )
        if self.images is not None and self.queries is None:
            raise ConfigError("--images are those of --queries, which is not given. Omit --images.")
        return self
