"""Statistics of all answers, accumulated from their tables in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gradstore.store.format.columns import counted
from query.results.answer import labels

if TYPE_CHECKING:
    import pyarrow as pa

    from gradstore.store.reader import Store
    from query.queries import Queries
    from query.results.report import Line


class Tally:
    """Label share, chance and distinctness of proponents, by measure.

    The values equal those of `Answer.label_share` and `Answer.distinctness`.

    Args:
        store: the training store.
        queries: all queries.
    """

    def __init__(self, store: Store, queries: Queries) -> None:
        own = counted(labels(store) or [])
        asked = queries.labels or []
        self._comparable = bool(own.keys() & set(asked))
        self._chance = sum(own[label] for label in asked) / store.samples / max(1, len(asked))
        self._found: dict[str, set[str]] = {}
        self._total: Counter[str] = Counter()
        self._same: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table of answers."""
        import pyarrow.compute as pc

        table = table.filter(pc.field("side") == "proponent")
        for measure in pc.unique(table["measure"]).to_pylist():
            own = table.filter(pc.field("measure") == measure)
            self._total[measure] += len(own)
            self._found.setdefault(measure, set()).update(pc.unique(own["sample_id"]).to_pylist())
            if self._comparable:
                same = pc.equal(own["query_label"], own["label"])
                self._same[measure] += pc.sum(same).as_py() or 0

    def lines(self, section: str) -> list[Line]:
        """One line per measure, as shown in the report."""
        from query.results.report import line

        return [
            line(
                section,
                measure,
                (self._same[measure] / total, self._chance) if self._comparable else None,
                len(self._found[measure]) / total,
            )
            for measure, total in self._total.items()
        ]
