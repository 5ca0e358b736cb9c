"""Hubness: training samples that are influential for many queries.

The paper finds that under TracIn the same few samples lead the rankings of unrelated queries,
because their timesteps happened to give large gradient norms (arXiv 2401.09031, section 4.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import DependencyError, QueryError
from gradstore.store.format.columns import at
from gradstore.store.format.parquet import open_bounded, values_of
from gradstore.tabular import Tabular
from query.results.answer import labels
from query.statistics import rank_correlation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from query.results.answer import Answer


# Names of measures become names of files; this file may come from a stranger.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,99}")
_MOST_MEASURES: Final = 100
_COLUMNS = ["query_id", "measure", "side", "sample_id", "score"]


@dataclass(frozen=True, repr=False)
class Hubness(Tabular):
    """How often each training sample is a proponent of a query.

    Attributes:
        measure: name of the measure.
        store: the training store.
        queries: number of queries.
        k: number of proponents per query.
        counts: number of queries of which each sample is a proponent, int64 `[samples]`.
        influence: sum of a sample's scores as proponent, divided by the number of queries, float64
            `[samples]`: its mean influence, with unlisted scores as 0.
        distinctness: share of distinct proponents, |∪ top-k| / (queries · k).
        norm: mean norm of each sample's rows, float64 `[samples]`.
        timestep: mean timestep of each sample's rows, float64 `[samples]`.
    """

    measure: str
    store: Store
    queries: int
    k: int
    counts: NDArray[np.int64]
    influence: NDArray[np.float64]
    distinctness: float
    norm: NDArray[np.float64]
    timestep: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        return (
            f"Hubness({self.measure!r}, samples={len(self)}, queries={self.queries}, k={self.k}, "
            f"distinctness={self.distinctness:.2f})"
        )

    @property
    def with_norm(self) -> float:
        """Spearman correlation of counts with norms."""
        return float(rank_correlation(self.counts, self.norm)[0])

    @property
    def with_timestep(self) -> float:
        """Spearman correlation of counts with timesteps."""
        return float(rank_correlation(self.counts, self.timestep)[0])

    @property
    def influence_with_norm(self) -> float:
        """Spearman correlation of influence with norms."""
        return float(rank_correlation(self.influence, self.norm)[0])

    @property
    def influence_with_timestep(self) -> float:
        """Spearman correlation of influence with timesteps."""
        return float(rank_correlation(self.influence, self.timestep)[0])

    def to_table(self) -> pa.Table:
        """Samples that are a proponent of any query, most frequent first."""
        import pyarrow as pa

        order = np.argsort(-self.counts, kind="stable")
        order = order[self.counts[order] > 0]
        manifest = self.store.manifest
        own = labels(self.store)
        columns: dict[str, Any] = {
            "sample_id": at(manifest.ids, order),
            "label": at(own, order) if own else [None] * len(order),
            "queries": self.counts[order],
            "share": self.counts[order] / self.queries,
            "influence": self.influence[order],
            "norm": self.norm[order],
            "timestep": self.timestep[order],
        }
        return pa.table(columns)

    def plot(self, path: Path) -> None:
        """Plot counts, and influence against norms and timesteps, into an image file.

        Raises:
            DependencyError: if matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise DependencyError("a plot needs matplotlib: pip install matplotlib") from error

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        seen = np.sort(self.counts)[::-1]
        left.plot(np.arange(1, len(seen) + 1), seen)
        left.set(xscale="log", xlabel="samples, most frequent first", ylabel="queries")
        for axes, values, name, found in (
            (middle, self.norm, "norm", self.influence_with_norm),
            (right, self.timestep, "timestep", self.influence_with_timestep),
        ):
            axes.plot(values, self.influence, ".", markersize=3)
            axes.set(xlabel=f"mean {name}", ylabel="mean influence", title=f"Spearman {found:.2f}")
        figure.suptitle(f"{self.measure}: distinctness {self.distinctness:.2f}")
        figure.savefig(path, dpi=120)


def hubness(answer: Answer) -> Hubness:
    """Count how often training samples recur among the proponents of an answer's queries.

    Examples:
        >>> import gradstore as gs
        >>> answer = gs.search("train.gradstore", "asked.gradstore", 3, measure="tracin")
        >>> gs.hubness(answer)
        Hubness('tracin', samples=7, queries=3, k=3, distinctness=...)
    """
    rows = answer.proponents.samples
    count = answer.store.samples
    counts = np.bincount(rows.ravel(), minlength=count)
    sums = np.zeros(count)
    np.add.at(sums, rows.ravel(), answer.proponents.scores.ravel())
    return _hubness(answer.measure, answer.store, counts, sums, len(rows))


def hubness_of_results(store: Store, results: Path) -> list[Hubness]:
    """Compute `hubness` for each measure in the results of `gradstore query`, of any size.

    Args:
        store: the training store.
        results: path of `results.parquet`.

    Raises:
        QueryError: if the file is no such table, or has samples that the store does not have.
    """
    import pyarrow as pa

    place = {name: row for row, name in enumerate(store.manifest.ids)}
    counts: dict[str, NDArray[np.int64]] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    asked: dict[str, set[str]] = {}
    try:
        for query, measure, side, sample, score in _rows(results):
            if side == "proponent":
                if measure not in counts:
                    _require_measure(results, measure, len(counts))
                    counts[measure] = np.zeros(store.samples, np.int64)
                    sums[measure] = np.zeros(store.samples)
                counts[measure][place[sample]] += 1
                sums[measure][place[sample]] += score
                asked.setdefault(measure, set()).add(query)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise QueryError(
            f"{results} cannot be read as results: {error}. Give the results.parquet of gradstore "
            "query."
        ) from error
    except KeyError as error:
        raise QueryError(
            f"{results} contains sample {error}, which {store.location} does not have: it was "
            "deleted, or these are another store's results. Run gradstore query again."
        ) from error
    return [
        _hubness(name, store, own, sums[name], len(asked[name])) for name, own in counts.items()
    ]


def _rows(results: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of a table of results; equal texts are one Python string.

    Raises:
        ValueError: if it has not the columns of such a table, or takes too much memory.
        OSError, pyarrow.ArrowException: if it cannot be read.
    """
    import pyarrow as pa

    with results.open("rb") as opened:
        file = open_bounded(opened, shared=True)
        for batch in file.iter_batches(columns=_COLUMNS):
            table = pa.Table.from_batches([batch])
            if table.num_columns < len(_COLUMNS):
                lacking = sorted(set(_COLUMNS) - set(table.column_names))
                raise ValueError(f"it has no column {lacking[0]!r}")
            columns = [values_of(table[name]) for name in _COLUMNS]
            for name, values in zip(_COLUMNS, columns, strict=True):
                kind = float if name == "score" else str
                other = next((one for one in values if not isinstance(one, kind)), None)
                if other is not None or None in values:
                    raise ValueError(f"column {name!r} has a value {str(other)[:40]!r}")
            yield from zip(*columns, strict=True)


def _require_measure(results: Path, measure: str, known: int) -> None:
    if not _NAME.fullmatch(measure) or known >= _MOST_MEASURES:
        raise QueryError(
            f"{results} has a measure {measure[:100]!r}, which is not a measure's name, or is one "
            f"of more than {_MOST_MEASURES}. Give the results.parquet of gradstore query."
        )


def _hubness(
    measure: str,
    store: Store,
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    queries: int,
) -> Hubness:
    places = range(store.checkpoints)
    return Hubness(
        measure=measure,
        store=store,
        queries=queries,
        k=int(counts.sum()) // queries,
        counts=counts,
        influence=sums / queries,
        distinctness=int((counts > 0).sum()) / int(counts.sum()),
        norm=np.mean([store.column("norm", k).mean(axis=1, dtype=np.float64) for k in places], 0),
        timestep=np.mean([store.column("timestep", k).mean(axis=1) for k in places], 0),
    )
