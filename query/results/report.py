"""The report: one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gradstore import __version__
from gradstore.collect.recorded import Recorded
from gradstore.text import one_line
from query.results.answer import labels, timesteps
from query.results.pictures import data_uri, image_of
from query.results.writing import written

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from query.results.answer import Answer
    from query.results.pictures import Pictures

Line: TypeAlias = dict[str, str]
NAMES = {"tracin": "TracIn", "retrac": "ReTrac"}
_THUMBNAIL = 128


@dataclass(frozen=True)
class Section:
    """Queries of one kind, searched under one or more measures.

    Attributes:
        title: heading.
        answers: one per measure, all for the same queries.
        images: samples of the query store, in its order; None to show none.
        note: text below the heading.
    """

    title: str
    answers: Sequence[Answer]
    images: Pictures | None
    note: str = ""


def write_report(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    train: Pictures | None,
    *,
    lines: Sequence[Line] | None = None,
) -> None:
    """Write the report of answers.

    Args:
        path: the file to write.
        title: title of the page.
        sections: content of the page.
        train: training samples, in store order; None to show none.
        lines: the summary, if it covers more than `sections`.

    Raises:
        DatasetError: if a displayed sample changed since its store was made.
        QueryError: if the page cannot be written.

    Examples:
        >>> import gradstore as gs
        >>> from pathlib import Path
        >>> answer = gs.search("train.gradstore", "asked.gradstore", 3, measure="retrac")
        >>> asked, train = gs.Samples("asked_images"), gs.Samples("my_images")
        >>> gs.write_report("report.html", "My run", [gs.Section("Asked", [answer], asked)], train)
        >>> "<title>My run</title>" in Path("report.html").read_text("utf-8")
        True
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown)
    template = environment.from_string(
        files("query.results").joinpath("report.html.j2").read_text("utf-8")
    )
    store = sections[0].answers[0].store
    images: dict[str, str] = {}
    page = template.render(
        title=title,
        subtitle=f"{store.samples:,} training images, {store.checkpoints} checkpoints, "
        f"{Recorded.of(store).model.num_parameters:,} parameters projected to "
        f"{store.dim:,} dimensions",
        summary=summary(sections) if lines is None else lines,
        sections=[
            {
                "title": section.title,
                "note": section.note,
                "queries": _queries(section, number, train, images),
            }
            for number, section in enumerate(sections)
        ],
        images=images,
        replayed=_replayed(store),
        version=__version__,
        fingerprint=store.spec.fingerprint[:16],
    )
    with written(Path(path)) as writing:
        writing.write_text(page, encoding="utf-8")


def _shown(value: Any) -> Any:
    """A value as the page shows it: a page is text, which may be printed to a terminal."""
    return one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def summary(sections: Sequence[Section]) -> list[Line]:
    """One line per section and measure: label share, chance and distinctness."""
    return [
        line(
            section.title,
            answer.measure,
            answer.label_share() if answer.labels_comparable else None,
            answer.distinctness(),
        )
        for section in sections
        for answer in section.answers
    ]


def line(section: str, measure: str, share: tuple[float, float] | None, distinct: float) -> Line:
    """Format a line of the summary as text.

    Args:
        section: title of the section.
        measure: name of the measure.
        share: share of proponents with the query's label, and the share expected by chance; None if
            there are no labels to compare.
        distinct: share of distinct proponents.
    """
    same, chance = ("–", "–") if share is None else (f"{value:.2f}" for value in share)
    return {
        "section": section,
        "measure": NAMES.get(measure, measure),
        "share": same,
        "chance": chance,
        "distinctness": f"{distinct:.2f}",
    }


def _queries(
    section: Section, number: int, train: Pictures | None, images: dict[str, str]
) -> list[dict[str, Any]]:
    first = section.answers[0]
    query_labels, train_labels = first.queries.labels, labels(first.store)
    steps = timesteps(section.answers)
    comparable = first.labels_comparable
    replayed = _replayed(first.store)

    def found(answer: Answer, side: str, query: int) -> list[dict[str, Any]]:
        ranking = answer.sides[side]
        shown = []
        for row, score in zip(
            ranking.samples[query].tolist(), ranking.scores[query].tolist(), strict=True
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

    def asked(query: int) -> str:
        row = first.queries.sample(query)  # a sum has no picture
        if row is None:
            return ""
        return _image(section.images, first.queries.store, row, f"q{number}-{row}", images)

    return [
        {
            "id": name,
            "label": query_labels[query] if query_labels else None,
            "image": asked(query),
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
        for query, name in enumerate(first.queries.ids)
    ]


def _replayed(store: Store) -> bool:
    return Recorded.of(store).events.kind == "replayed"


def _heading(side: str, scores: NDArray[np.float32]) -> str:
    """Title of a list: `opponents` only if some of them pushed against the query."""
    if side == "opponent" and scores[0] >= 0:
        return "least influential (no opponents)"
    return f"{side}s"


def _image(
    samples: Pictures | None, store: Store, row: int, name: str, images: dict[str, str]
) -> str:
    """CSS class that shows a sample; the page embeds each image once."""
    if samples is None:
        return ""
    if name not in images:
        image = image_of(samples, store, row)
        if image is None:
            return ""
        images[name] = data_uri(image, _THUMBNAIL)
    return name
