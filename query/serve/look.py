"""What a page looks at: a query, a measure, a range and a filter, as its link names them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gradstore.errors import QueryError
from indexer.measures.registry import MEASURES, PARAMETRIC
from query.filters import matching_samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.reader import Store

# Not a dotted name: that would import a module, at a stranger's wish.
_MEASURE: Final = re.compile(r"([a-z]{1,20})(:[0-9]{1,6}(\.[0-9]{1,6})?)?")
MOST_RANKS: Final = 500
# What a page shows that was not told otherwise.
FIRST_MEASURES: Final = ("tracin", "retrac")
_MOST_IDS: Final = 100_000

Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Names = Annotated[list[Name], Field(max_length=_MOST_IDS)]


def require_measure(name: str) -> str:
    """Return the name of one of gradstore's own measures.

    Raises:
        QueryError: if it is not one.
    """
    found = _MEASURE.fullmatch(name)
    if not found or found[1] not in (PARAMETRIC if found[2] else MEASURES):
        raise QueryError(
            f"there is no measure {name[:40]!r} on this page; use {', '.join(MEASURES)}, "
            f"{', '.join(f'{one}:NUMBER' for one in PARAMETRIC)}."
        )
    return name


class Asker(BaseModel):
    """Who is asked about: exactly one of three.

    Attributes:
        query: id of a stored query.
        sample: id of a training sample, which is asked with its stored rows.
        asked: name of an image that was given to this server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: Name | None = Field(None, description="id of a stored query")
    sample: Name | None = Field(None, description="id of a training sample")
    asked: Name | None = Field(None, description="name of an image given to this server")

    @model_validator(mode="after")
    def _one(self) -> Asker:
        if sum(one is not None for one in (self.query, self.sample, self.asked)) != 1:
            raise ValueError("name exactly one of query, sample and asked")
        return self


class Look(Asker):
    """A question about one query under one measure.

    Attributes:
        measure: one of gradstore's own measures.
        k: samples on each side, at most; fewer if the filter leaves fewer.
        low: first timestep; with `high`, rows outside have weight 0.
        high: last timestep.
        checkpoints: numbers of the checkpoints that count; all if empty.
        where: `COLUMN=VALUE`; several values of a column are alternatives.
        ids: search only these samples.
        near: images that differ by less than so many percent of the range of grey are copies.
    """

    measure: str = Field("retrac", max_length=40, description="measure to rank by")
    k: int = Field(20, ge=1, le=MOST_RANKS, description="samples on each side")
    low: int | None = Field(None, ge=0, le=10**8, description="first timestep")
    high: int | None = Field(None, ge=0, le=10**8, description="last timestep")
    checkpoints: list[int] = Field([], max_length=1000, description="numbers of those that count")
    where: Names = Field([], description="COLUMN=VALUE; values of one column are alternatives")
    ids: Names = Field([], description="search only these samples")
    near: float = Field(
        0,
        ge=0,
        le=100,
        description="images that differ by less than so many percent of the range of grey are "
        "copies; equal samples always are",
    )

    @property
    def named(self) -> str:
        """Name of the measure with its range, as `measure_of` takes it."""
        require_measure(self.measure)
        if self.low is None and self.high is None:
            return self.measure
        return f"{self.measure}@{self.low or 0}-{self.high if self.high is not None else 10**8}"

    def etas(self, store: Store) -> tuple[float, ...]:
        """Weights of the store's checkpoints, 0 for those that do not count.

        Raises:
            QueryError: if the store lacks one of them.
        """
        lacking = set(self.checkpoints) - set(store.numbers)
        if lacking:
            raise QueryError(f"{store.name} has no checkpoint {min(lacking)}.")
        chosen = set(self.checkpoints) or set(store.numbers)
        pairs = zip(store.numbers, store.etas, strict=True)
        return tuple(eta if number in chosen else 0.0 for number, eta in pairs)

    def keep(self, store: Store) -> NDArray[np.int64] | None:
        """Numbers of the samples to search; None for all.

        Raises:
            QueryError: if the store has no such column or sample, or no sample is left.
        """
        where: dict[str, list[Any]] = {}
        for one in self.where:
            # A column may have = in its name.
            fitting = [name for name in store.manifest.metadata if one.startswith(f"{name}=")]
            if not fitting:
                raise QueryError(f"{store.name} has no column for the filter {one[:80]!r}.")
            column = max(fitting, key=len)
            where.setdefault(column, []).append(one[len(column) + 1 :])
        return matching_samples(store, where=where or None, ids=self.ids or None)

    def filter_text(self) -> str:
        """What the range and the filter leave, in words; empty if they leave everything."""
        found = []
        if self.checkpoints:
            found.append(f"checkpoints {', '.join(map(str, self.checkpoints))}")
        if self.where:
            found.append(f"samples with {', '.join(self.where)}")
        if self.ids:
            found.append(f"{len(self.ids):,} samples named by id")
        return f"Only {'; '.join(found)}." if found else ""
