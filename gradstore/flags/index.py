"""Flags of `gradstore index`."""

from __future__ import annotations

from pydantic import Field

from gradstore.store.format.spec import COMMAS, Spec


class IndexConfig(Spec):
    """Build search indexes from stored rows."""

    store: str = Field(description="the store to index")
    skip_unsealed: bool = Field(
        False, description="omit samples that are not collected yet, and report how many"
    )
    measures: list[str] = Field(
        ["tracin", "retrac"],
        min_length=1,
        json_schema_extra=COMMAS,
        description="measures to build an index for: tracin (also serves trak and minus:R), "
        "retrac, "
        "power:ALPHA, clip:Q, calibrated, centred",
    )
    etas: list[float] | None = Field(
        None, description="weight η of each checkpoint, 0 to omit it [default: the store's]"
    )
    matched: bool = Field(False, description="match slots by timestep instead of averaging them")
    queries: str | None = Field(
        None,
        description="query store used to measure the recall of a new index [default: training "
        "samples, each excluded from its own results]",
    )
    factory: str | None = Field(
        None,
        description="encoding of the indexed vectors: rabitq, fp16, flat, hnsw, ivf, or a FAISS "
        "factory string [default: that of the existing index, else rabitq]",
    )
