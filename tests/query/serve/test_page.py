"""The page in a real browser: what a person does with it, one test for each promise."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gradstore as gs
from gradstore.flags.serve import ServeConfig
from query.queries import Queries
from query.serve.server import serve_config
from tests.query.serve.conftest import LABELS, Place, picture
from tests.support.browser import KEYS, Page, browser
from tests.support.drawn_stores import random_store
from tests.support.served import Client, pages

pytestmark = pytest.mark.browser
QUERY = "cat/0.png"
ASKED = "?query=cat/0.png"


@pytest.fixture(scope="module")
def tab(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(client.server.url, tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    tab.size(1400)
    tab.problems()
    yield tab
    assert not [one for one in tab.problems() if "favicon" not in one and "/api/" not in one]


def proponents(place: Place, query: str, measure: str, k: int = 20) -> list[str]:
    one = Queries.combined(place.queries, {query: {query: 1.0}})
    return gs.search(place.store, one, k, measure=measure).proponent_ids[0]


def test_asking_by_a_stored_query(page: Page, place: Place) -> None:
    page.open()
    assert "Choose a query" in page.one("#galleries").text
    page.until(lambda: len(page.all("#picks a")) == 4)
    page.put("#find", "dog")
    page.until(lambda: len(page.all("#picks a")) == 2)
    page.put("#find", "")
    page.until(lambda: len(page.all("#picks a")) == 4)
    page.click("#picks a")
    page.settle()
    assert page.link["query"] == [QUERY]
    assert page.shown[0][:5] == proponents(place, QUERY, "tracin")[:5]


def test_asking_by_a_file(page: Page, tmp_path: Path) -> None:
    picture(tmp_path / "given.png")
    page.open()
    page.run(
        "window.told = []; const it = document.getElementById('status');"
        "new MutationObserver(() => told.push([it.textContent,"
        " !document.getElementById('progress').hidden])).observe(it, {childList: true})"
    )
    page.one("#file").send_keys(str(tmp_path / "given.png"))
    page.until(lambda: "asked" in page.link)
    told = page.run("return told")
    assert any(text and bar for text, bar in told), told
    page.settle()
    assert "asked image" in page.one("#asked figcaption").text
    assert len(page.shown[0]) > 5


def test_asking_by_pasting_and_dropping(page: Page, tmp_path: Path) -> None:
    script = """
    const [text, kind] = arguments;
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const file = new File([bytes], "a.png", {type: "image/png"});
    const data = new DataTransfer();
    data.items.add(file);
    dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data})
      : new DragEvent(kind, {dataTransfer: data, cancelable: true}));
    """
    for number, kind in enumerate(("paste", "drop")):
        content = picture(tmp_path / "given.png", (12 + number, 12))
        page.open()
        page.run(script, base64.b64encode(content).decode(), kind)
        page.until(lambda: "asked" in page.link)
        page.settle()
        assert page.shown[0]


def test_asking_by_what_the_model_draws(page: Page) -> None:
    page.open()
    page.put("#seed", "5")
    page.click("#generate button")
    page.until(lambda: "asked" in page.link)
    page.settle()
    assert "generated from seed 5" in page.one("#asked figcaption").text


def test_what_cannot_be_asked_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image")
    page.open()
    page.one("#file").send_keys(str(tmp_path / "text.png"))
    page.until(lambda: "cannot be asked" in page.one("#status").text)


def test_looking_at_scores_and_errors(page: Page, client: Client) -> None:
    page.open(ASKED)
    answer = client.get("answer", query=QUERY, measure="tracin", k=20).json
    first, scale = answer["sides"][0]["found"][0], answer["scale"]
    shown = page.one(".card")
    assert f"{first['score'] / 10 ** scale['power']:.{scale['decimals']}f}" in shown.text
    assert "±" in shown.text
    assert "z " in shown.text
    assert page.all(".card .bar .error")
    assert answer["sides"][0]["sure_text"] in page.texts(".sure")
    before = page.one(".card img").size["width"]
    page.put("#size", "192")
    assert page.one(".card img").size["width"] > 1.5 * before
    image = page.one(".card img")
    assert "training sample" in str(image.get_attribute("alt"))


def test_equal_samples_are_collapsed(page: Page) -> None:
    page.open("?sample=cat/00.png&measure=tracin&k=30")
    ids = page.shown[0]
    assert ("cat/29.png" in ids) != ("cat/00.png" in ids)
    assert "1 more like it" in page.texts(".copies summary")


def test_choosing_measures_side_by_side(page: Page, place: Place) -> None:
    page.open(f"{ASKED}&measure=tracin&k=6")
    page.click("#measures input[value=retrac]")
    page.settle()
    page.click("#measures input[value=power]")
    page.settle()
    assert page.link["measure"] == ["tracin", "retrac", "power:0.5"]
    assert len(page.shown) == 3
    for ids, measure in zip(page.shown, page.link["measure"], strict=True):
        assert ids == proponents(place, QUERY, measure, 6)
    shared = set(page.shown[0]) & set(page.shown[1])
    marked = {one.get_attribute("data-id") for one in page.all("article:first-child .card.shared")}
    assert shared <= marked
    assert not page.one("#measures input[value=clip]").is_enabled()
    page.put("#measures .choice:has([value=power]) input[type=number]", "0.9")
    assert page.link["measure"][2] == "power:0.9"


def test_choosing_timesteps_and_checkpoints(page: Page, client: Client) -> None:
    page.open(f"{ASKED}&measure=retrac&k=6")
    svg = page.one("#brush svg")
    page.run(
        """
        const [svg] = arguments, box = svg.getBoundingClientRect();
        svg.setPointerCapture = () => {};
        for (const [kind, share] of [["pointerdown", 0], ["pointerup", 0.5]])
          svg.dispatchEvent(
            new PointerEvent(kind, {clientX: box.left + share * box.width, pointerId: 1}));
        """,
        svg,
    )
    page.settle()
    high = int(page.link["high"][0])
    assert 400 < high < 600
    expected = client.get("answer", query=QUERY, measure="retrac", k=6, low=0, high=high).json
    assert page.shown[0] == [one["id"] for one in expected["sides"][0]["found"]]
    page.put("#high", "300")
    assert page.link["high"] == ["300"]
    page.click("#checkpoints label:last-child input")
    page.settle()
    assert page.link["checkpoints"] == ["0"]


def test_choosing_by_filters_and_loading_more(page: Page, place: Place) -> None:
    page.open(f"{ASKED}&measure=tracin&k=4")
    page.click(".more")
    page.settle()
    assert page.shown[0] == proponents(place, QUERY, "tracin", 8)
    page.put("#column", "label")
    page.one("#value").send_keys("dog", KEYS.ENTER)
    page.until(lambda: page.link.get("where") == ["label=dog"])
    page.settle()
    assert all(name.startswith("dog/") for name in page.shown[0])
    page.click("#chips button")
    page.settle()
    page.click("#filters details summary")
    page.one("#ids").send_keys("cat/03.png\ncat/06.png")
    page.click("#use-ids")
    page.settle()
    assert set(page.shown[0]) == {"cat/03.png", "cat/06.png"}


def test_sorting(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=10")
    page.put("#sort", "id")
    ids = page.shown[0]
    assert ids != sorted(ids, reverse=True)
    assert [one.split("/")[0] for one in ids] == sorted(one.split("/")[0] for one in ids)


def test_understanding_a_score(page: Page, client: Client) -> None:
    page.open(f"{ASKED}&measure=retrac&k=3")
    page.click(".card .why")
    page.settle()
    name = page.link["why"][0]
    dialog = page.one("#why")
    page.until(lambda: "Where the score comes from" in dialog.text)
    assert name in dialog.text
    assert len(page.all("#why .heat tbody td")) == 2 * 5
    assert "Influence on itself" in dialog.text
    assert "stored queries" in dialog.text
    assert page.all("#why .picks a")
    dialog.send_keys(KEYS.ESCAPE)
    page.until(lambda: "why" not in page.link)


def test_understanding_totals_and_norms(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=3")
    for name in ("totals", "norms"):
        page.click(f"#{name} summary")
        page.settle()
    assert page.link["open"] == ["totals", "norms"]
    page.until(lambda: page.all("#totals tbody tr"))
    groups = page.texts("#totals tbody th")
    assert set(groups) == set(LABELS)
    assert all("±" in one for one in page.texts("#totals tbody td:nth-child(3)"))
    page.until(lambda: page.all("#norms circle.mine"))
    assert "Median norm" in page.one("#norms figcaption").text


def test_warnings_and_what_it_cannot_tell(page: Page) -> None:
    page.open(ASKED)
    assert "not proof of provenance" in page.one("#provenance").text
    assert "same weight" in page.texts(".about")[1]


def test_warnings_of_what_answers_may_lack(page: Page, tmp_path: Path) -> None:
    store = random_store(tmp_path / "indexed.gradstore", 300)
    gs.build_index(store, "retrac")
    with gs.serve(store, port=0) as server:
        page.driver.get(f"{server.url}?sample=s0&k=3")
        page.settle()
        told = page.texts("article.measure .warning")
    assert len(told) == 1  # only ReTrac has an index
    assert "may miss samples" in told[0]
    partial = random_store(tmp_path / "partial.gradstore", 300)
    (tmp_path / "partial.gradstore/seals/1/2.json").unlink()
    config = ServeConfig(store=partial.location, skip_unsealed=True, port=0)
    with serve_config(config) as server:
        page.driver.get(f"{server.url}?sample=s0&k=3")
        page.settle()
        assert any("not complete" in one for one in page.texts("#warnings .warning"))
        assert "256 training samples" in page.one("#store").text


def test_walking_back_and_forward_by_links(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=5")
    start = page.shown
    page.click(".card:nth-child(2) a")
    page.settle()
    assert page.link["sample"] == [start[0][1]]
    there = page.shown
    assert there[0][0] == start[0][1]  # a sample is its own first proponent
    page.driver.back()
    page.settle()
    assert page.shown == start
    page.driver.forward()
    page.settle()
    assert page.shown == there
    link = page.driver.current_url
    page.open()
    page.driver.get(link)
    page.settle()
    assert page.shown == there


def test_taking_a_selection_away(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=5")
    for number in (1, 2):
        page.click(f".card:nth-child({number}) input[type=checkbox]")
    chosen = page.shown[0][:2]
    assert "2 selected" in page.one("#selection").text
    for form, name in (("ids", "ids.txt"), ("csv", "samples.csv"), ("parquet", "samples.parquet")):
        page.click(f"#selection [data-form={form}]")
        assert page.taken(name).stat().st_size > 0
    assert page.taken("ids.txt").read_text().splitlines() == chosen
    page.click("#selection [data-form=dataset]")
    page.taken("samples.zip")
    page.click("#remove")
    page.until(lambda: page.one("#command").is_displayed())
    assert page.one("#command").text.startswith("gradstore delete train.gradstore --ids=")


def test_taking_the_view_as_a_report(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&measure=retrac&k=3")
    page.click("#report")
    report = page.taken("report.html").read_text()
    assert "TracIn" in report
    assert "ReTrac" in report


def test_hostile_labels_are_text(page: Page) -> None:
    page.open(f"?sample={LABELS[2]}/02.png&k=30&open=totals".replace(" ", "%20"))
    page.until(lambda: page.all("#totals tbody tr"))
    assert LABELS[2] in page.one("#answers").text
    assert not page.all("[onerror]")
    page.click(".card .why")
    page.settle()
    assert not page.all("[onerror]")


def test_the_keyboard_alone(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=3")
    page.run("document.activeElement?.blur(); scrollTo(0, 0)")
    reached: list[Any] = []
    for _ in range(120):
        page.press(KEYS.TAB)
        now = page.run(
            "const it = document.activeElement;"
            "return [it.id || it.className, it.closest('.card')?.dataset.id ?? null]"
        )
        reached.append(now)
        if now[0] == "why":
            break
    names = [one[0] for one in reached]
    for wanted in ("file", "kind", "find", "low", "high", "size", "sort", "near", "report"):
        assert wanted in names, (wanted, names)
    assert reached[-1][1] == page.shown[0][0]
    page.press(KEYS.ENTER)
    page.until(lambda: page.one("#why").is_displayed())
    page.settle()
    page.until(lambda: page.run("return document.activeElement.id") == "close")
    page.press(KEYS.ENTER)
    page.until(lambda: not page.one("#why").is_displayed())


@pytest.mark.parametrize("width", [1400, 768, 390, 320])
def test_every_width_fits(page: Page, width: int) -> None:
    """320 is 200% zoom of a small screen, and more."""
    page.size(width)
    for link in (
        "",
        f"{ASKED}&open=totals&open=norms&open=map",
        f"{ASKED}&why=cat/03.png",
    ):
        page.open(link)
        # A phone's own innerWidth grows with what does not fit.
        assert page.run("return document.documentElement.scrollWidth") <= width, link


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_rules_of_accessibility(page: Page, theme: str, width: int) -> None:
    page.size(width)
    page.theme(theme)
    for link in ("", f"{ASKED}&k=4&open=totals&open=norms&open=map", f"{ASKED}&k=4&why=cat/03.png"):
        page.open(link)
        found = page.broken_rules()
        assert not found, (link, found)


def test_nothing_moves_while_it_loads(page: Page) -> None:
    page.open(f"{ASKED}&measure=tracin&k=6")
    page.run(
        "window.moves = 0; new PerformanceObserver((list) => { for (const one of list.getEntries())"
        " window.moves += one.value; }).observe({type: 'layout-shift', buffered: false});"
    )
    page.click(".more")
    page.settle()
    assert page.run("return window.moves") < 0.1


def drawn(page: Page) -> int:
    """Number of colours of the map's pixels."""
    return int(
        page.run(
            "const it = document.querySelector('#plane canvas');"
            "if (!it?.width) return 0;"
            "const {data} = it.getContext('2d').getImageData(0, 0, it.width, it.height);"
            "return new Set(new Uint32Array(data.buffer)).size"
        )
    )


def around(page: Page, *shares: tuple[float, float]) -> None:
    """Draw through points of the map, given as shares of its sides."""
    canvas = page.one("#plane canvas")
    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]
    chain = page.pointer()
    for number, (x, y) in enumerate(shares):
        left, top = round((x - 0.5) * (width - 4)), round((y - 0.5) * (height - 4))
        chain.move_to_element_with_offset(canvas, left, top)
        if not number:
            chain.click_and_hold()
    chain.release().perform()


def test_a_lasso_on_the_map_fills_the_selection(page: Page, client: Client) -> None:
    page.open(f"{ASKED}&measure=tracin&k=3&open=map")
    page.until(lambda: drawn(page) > len(LABELS))
    assert "principal axes" in page.one("#map").text
    assert page.texts("#map .legend li")[0] in LABELS
    points = client.get("map").json
    left = [at for at, x in enumerate(points["x"]) if x < points["width"] / 2]
    assert 0 < len(left) < 30
    around(page, (0, 0), (0.5, 0), (0.5, 0.5), (0.5, 1), (0, 1))
    page.until(lambda: f"{len(left)} selected" in page.one("#selection").text)
    page.click("#chosen summary")
    assert len(page.all("#chosen img")) == len(left)


def test_the_map_by_keyboard_and_its_colours(page: Page) -> None:
    page.open("?open=map")
    page.until(lambda: drawn(page) > len(LABELS))
    page.put("#colour", "norm")
    page.until(lambda: "from" in page.one("#map .legend").text)
    assert page.link["colour"] == ["norm"]
    page.run("document.querySelector('#plane canvas').focus()")
    page.press(KEYS.ENTER)
    page.until(lambda: "30 selected" in page.one("#selection").text)
    page.click("#selection .clear")
    page.run("document.querySelector('#plane canvas').focus()")
    for key in ("+", "+", "+", "+", KEYS.ARROW_LEFT, KEYS.ENTER):
        page.press(key)
    page.until(lambda: "selected" in page.one("#map-status").text)
    assert not page.one("#selection").text.startswith("30 ")
    page.press("0")
    page.press(KEYS.ENTER)
    page.until(lambda: "30 selected" in page.one("#selection").text)
    page.click("#selection .clear")


def test_a_notebook_shows_the_page_in_a_frame(page: Page, place: Place, tmp_path: Path) -> None:
    """A notebook is a page of another origin on this machine."""
    with gs.serve(place.store, queries=place.queries, port=0) as server:
        shown = server._repr_html_()
        (tmp_path / "notebook.html").write_text(f"<!doctype html><title>notebook</title>{shown}")
        with pages(tmp_path) as url:
            page.driver.get(f"{url}/notebook.html")
            page.driver.switch_to.frame(page.one("iframe"))
            page.until(lambda: "Choose a query" in page.one("#galleries").text)
            page.until(lambda: page.all("#picks img"))
            page.driver.switch_to.default_content()
            assert page.one("a").get_attribute("href") == server.url
