"""What `gradstore index` can be told."""

from __future__ import annotations

from pydantic import Field

from gradstore.spec import Spec


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
