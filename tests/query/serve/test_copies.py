"""Copies planted among training images, in a real browser: shown once, with their number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gradstore as gs
from tests.query.serve.conftest import Place
from tests.support.browser import Page, browser
from tests.support.worlds import images

pytestmark = pytest.mark.browser
EQUAL = ["00.png", "10.png", "11.png", "12.png"]
NEAR = ["01.png", "13.png", "14.png"]
COUNT = 15


@pytest.fixture(scope="module")
def page(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("copies")
    (folder / "train").mkdir()
    pictures = images(10)
    pictures += [pictures[0]] * 3
    for seed in (1, 2):  # as another encoder leaves an image
        grain = np.random.default_rng(seed).integers(-3, 4, (8, 8))
        near = (np.asarray(pictures[1], np.int16) + grain).clip(0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(near))
    for number, picture in enumerate(pictures):
        picture.save(folder / f"train/{number:02d}.png")
    store = gs.collect(
        gs.Samples(str(folder / "train")), place.checkpoints, folder / "train.gradstore",
        events="planned", metric="none", projector=gs.ProjectorSpec(proj_dim=32),
    )  # fmt: skip
    with (
        gs.serve(store, dataset=str(folder / "train"), port=0) as server,
        browser(server.url, tmp_path_factory.mktemp("downloads")) as page,
    ):
        yield page


def heaps(page: Page) -> list[tuple[str, int]]:
    """The first of each heap of proponents under the first measure, with the number below it."""
    found = page.run(
        "return [...document.querySelector('.ranked, .cards').querySelectorAll('.card')].map("
        "(one) => [one.textContent, one.querySelector('details summary')?.textContent ?? '0'])"
    )
    ids = [f"{number:02d}.png" for number in range(COUNT)]
    return [
        (next(name for name in ids if name in text), int(count.split()[0])) for text, count in found
    ]


def report(page: Page) -> list[tuple[str, int]]:
    """`heaps` of the report of the present view."""
    file: Path = page.downloads / "report.html"
    file.unlink(missing_ok=True)
    page.click("#report")
    page.driver.get(page.taken("report.html").as_uri())
    return heaps(page)


@pytest.mark.parametrize(("near", "below"), [(0, {"equal": 3}), (3, {"equal": 3, "near": 2})])
def test_copies_are_shown_once_with_their_number(
    page: Page, near: int, below: dict[str, int]
) -> None:
    page.open(f"?sample=00.png&measure=tracin&k={COUNT}")
    page.put("#near", str(near))
    assert ("3%" if near else "equal ones only") in page.one("#near-out").text
    shown = heaps(page)
    assert len(shown) == COUNT - sum(below.values())
    heap = {"equal" if name in EQUAL else "near": count for name, count in shown if count}
    assert heap == below
    page.click(".card .copies summary")
    named = {one.split()[0] for one in page.texts(".copies[open] div")}
    assert named < set(EQUAL)
    assert report(page) == shown


def test_copies_beyond_the_list_are_counted(page: Page) -> None:
    page.open("?sample=00.png&measure=tracin&k=2")
    assert heaps(page)[0][0] in EQUAL
    assert "4 equal in the store" in page.one(".card").text
    report(page)
    assert "4 equal in the store" in page.one(".card").text
