"""The report in a real browser, as somebody reads it who was sent the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gradstore as gs
from tests.support.browser import KEYS, Page, browser
from tests.support.drawn_stores import random_store
from tests.support.worlds import World, images

pytestmark = pytest.mark.browser
LABELS = ["cat", "dog", "<img src=x onerror=alert(1)>"]


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    train = gs.Samples(list(zip(images(12), 4 * LABELS, strict=True)))
    asked = gs.Samples(
        list(zip(images(4, seed=1), [*LABELS, LABELS[0]], strict=True)),
        ids=["ask-a", "ask-b", "ask-c", "ask-d"],
    )
    store = gs.collect(
        train,
        world.checkpoints,
        folder / "train.gradstore",
        projector=gs.ProjectorSpec(proj_dim=32),
        metric="none",
    )
    queries = gs.collect_queries(store, asked, folder / "asked.gradstore")
    answers = [gs.search(store, queries, 4, measure=name) for name in ("tracin", "retrac")]
    sections = [gs.Section("Asked", answers, asked), gs.Section("Without images", answers, None)]
    gs.write_report(folder / "report.html", "Who taught it?", sections, train)
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(report.as_uri(), tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    tab.size(1400)
    tab.problems()
    tab.driver.get(tab.url)
    yield tab
    assert not tab.problems()


def shown(page: Page, selector: str) -> list[str]:
    """Texts of the elements that are not hidden, though they may be far down."""
    found: list[str] = page.run(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter((one) => one.offsetParent).map((one) => one.textContent)",
        selector,
    )
    return found


def test_it_is_filtered_by_id_and_label(page: Page) -> None:
    assert len(shown(page, ".query")) == 8
    cards = len(shown(page, "#q0-1 .card"))
    page.one("#find").send_keys("ask-b")
    assert [one.split()[0] for one in shown(page, ".query .asked b")] == ["ask-b", "ask-b"]
    assert len(shown(page, "#q0-1 .card")) == cards
    page.one("#find").clear()
    page.one("#find").send_keys("dog")
    left = shown(page, ".card")
    assert left
    assert all("dog" in one for one in left)
    page.one("#find").send_keys("nothing at all")
    assert not shown(page, ".query")


def test_images_are_enlarged_and_resized(page: Page) -> None:
    before = page.one(".card img").size["width"]
    page.run(
        "const it = document.getElementById('size');"
        "it.value = 160; it.dispatchEvent(new Event('input'))"
    )
    assert page.one(".card img").size["width"] > before
    page.run("document.querySelector('.card img').focus()")
    page.press(KEYS.ENTER)
    page.until(lambda: page.one("#zoomed").is_displayed())
    assert page.one("#zoomed img").size["width"] > 300
    assert page.one("#zoomed p").text.startswith("training sample")
    page.press(KEYS.ESCAPE)
    page.until(lambda: not page.one("#zoomed").is_displayed())


def test_the_contents_lead_to_each_query(page: Page) -> None:
    page.click("details summary")
    assert page.texts("#contents a") == 2 * ["ask-a", "ask-b", "ask-c", "ask-d"]
    page.click('#contents a[href="#q0-3"]')
    page.until(
        lambda: page.run(
            "const {top} = document.getElementById('q0-3').getBoundingClientRect();"
            "return top >= 0 && top < innerHeight"
        )
    )


def test_no_query_is_an_empty_square(page: Page) -> None:
    page.until(lambda: page.run("return [...document.images].every((one) => one.complete)"))
    asked = page.run(
        "return [...document.querySelectorAll('.asked')].map((one) => {"
        "const shown = one.querySelector('img, .no-image');"
        "return [shown.tagName, shown.naturalWidth ?? 0, shown.textContent]; })"
    )
    assert [one[0] for one in asked] == 4 * ["IMG"] + 4 * ["SPAN"]
    assert all(one[1] > 0 for one in asked[:4])
    assert all(one[2] for one in asked[4:])


def test_another_label_is_no_error(page: Page) -> None:
    """Nothing is red."""
    found = page.run(
        """
        const red = (text) => {
          const [r, g, b, a] = text.match(/[\\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
          return a !== 0 && r > 120 && r > 1.6 * g && r > 1.6 * b;
        };
        return [...document.querySelectorAll('.query *')].flatMap((one) => {
          const style = getComputedStyle(one);
          return ['color', 'backgroundColor', 'borderTopColor', 'stroke', 'fill']
            .map((name) => style[name]).filter(red);
        });
        """
    )
    assert found == []
    assert page.all(".card.same")
    assert page.all(".card:not(.same)")


def test_labels_are_text(page: Page) -> None:
    assert LABELS[2] in page.one("body").text
    assert not page.all("[onerror]")


@pytest.mark.parametrize("width", [1400, 768, 390, 320])
def test_every_width_fits(page: Page, width: int) -> None:
    page.size(width)
    page.driver.get(page.url)
    # A phone's own innerWidth grows with what does not fit.
    assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_rules_of_accessibility(page: Page, theme: str, width: int) -> None:
    page.size(width)
    page.theme(theme)
    page.driver.get(page.url)
    assert not page.broken_rules()


@dataclass(frozen=True)
class _Sample:
    row: int

    def digest(self) -> str:
        return str(self.row)  # as the drawn store says


class _Photographs:
    """Pictures of 512 pixels a side with the detail of photographs, each another."""

    def __getitem__(self, row: int) -> Any:
        return _Sample(row)

    def image(self, row: int) -> Image.Image:
        generator = np.random.default_rng(row)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((128, 128), Image.Resampling.BICUBIC), np.int16)
        grain = generator.integers(-16, 17, (128, 128, 1))
        fine = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        return fine.resize((512, 512), Image.Resampling.BILINEAR)


def test_a_hundred_queries_of_large_images(page: Page, tmp_path: Path) -> None:
    train = random_store(tmp_path / "train.gradstore", 4000, slots=2)
    asked = random_store(tmp_path / "asked.gradstore", 100, slots=3, seed=1)
    answers = [gs.search(train, asked, 20, measure=name) for name in ("tracin", "retrac")]
    path = tmp_path / "report.html"
    section = gs.Section("Asked", answers, _Photographs())
    gs.write_report(path, "A hundred", [section], _Photographs())
    assert path.stat().st_size <= 10e6
    page.driver.get(path.as_uri())
    page.until(lambda: page.run("return [...document.images].every((one) => one.complete)"))
    broken = "return [...document.images].filter((one) => one.src && !one.naturalWidth).length"
    assert page.run(broken) == 0
    assert len(page.all(".query")) == 100
