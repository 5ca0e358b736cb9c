"""Flags of `gradstore scores`, `rollup`, `self-influence`, `hubness` and `breakdown`."""

from __future__ import annotations

from pydantic import Field

from gradstore.store.format.spec import Spec


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
