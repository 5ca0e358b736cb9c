"""The report: one self-contained HTML file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from markupsafe import Markup

from gradstore import __version__
from gradstore.collect.recorded import Recorded
from query.results.gallery import Embedded, cards, environment, replayed, resource
from query.results.wording import CHANCE, ERRORS, PROVENANCE, SIDES, about, display_name
from query.results.writing import written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.reader import Store
    from query.results.answer import Answer
    from query.results.pictures import Pictures

Line: TypeAlias = dict[str, str]
# Sides of thumbnails, in pixels, for up to so many images: a report stays below ten megabytes.
_SIDES: Final = ((800, 160), (1600, 128), (3000, 96))
_SMALLEST: Final = 64


@dataclass(frozen=True)
class Section:
    """Queries of one kind, searched under one or more measures.

    Attributes:
        title: heading.
        answers: one per measure, all for the same queries.
        images: samples of the query store, in its order; None to show none.
        note: text below the heading.
        near: images that differ by less than so many percent of the range of grey are shown once;
            0: only samples of equal digest are.
    """

    title: str
    answers: Sequence[Answer]
    images: Pictures | None
    note: str = ""
    near: float = 0


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
    store = sections[0].answers[0].store
    embedded = Embedded(_side(sections))
    names = dict.fromkeys(answer.measure for section in sections for answer in section.answers)
    script = resource("report.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            subtitle=_subtitle(store),
            measures=[{"name": display_name(name), "about": about(name)} for name in names],
            words={"sides": SIDES, "errors": ERRORS, "provenance": PROVENANCE, "chance": CHANCE},
            summary=summary(sections) if lines is None else lines,
            sections=[
                {
                    "title": section.title,
                    "note": section.note,
                    "queries": cards(
                        section.answers,
                        section.images,
                        train,
                        embedded,
                        f"q{number}-",
                        near=section.near,
                    ),
                }
                for number, section in enumerate(sections)
            ],
            replayed=replayed(store),
            version=__version__,
            fingerprint=store.spec.fingerprint[:16],
            style=Markup(resource("gallery.css")),  # noqa: S704, our own file
            script=Markup(script),  # noqa: S704, our own file
            script_hash=digest,
        )
    )
    with written(Path(path)) as writing:
        writing.write_text(page, encoding="utf-8")


def _subtitle(store: Store) -> str:
    """What the scores are made of."""
    recorded = Recorded.of(store)
    own = recorded.metric.name
    metric = "without a metric" if own == "none" else f"in the metric {own}"
    timesteps = f"{store.slots} timestep" + ("s" if store.slots > 1 else "")
    return (
        f"{store.samples:,} training images at {timesteps} and {store.checkpoints} checkpoints; "
        f"gradients of {recorded.model.num_parameters:,} parameters, {metric}, projected to "
        f"{store.dim:,} dimensions"
    )


def _side(sections: Sequence[Section]) -> int:
    """Side of thumbnails, so that all of them fit."""
    found = {
        int(row)
        for section in sections
        for answer in section.answers
        for ranking in answer.sides.values()
        for row in ranking.samples.ravel()
    }
    count = len(found) + sum(len(section.answers[0]) for section in sections)
    return next((side for most, side in _SIDES if count <= most), _SMALLEST)


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
        "measure": display_name(measure),
        "share": same,
        "chance": chance,
        "distinctness": f"{distinct:.2f}",
    }
