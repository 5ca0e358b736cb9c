"""Questions → answers, as the page shows them."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import QueryError
from indexer import ExactEngine, measure_of
from query.queries import Queries
from query.results.alike import firsts
from query.results.table import figures_of
from query.results.wording import (
    Scale,
    about,
    display_name,
    heading,
    sure_ranks,
    sure_text,
)
from query.searching import search
from query.serve.about import how_found
from query.serve.library import Kept
from query.serve.look import FIRST_MEASURES, Look
from query.serve.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from query.results.answer import Answer
    from query.serve.library import Library
    from query.serve.look import Asker

# Without an index a question reads the whole store: so many entries take a second or two.
_PREPARED_ENTRIES: Final = 10**9
# Bytes of answers that are kept: a thousand of usual length.
_MOST_BYTES: Final = 32 * 2**20
# Stored queries are answered ahead so many at a time: whoever asks meanwhile waits for these alone.
_AHEAD: Final = 8


@dataclass(frozen=True)
class _Key:
    """What questions share that one search can answer."""

    store: Store
    measure: str
    etas: tuple[float, ...]
    k: int
    keep: bytes | None


class Answers:
    """Answers from a library.

    Args:
        library: the stores.
        asked: the store of an image that was given to this server, by its name.
    """

    def __init__(self, library: Library, asked: Callable[[str], Store]) -> None:
        self.library, self._asked = library, asked
        self._together = Together(self._load, self._answered)
        self._kept = Kept[bytes](_MOST_BYTES, len)

    def close(self) -> None:
        """Finish what is answered now."""
        self._together.close()

    def prepare(self) -> None:
        """Load what the first questions need, by asking one, where that reads little."""
        queries = self.library.queries
        kind, asked = ("sample", self.library.store) if queries is None else ("query", queries)
        self._ask_all(kind, asked.manifest.ids[:1])

    def ahead(self) -> None:
        """Answer the stored queries as the page first asks them, while nobody asks.

        They fill at most half of what is kept; the other half is for what is asked.
        """
        ids = [] if self.library.queries is None else self.library.queries.manifest.ids
        for start in range(0, len(ids), _AHEAD):
            if self._kept.total > _MOST_BYTES / 2 or not self._together.rest():
                return
            self._ask_all("query", ids[start : start + _AHEAD])

    def _ask_all(self, kind: str, names: Sequence[str]) -> None:
        """Ask under the first measures, where that reads little, and wait for the answers."""
        store = self.library.store
        rows = store.checkpoints * store.samples * store.slots
        few = rows * store.dim <= _PREPARED_ENTRIES and not store.objects.remote
        for measure in FIRST_MEASURES:
            if not few and isinstance(self.library.engine(measure, tuple(store.etas)), ExactEngine):
                continue
            looks = [Look.model_validate({kind: name, "measure": measure}) for name in names]
            wait([one for one in map(self.ask, looks) if isinstance(one, Future)])

    def asker(self, look: Asker) -> tuple[Store, str]:
        """The store that holds the query, and its id there.

        Raises:
            QueryError: if there is none.
        """
        library = self.library
        if look.asked is not None:
            store = self._asked(look.asked)
            return store, store.manifest.ids[0]
        if look.query is None:
            name = look.sample or ""
            library.row("sample", name)
            return library.store, name
        library.row("query", look.query)
        if library.queries is None:
            raise QueryError("this server has no stored queries.")
        return library.queries, look.query

    def queries(self, look: Asker) -> Queries:
        """The query as `Queries`."""
        store, name = self.asker(look)
        return single(store, [name])

    def key(self, look: Look) -> tuple[_Key, str]:
        """What is to be searched, and for which query."""
        store, name = self.asker(look)
        keep = look.keep(self.library.store)
        left = self.library.store.samples if keep is None else len(keep)
        etas = look.etas(self.library.store)
        if not any(etas):
            raise QueryError("no checkpoint of weight above 0 is left. Choose another.")
        own = None if keep is None else keep.tobytes()
        return _Key(store, measure_of(look.named).name, etas, min(look.k, left), own), name

    def ask(self, look: Look) -> bytes | Future[bytes]:
        """The answer as the page shows it, as JSON; at once if it is kept.

        Raises:
            QueryError: if there is no such query, measure, filter or checkpoint.
            BusyError: if too many questions wait.
        """
        key, name = self.key(look)
        return self._kept.get((key, name)) or self._together.ask(key, name)

    def collapsed(self, found: bytes, near: float) -> bytes:
        """An answer of `ask`, in which images that hardly differ are copies, too."""
        whole = json.loads(found)
        for side in whole["sides"]:
            marks = self.library.marks([one["place"] for one in side["found"]])
            _tell_copies(side["found"], marks, near)
        return _written(whole)

    def answer(self, look: Look) -> Answer:
        """The answer itself, for a report or a table."""
        key, name = self.key(look)
        return self._search(key, [name])

    def _load(self, key: _Key) -> None:
        self.library.engine(key.measure, key.etas)
        self.library.measure(key.measure)

    def _search(self, key: _Key, names: Sequence[str]) -> Answer:
        library = self.library
        return search(
            library.engine(key.measure, key.etas),
            single(key.store, names),
            key.k,
            measure=library.measure(key.measure),
            keep=None if key.keep is None else np.frombuffer(key.keep, np.int64),
        )

    def _answered(self, key: _Key, names: Sequence[str]) -> list[bytes]:
        found = self._search(key, names)
        engine = self.library.engine(key.measure, key.etas)
        out = []
        for name, one in zip(names, shown_answers(found, self.library), strict=True):
            one["how"] = how_found(engine)
            one["searched"] = self.library.store.samples if key.keep is None else len(key.keep) // 8
            out.append(_written(one))
            self._kept.put((key, name), out[-1])
        return out


def single(store: Store, names: Sequence[str]) -> Queries:
    """Samples of a store as queries, one each."""
    return Queries.combined(store, {name: {name: 1.0} for name in names})


def shown_answers(answer: Answer, library: Library) -> list[dict[str, Any]]:
    """An answer as the page takes it, one object per query.

    All figures are those of `to_table`; non-finite ones are None.
    """
    k = answer.proponents.samples.shape[1]
    known = {name: finite_list(values) for name, values in figures_of(answer).items()}
    known["parts"] = finite_list(answer.explained.parts.reshape(len(answer), 2, k, -1))
    details = {row: detail(library, row) for row in _found(answer)}
    out: list[dict[str, Any]] = []
    for query, name in enumerate(answer.queries.ids):
        sides: list[dict[str, Any]] = []
        for place, (side, ranking) in enumerate(answer.sides.items()):
            own = {figure: known[figure][query][place] for figure in _FIGURES}
            own["rank"], own["score"] = range(1, k + 1), finite_list(ranking.scores[query])
            rows = [
                details[sample] | dict(zip(own, row, strict=True))
                for sample, *row in zip(ranking.samples[query].tolist(), *own.values(), strict=True)
            ]
            _tell_copies(rows, None, 0)
            sure = None
            if any(one is not None for error in _ERRORS for one in own[error]):
                sure = sure_ranks(own["rank_low"], own["rank_high"])
            sides.append(
                {
                    "side": side,
                    "heading": heading(side, ranking.scores[query, 0]),
                    "sure": sure,
                    "sure_text": sure_text(sure, k),
                    "found": rows,
                }
            )
        scale = Scale.of(one["score"] for side in sides for one in side["found"])
        label = answer.queries.labels[query] if answer.queries.labels else None
        out.append(
            {
                "query": {"id": name, "label": label},
                "measure": answer.measure,
                "name": display_name(answer.measure),
                "about": about(answer.measure),
                "scale": {
                    "power": scale.power,
                    "decimals": scale.decimals,
                    "text": scale.text,
                },
                "sides": sides,
            }
        )
    return out


def _tell_copies(
    found: list[dict[str, Any]], marks: NDArray[np.float32] | None, near: float
) -> None:
    """Say of each sample of a list of which rank it is a copy: `copy_of`, None if of none."""
    of = firsts([one["digest"] for one in found], marks, near)
    for place, (one, first) in enumerate(zip(found, of, strict=True)):
        one["copy_of"] = None if first == place else found[first]["rank"]


def _written(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


_ERRORS: Final = ("projection_error", "query_error", "training_error")
_FIGURES: Final = (
    "margin", "z", "rank_low", "rank_high", "agreement", "projection_error", "query_error",
    "training_error", "parts",
)  # fmt: skip


def _found(answer: Answer) -> list[int]:
    found: list[int] = np.unique([side.samples for side in answer.sides.values()]).tolist()
    return found


def detail(library: Library, row: int) -> dict[str, Any]:
    """What is known of a training sample without any search."""
    manifest = library.store.manifest
    digest = manifest.digests[row]
    return {
        "id": manifest.ids[row],
        "place": row,
        "columns": {name: plain(column[row]) for name, column in manifest.metadata.items()},
        "digest": digest,
        "copies": library.copies[digest],
    }


def finite_list(values: NDArray[Any]) -> list[Any]:
    """Nested lists of the entries of an array, None for those that are not finite."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return list(found.tolist())


def finite(value: Any) -> Any:
    """A figure, or None if it is not finite."""
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """A value of a manifest as JSON: a number, a truth value, or text."""
    if value is None or isinstance(value, bool | int | float):
        return finite(value)
    return str(value)
