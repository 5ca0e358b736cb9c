"""Answers as cards: what the report and notebooks show of each query and each sample found."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from gradstore.collect.recorded import Recorded
from gradstore.store.format.columns import counted
from gradstore.text import one_line
from query.results.alike import firsts, mark
from query.results.answer import labels, timesteps
from query.results.pictures import data_uri, image_of
from query.results.ranks import rank_intervals
from query.results.wording import Scale, display_name, heading, sure_ranks, sure_text

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from jinja2 import Environment
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from query.results.answer import Answer
    from query.results.pictures import Pictures

# Images of fewer pixels are drawn enlarged, pixel by pixel.
_FEW_PIXELS = 64


class Embedded:
    """Images as `data:` URIs, each sample's once.

    Args:
        side: most pixels of a side.
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self._pixels: dict[str, bool] = {}
        self._marks: dict[int, NDArray[np.float32]] = {}

    def image(
        self, samples: Pictures | None, store: Store, row: int | None, name: str
    ) -> dict[str, Any]:
        """What a template shows: the image, a reference to it, or why there is none.

        Raises:
            DatasetError: if the sample changed since its store was made.
        """
        if row is None:
            return _missing("a sum of queries")
        if samples is None:
            return _missing("no image")
        if name in self._pixels:
            return {"name": name, "src": "", "pixels": self._pixels[name], "why": ""}
        image = image_of(samples, store, row)
        if image is None:
            return _missing("no image")
        self._pixels[name] = max(image.size) <= _FEW_PIXELS
        src = data_uri(image, self._side)
        return {"name": name, "src": src, "pixels": self._pixels[name], "why": ""}

    def marks(self, train: Pictures, store: Store, rows: Sequence[int]) -> NDArray[np.float32]:
        """See `query.results.alike.mark`, of training samples."""
        for row in rows:
            if row not in self._marks:
                self._marks[row] = mark(image_of(train, store, row))
        return np.stack([self._marks[row] for row in rows])


def _missing(why: str) -> dict[str, Any]:
    return {"name": "", "src": "", "pixels": False, "why": why}


def replayed(store: Store) -> bool:
    """Whether rows have the timesteps of the training run, which differ between samples."""
    return Recorded.of(store).events.kind == "replayed"


def cards(
    answers: Sequence[Answer],
    asked: Pictures | None,
    train: Pictures | None,
    embedded: Embedded,
    prefix: str = "q",
    *,
    near: float = 0,
) -> list[dict[str, Any]]:
    """The queries of some answers, all for the same queries, with what was found for each.

    Args:
        answers: one per measure.
        asked: samples of the query store; None to show none.
        train: training samples; None to show none.
        embedded: the images so far.
        prefix: begins the names of the queries' images and anchors.
        near: see `query.results.alike.firsts`.
    """
    first = answers[0]
    query_labels = first.queries.labels
    steps = timesteps(answers) if replayed(first.store) else {}
    equal = counted(first.store.manifest.digests)
    found = []
    for query, name in enumerate(first.queries.ids):
        row = first.queries.sample(query)
        label = query_labels[query] if query_labels else None
        found.append(
            {
                "id": name,
                "alt": _alt("query", name, label),
                "anchor": f"{prefix}{query}",
                "label": label,
                "image": embedded.image(asked, first.queries.store, row, f"{prefix}-image-{row}"),
                "measures": [
                    _measure(answer, query, train, embedded, steps, equal=equal, near=near)
                    for answer in answers
                ],
            }
        )
    return found


def _measure(
    answer: Answer,
    query: int,
    train: Pictures | None,
    embedded: Embedded,
    steps: dict[int, list[int]],
    *,
    equal: Counter[str],
    near: float,
) -> dict[str, Any]:
    """One query's answer under one measure, all its numbers in one scale."""
    here, explained = slice(query, query + 1), answer.explained
    margins = explained.margin[query]
    scores = np.concatenate([side.scores[query] for side in answer.sides.values()])
    scale = Scale.of(scores.tolist())
    low = min(0.0, float((scores - margins).min()))
    high = max(0.0, float((scores + margins).max()))

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low or 1):.1f}"

    count, sides = answer.proponents.samples.shape[1], []
    train_labels, comparable = labels(answer.store), answer.labels_comparable
    own = answer.queries.labels[query] if answer.queries.labels else None
    for place, (side, ranking) in enumerate(answer.sides.items()):
        places = place * count + np.arange(count)
        part = explained.only(here, places)
        sign = 1 if side == "proponent" else -1
        first, last = rank_intervals(sign * ranking.scores[here], part)
        errors = (part.projection_error, part.query_error, part.training_error)
        known = not all(np.isnan(one).all() for one in errors)
        rows = ranking.samples[query].tolist()
        digests = [answer.store.manifest.digests[row] for row in rows]
        marks = embedded.marks(train, answer.store, rows) if near and train is not None else None
        of = firsts(digests, marks, near)
        found = []
        for rank, row in enumerate(rows):
            if of[rank] != rank:
                continue
            copies = [
                {"id": answer.store.manifest.ids[rows[place]], "rank": place + 1}
                for place in range(rank + 1, count)
                if of[place] == rank
            ]
            equals = equal[digests[rank]]
            score, margin = float(ranking.scores[query, rank]), float(part.margin[0, rank])
            label, z = train_labels[row] if train_labels else None, float(part.z[0, rank])
            name = answer.store.manifest.ids[row]
            found.append(
                {
                    "id": name,
                    "alt": _alt("training sample", name, label),
                    "rank": rank + 1,
                    "score": scale.shown(score),
                    "margin": scale.shown(margin) if margin > 0 else "",
                    "z": f"{z:.3g}" if np.isfinite(z) else "",
                    "zero": at(0.0),
                    "low": at(score - margin),
                    "high": at(score + margin),
                    "at": at(score),
                    "label": label,
                    "same": bool(comparable and own is not None and own == label),
                    "timesteps": " ".join(map(str, steps.get(row, []))),
                    "copies": copies,
                    "equal": equals if equals > 1 + len(copies) else 0,
                    "image": embedded.image(train, answer.store, row, f"t{row}"),
                }
            )
        sure = sure_ranks(first[0].tolist(), last[0].tolist()) if known else None
        sides.append(
            {
                "name": heading(side, float(ranking.scores[query, 0])),
                "sure": sure_text(sure, count),
                "found": found,
            }
        )
    return {"name": display_name(answer.measure), "unit": scale.text, "sides": sides}


def _alt(what: str, name: str, label: object) -> str:
    return f"{what} {name}" if label is None else f"{what} {name}, label {label}"


@cache
def environment() -> Environment:
    """Templates of this folder: everything is escaped and on one line, but for markup."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        loader=FunctionLoader(resource),
    )


def resource(name: str) -> str:
    """The text of a file in this folder."""
    return files("query.results").joinpath(name).read_text("utf-8")


def _shown(value: Any) -> Any:
    """A value as the page shows it: a page is text, which may be printed to a terminal."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value
