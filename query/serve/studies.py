"""Why a sample stands where it stands: the studies of the library, as the page shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import QueryError
from indexer import measure_of
from indexer.measure import is_of_rows
from query.queries import Queries
from query.results.answer import labels
from query.results.wording import display_name
from query.searching import prepared, search
from query.serve.answers import detail, finite, plain
from query.serve.library import Kept
from query.studies.hubness import hubness
from query.studies.tables import breakdown_table, self_influence_table
from query.studies.totals import totals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from query.serve.answers import Answers
    from query.serve.look import Look

# Stored queries that hubness counts and that a training sample is asked about.
_MOST_QUERIES: Final = 1000
_BLOCK: Final = 100
_SHOWN: Final = 12
_HUB_RANKS: Final = 10
_MOST_GROUPS: Final = 200
# Dots of a scatter plot.
_MOST_DOTS: Final = 2000


class Studies:
    """Studies of one answer or one training sample.

    Args:
        answers: answers questions from the library.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers, self._library = answers, answers.library
        self._tables = Kept[dict[str, Any]](64)

    def breakdown(self, look: Look, sample: str) -> dict[str, Any]:
        """One score by checkpoint and timestep: see `query.studies.tables.breakdown_table`.

        Returns:
            `cells`: for each checkpoint and pair of timesteps their part of the score; `name` of
            the measure.

        Raises:
            QueryError: if the measure transforms samples, or there is no such sample.
        """
        library = self._library
        self._library.row("sample", sample)
        if not is_of_rows(measure_of(look.named)):
            raise QueryError(
                f"{look.measure} transforms the mean of a sample's rows, so its scores are no sums "
                "over pairs of rows. Choose another measure."
            )
        store, name = self._answers.asker(look)
        engine = library.exact(look.named, look.etas(library.store))
        table = breakdown_table(engine, store, name, sample)
        cells = [finite(list(row.values())) for row in table.to_pylist()]
        return {"cells": cells, "name": display_name(look.named)}

    def totals(self, look: Look, by: str) -> dict[str, Any]:
        """Totals of groups for one query, with intervals: see `query.studies.totals`.

        Raises:
            QueryError: if there is no such column, or it has too many values to show.
        """
        store = self._library.store
        if by not in store.manifest.metadata:
            raise QueryError(f"{store.name} has no column {by!r}.")
        column = [None if one is None else str(one) for one in store.manifest.metadata[by]]
        if len(set(column)) > _MOST_GROUPS:
            raise QueryError(
                f"column {by!r} has {len(set(column)):,} values, more than {_MOST_GROUPS} groups. "
                f"Use the command: gradstore rollup --by {by}"
            )
        engine = self._library.exact(look.named, look.etas(store))
        measure = self._library.measure(look.named)
        found, margins = totals(
            engine, self._answers.queries(look), column, measure=measure, keep=look.keep(store)
        )
        order = np.argsort(-found.total[0], kind="stable").tolist()
        return {
            "groups": [
                {
                    "group": found.groups[place],
                    "samples": int(found.counts[place]),
                    "total": float(found.total[0, place]),
                    "margin": finite(float(margins[place])),
                    "top_mean": float(found.top_mean[0, place]),
                }
                for place in order
            ]
        }

    def sample(self, look: Look, sample: str) -> dict[str, Any]:
        """A training sample by itself: its rows, its self-influence, whom it serves.

        Raises:
            QueryError: if there is no such sample.
        """
        library = self._library
        store, row = library.store, library.row("sample", sample)
        here = np.array([row])
        rows = [
            {
                "checkpoint": number,
                "timesteps": store.column("timestep", place, here)[0].tolist(),
                "norms": store.column("norm", place, here)[0].tolist(),
                "losses": store.column("loss", place, here)[0].tolist(),
            }
            for place, number in enumerate(store.numbers)
        ]
        return {
            **detail(library, row),
            "rows": rows,
            "self": self._self_influence(look, row),
            "serves": self._serves(look, row),
        }

    def norms(self, look: Look) -> dict[str, Any]:
        """Norm against timestep of the samples found, before some of all: the timestep's bias.

        Returns:
            `found` and `all`: `[timestep, norm]` of rows; at most 2,000 of all, evenly spaced.
        """
        store = self._library.store
        answer = self._answers.answer(look)
        every = np.unique(np.linspace(0, store.samples - 1, _MOST_DOTS).astype(np.int64))
        return {
            "found": self._dots(np.unique(answer.proponents.samples)),
            "all": self._dots(every[: _MOST_DOTS // store.checkpoints]),
        }

    def _dots(self, rows: NDArray[np.int64]) -> list[list[float]]:
        store, dots = self._library.store, []
        for place in range(store.checkpoints):
            found = store.columns(("timestep", "norm"), place, rows)
            pairs = np.stack([found["timestep"].ravel(), found["norm"].ravel()], axis=1)
            dots += pairs.tolist()
        return dots

    def timesteps(self) -> dict[str, Any]:
        """How the rows of the training samples lie over timesteps.

        Returns:
            `last`: the highest timestep; `counts`: rows in each of 50 equal ranges from 0 to it.
        """

        def found() -> dict[str, Any]:
            store = self._library.store
            steps = [store.column("timestep", place).ravel() for place in range(store.checkpoints)]
            last = max(int(one.max()) for one in steps)
            counts = sum(np.bincount(50 * one // (last + 1), minlength=50) for one in steps)
            return {"last": last, "counts": np.asarray(counts).tolist()}

        return self._tables.of("timesteps", found)

    def _self_influence(self, look: Look, row: int) -> dict[str, Any] | None:
        """Influence of a sample on itself, and its rank among all."""
        library = self._library
        name, etas = look.named, look.etas(library.store)
        if not is_of_rows(measure_of(name)):
            return None

        def found() -> dict[str, Any]:
            table = self_influence_table(library.exact(name, etas))
            names = table["sample_id"].to_pylist()
            return {
                "places": {one: place for place, one in enumerate(names)},
                "values": table["self_influence"].to_pylist(),
                "z": table["robust_z"].to_pylist(),
            }

        kept = self._tables.of(("self", name, etas), found)
        place = kept["places"][library.store.manifest.ids[row]]
        return {
            "value": finite(kept["values"][place]),
            "robust_z": finite(kept["z"][place]),
            "rank": place + 1,
            "of": len(kept["values"]),
        }

    def _serves(self, look: Look, row: int) -> dict[str, Any] | None:
        """For how many stored queries a sample is a proponent, and for which it counts most."""
        library = self._library
        asked, name, etas = library.queries, look.named, look.etas(library.store)
        if asked is None:
            return None
        engine, measure = library.exact(name, etas), library.measure(name)
        ranks = min(_HUB_RANKS, library.store.samples)
        every = Queries.of(asked).part(0, _MOST_QUERIES)

        def counted() -> dict[str, Any]:
            quick = library.engine(name, etas)
            counts = np.zeros(library.store.samples, np.int64)
            for start in range(0, len(every), _BLOCK):
                some = every.part(start, start + _BLOCK)
                counts += hubness(search(quick, some, ranks, measure=measure)).counts
            return {"counts": counts}

        counts = self._tables.of(("hubs", name, etas), counted)["counts"]
        scores: list[float] = []
        for start in range(0, len(every), _BLOCK):
            vectors, _ = prepared(engine, every.part(start, start + _BLOCK), measure)
            for _, block in engine.scores(vectors, keep=np.array([row])):
                scores += block[:, 0].tolist()
        order = np.argsort(-np.array(scores), kind="stable").tolist()
        of = labels(asked)
        return {
            "queries": len(every),
            "ranks": ranks,
            "listed": int(counts[row]),
            "more_listed": int((counts > counts[row]).sum()),
            "most": [
                {
                    "id": asked.manifest.ids[place],
                    "label": plain(of[place]) if of else None,
                    "score": finite(scores[place]),
                }
                for place in order[:_SHOWN]
            ],
        }
