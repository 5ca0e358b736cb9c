"""Influence of groups of training samples: exact totals in one pass over the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import QueryError
from gradstore.tabular import Tabular

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from indexer.exact.engine import ExactEngine


@dataclass(frozen=True, repr=False)
class Rollup(Tabular):
    """Influence by group; arrays are `[queries, groups]` unless stated otherwise.

    Attributes:
        groups: the groups, sorted.
        counts: number of samples per group, int64 `[groups]`.
        total: sum of the scores of all samples, float64.
        highest: highest score, float32.
        top_mean: mean of the `top` highest scores, or of all if there are fewer, float64.
        top: maximum number of scores in `top_mean`.
    """

    groups: list[Any]
    counts: NDArray[np.int64]
    total: NDArray[np.float64]
    highest: NDArray[np.float32]
    top_mean: NDArray[np.float64]
    top: int

    def __len__(self) -> int:
        return len(self.groups)

    def __repr__(self) -> str:
        return f"Rollup(groups={len(self)}, queries={len(self.total)}, top={self.top})"

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean score of all samples per group."""
        return self.total / self.counts

    def to_table(self, query_ids: Sequence[str] | None = None) -> pa.Table:
        """One row per query and group, by descending total.

        Args:
            query_ids: ids of the queries; by default their numbers.
        """
        import pyarrow as pa

        if query_ids is None:
            query_ids = [str(number) for number in range(len(self.total))]
        order = np.argsort(-self.total, axis=1, kind="stable")
        columns: dict[str, Any] = {
            "query_id": np.repeat(np.asarray(query_ids, object), len(self.groups)).tolist(),
            "group": [self.groups[place] for place in order.ravel()],
            "samples": self.counts[order].ravel(),
        }
        for name in ("total", "mean", "highest", "top_mean"):
            columns[name] = np.take_along_axis(getattr(self, name), order, 1).ravel()
        return pa.table(columns)


def rollup(
    engine: ExactEngine,
    queries: NDArray[np.float32],
    groups: Sequence[Any],
    top: int = 10,
    *,
    keep: NDArray[np.int64] | None = None,
) -> Rollup:
    """Compute each group's sum, mean, maximum, and mean of the highest scores.

    Args:
        engine: exact engine of the training store.
        queries: features of the queries, float32 `[queries, dim]`.
        groups: group of each sample of the store, such as a column of its manifest. None means no
            group.
        top: number of highest scores per group that are averaged.
        keep: ascending numbers of the samples to include; by default all.

    Raises:
        QueryError: if `groups` is not one group per sample, or all are None.

    Examples:
        >>> import gradstore as gs
        >>> engine = gs.ExactEngine("train.gradstore", "retrac")
        >>> queries = engine.features.range(gs.open_store("asked.gradstore"))
        >>> found = gs.rollup(engine, queries, engine.store.manifest.metadata["label"])
        >>> found.groups, found.counts.tolist(), found.total.shape
        (['cat', 'dog'], [4, 3], (3, 2))
    """
    if len(groups) != engine.store.samples:
        raise QueryError(
            f"{len(groups)} groups were given for the {engine.store.samples} samples of "
            f"{engine.store.location}. Give one per sample, or None."
        )
    names = sorted({group for group in groups if group is not None}, key=str)
    if not names:
        raise QueryError(f"no sample of {engine.store.location} has a group.")
    codes = {name: code for code, name in enumerate(names)}
    code_of = np.array([-1 if group is None else codes[group] for group in groups])
    shape = (len(queries), len(names))
    counts, total = np.zeros(len(names), np.int64), np.zeros(shape)
    highest = np.full((*shape, top), -np.inf, np.float32)
    for samples, scores in engine.scores(queries, keep=keep):
        own = code_of[samples]
        for code in np.unique(own[own >= 0]).tolist():
            mine = scores[:, own == code]
            counts[code] += mine.shape[1]
            total[:, code] += mine.sum(axis=1, dtype=np.float64)
            both = np.concatenate([highest[:, code], mine], axis=1)
            highest[:, code] = -np.sort(-both, axis=1)[:, :top]
    some = counts > 0
    known = np.isfinite(highest)
    sums = np.where(known, highest, 0).sum(axis=2, dtype=np.float64)
    return Rollup(
        groups=[name for name, there in zip(names, some, strict=True) if there],
        counts=counts[some],
        total=total[:, some],
        highest=highest[:, some, 0],
        top_mean=sums[:, some] / known.sum(axis=2)[:, some],
        top=top,
    )
