"""The page a person can look at: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gradstore import __version__
from gradstore.errors import DatasetError
from query.engine import labels, timesteps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.reader import Store
    from query.engine import Answer
    from query.pictures import Pictures

NAMES = {"tracin": "TracIn", "retrac": "ReTrac"}
_THUMBNAIL = 128


@dataclass(frozen=True)
class Section:
    """Queries of one kind, asked under one or more measures.

    Attributes:
        title: heading.
        answers: one per measure, all of the same queries.
        images: the queries, in the order of their store; None to show none.
    """

    title: str
    answers: Sequence[Answer]
    images: Pictures | None


def write_report(
    path: Path, title: str, sections: Sequence[Section], train: Pictures | None
) -> None:
    """Write the report of some answers.

    Args:
        path: the file to write.
        title: title of the page.
        sections: what to show.
        train: the training samples, in the order of their store; None to show none.

    Raises:
        DatasetError: if a sample to be shown is not what it was when its store was made.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("query").joinpath("report.html.j2").read_text("utf-8"))
    store = sections[0].answers[0].store
    images: dict[str, str] = {}
    page = template.render(
        title=title,
        subtitle=f"{store.samples:,} training images, {store.checkpoints} checkpoints, "
        f"{store.spec.identity['model']['num_parameters']:,} parameters projected to "  # type: ignore[index,call-overload]
        f"{store.dim:,} dimensions",
        summary=summary(sections),
        sections=[
            {"title": section.title, "queries": _queries(section, number, train, images)}
            for number, section in enumerate(sections)
        ],
        images=images,
        replayed=_replayed(store),
        version=__version__,
        fingerprint=store.spec.fingerprint[:16],
    )
    path.write_text(page, encoding="utf-8")


def summary(sections: Sequence[Section]) -> list[dict[str, str]]:
    """One row per section and measure: label share, chance and distinctness, as text."""
    rows = []
    for section in sections:
        for answer in section.answers:
            share, chance = "–", "–"
            if answer.labels_comparable:
                share, chance = (f"{value:.2f}" for value in answer.label_share())
            rows.append(
                {
                    "section": section.title,
                    "measure": NAMES.get(answer.measure, answer.measure),
                    "share": share,
                    "chance": chance,
                    "distinctness": f"{answer.distinctness():.2f}",
                }
            )
    return rows


def _queries(
    section: Section, number: int, train: Pictures | None, images: dict[str, str]
) -> list[dict[str, Any]]:
    first = section.answers[0]
    query_labels, train_labels = labels(first.queries), labels(first.store)
    steps = timesteps(section.answers)
    comparable = first.labels_comparable
    replayed = _replayed(first.store)

    def found(answer: Answer, side: str, query: int) -> list[dict[str, Any]]:
        ranking = answer.sides[side]
        shown = []
        for row, score in zip(
            ranking.rows[query].tolist(), ranking.scores[query].tolist(), strict=True
        ):
            kind = ""
            if comparable and query_labels and train_labels:
                kind = "same" if query_labels[query] == train_labels[row] else "other"
            shown.append(
                {
                    "id": answer.store.manifest.ids[row],
                    "image": _image(train, answer.store, row, f"t{row}", images),
                    "label": train_labels[row] if train_labels else None,
                    "score": f"{score:.3g}",
                    "timesteps": " ".join(map(str, steps[row])) if replayed else "",
                    "kind": kind,
                }
            )
        return shown

    return [
        {
            "id": name,
            "label": query_labels[query] if query_labels else None,
            "image": _image(section.images, first.queries, query, f"q{number}-{query}", images),
            "measures": [
                {
                    "name": NAMES.get(answer.measure, answer.measure),
                    "sides": [
                        {
                            "name": _heading(side, ranking.scores[query]),
                            "found": found(answer, side, query),
                        }
                        for side, ranking in answer.sides.items()
                    ],
                }
                for answer in section.answers
            ],
        }
        for query, name in enumerate(first.queries.manifest.ids)
    ]


def _replayed(store: Store) -> bool:
    events: dict[str, Any] = store.spec.identity["events"]  # type: ignore[assignment]
    return bool(events["kind"] == "replayed")


def _heading(side: str, scores: NDArray[np.float32]) -> str:
    """What a list is called: opponents only where some of them did push against the query."""
    if side == "opponent" and scores[0] >= 0:
        return "least influential (no opponents)"
    return f"{side}s"


def _image(
    samples: Pictures | None, store: Store, row: int, name: str, images: dict[str, str]
) -> str:
    """The CSS class that shows a sample; each image stands once in the page."""
    if samples is None:
        return ""
    if name not in images:
        if samples[row].digest() != store.manifest.digests[row]:
            raise DatasetError(
                f"sample {store.manifest.ids[row]!r} is not what it was when {store.location} was "
                "made. Restore the dataset, or collect it into a new store."
            )
        image = samples.image(row)
        if image is None:
            return ""
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        images[name] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return name
