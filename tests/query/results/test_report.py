from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect
from indexer import build_index
from query import Answer, Section, collect_queries, search, write_report
from query.results.wording import CHANCE, ERRORS, PROVENANCE, Scale, about
from tests.support.collected import PAPER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.worlds import World


@pytest.fixture
def answers(world: World, tmp_path: Path) -> list[Answer]:
    spec = ProjectorSpec(proj_dim=32)
    store = collect(
        world.train, world.checkpoints, tmp_path / "t.gradstore", projector=spec, **PAPER
    )
    queries = collect_queries(
        store,
        world.queries,
        tmp_path / "q.gradstore",
        events=EventSpec(events="planned", timesteps=2),
    )
    return [search(build_index(store, name), queries, 3) for name in ("tracin", "retrac")]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_answer(world: World, answers: list[Answer], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "Title", [Section("Asked", answers, world.queries)], world.train)
    page = _Page(path.read_text())
    for part in ("TracIn", "ReTrac", "1 timestep ", "without a metric"):
        assert part in page.text
    shown = [
        attributes["data-text"].split()[0]
        for tag, attributes in page.tags
        if tag == "li" and "data-text" in attributes
    ]
    expected = [
        answer.store.manifest.ids[row]
        for query in range(3)
        for answer in answers
        for ranking in answer.sides.values()
        for row in ranking.samples[query]
    ]
    assert shown == expected
    scores = [side.scores[0] for side in answers[0].sides.values()]
    scale = Scale.of([float(one) for one in np.concatenate(scores)])
    assert scale.shown(float(scores[0][0])) in page.text
    margin = float(answers[0].explained.margin[0, 0])
    assert f"± {scale.shown(margin)}" in page.text
    steps = " ".join(
        str(answers[0].store.rows(k).timestep[answers[0].proponents.samples[0, 0], 0])
        for k in range(2)
    )
    assert f"t {steps}" in page.text
    # One self-contained file: no external resources, and each image appears once.
    images = [attributes for tag, attributes in page.tags if tag == "img" and attributes["alt"]]
    assert len(images) == len(expected) + 3
    assert path.read_text().count("data:image/webp") == len(set(expected)) + 3
    assert not [a for tag, a in page.tags if tag == "link" or (tag == "script" and a)]
    known = {attributes.get("id") for attributes in images}
    assert {a["data-of"] for a in images if "data-of" in a} <= known


def test_the_texts_are_those_of_the_measures(
    world: World, answers: list[Answer], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(path, "T", [Section("A", answers[1:], world.queries, "Only cats.")], world.train)
    text = " ".join(_Page(path.read_text()).text.split())
    assert about("retrac") in text
    assert about("tracin") not in text
    assert "Only cats." in text
    for words in (CHANCE, ERRORS, PROVENANCE):
        assert words in text


def test_a_query_without_image_has_a_placeholder(
    world: World, answers: list[Answer], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(path, "T", [Section("A", answers, None)], world.train)
    page = _Page(path.read_text())
    named = [a["aria-label"] for tag, a in page.tags if a.get("class") == "no-image"]
    assert [one.split(",")[0] for one in named] == ["query ask-a", "query ask-b", "query ask-c"]


def test_only_those_that_push_against_are_called_opponents(
    world: World, answers: list[Answer], tmp_path: Path
) -> None:
    def page(shift: float) -> str:
        moved = [
            replace(
                answer, opponents=replace(answer.opponents, scores=answer.opponents.scores + shift)
            )
            for answer in answers
        ]
        write_report(tmp_path / "r.html", "T", [Section("A", moved, world.queries)], world.train)
        return (tmp_path / "r.html").read_text()

    assert "least influential" in page(100)
    assert "<h4>opponents</h4>" not in page(100)
    assert "<h4>opponents</h4>" in page(-100)
    assert "least influential" not in page(-100)


def test_names_are_escaped(world: World, answers: list[Answer], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    title = "<script>alert(1)</script>"
    write_report(path, title, [Section(title, answers, world.queries)], world.train)
    page = path.read_text()
    assert page.count("<script") == 1
    assert "<script>alert" not in page


def test_control_characters_are_shown_and_not_kept(
    world: World, answers: list[Answer], tmp_path: Path
) -> None:
    hostile = "\x1b[2J\x07\u202e\u2028\r<b>"
    asked = [
        replace(one, queries=replace(one.queries, ids=[hostile] * 3, labels=[hostile] * 3))
        for one in answers
    ]
    path = tmp_path / "report.html"
    write_report(path, hostile, [Section(hostile, asked, world.queries, hostile)], world.train)
    shown = path.read_text(encoding="utf-8") + asked[0]._repr_html_()
    assert "\\x1b[2J" in shown
    assert all(one == "\n" or one.isprintable() for one in shown)


def test_samples_that_are_no_images(answers: list[Answer], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "Title", [Section("Asked", answers, None)], None)
    assert "data:image" not in path.read_text()
    assert "image-0" in path.read_text()


def test_other_samples_than_the_stores_are_refused(
    world: World, answers: list[Answer], tmp_path: Path
) -> None:
    others = Samples([(world.train.image(0), 9)] * 7)
    with pytest.raises(Exception, match="has changed since .* was made"):
        write_report(
            tmp_path / "r.html", "Title", [Section("Asked", answers, world.queries)], others
        )
