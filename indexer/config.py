"""What `gradstore index` can be told."""

from __future__ import annotations

from pydantic import Field

from gradstore.store.format.spec import Spec


class IndexConfig(Spec):
    """From stored rows to search indexes."""

    store: str = Field(description="the store to index")
    skip_unsealed: bool = Field(
        False, description="leave out samples that are not collected yet, and say how many"
    )
    measures: list[str] = Field(
        ["tracin", "retrac"],
        min_length=1,
        description="one index each: tracin (which serves trak, too), retrac, power:ALPHA, "
        "clip:Q, calibrated",
    )
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to leave it out [default: the store's]"
    )
    matched: bool = Field(
        False, description="match slots timestep by timestep, where they are averaged otherwise"
    )
    queries: str | None = Field(
        None,
        description="a query store to measure the recall with, where an index is built [default: "
        "training samples, of which none is to find itself]",
    )
    factory: str | None = Field(
        None,
        description="what is kept of each vector: rabitq, fp16, flat, hnsw, ivf, or a factory "
        "string of FAISS [default: what the index has, else rabitq]",
    )
