"""Screenshots of the page and of the report, from the demo's output: `make screenshots`.

python -m tests.support.screenshots demo .screenshots docs/report.png
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import gradstore as gs
from tests.support.browser import Page, browser

WIDTHS = (1400, 768, 390)
_MOST_PIXELS = 6000


def main(demo: Path, out: Path, shown: Path) -> None:
    """Write `NAME-WIDTH.png` into a folder, and the picture that the README shows."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        gs.serve(demo / "train.gradstore", queries=demo / "asked.gradstore", port=0) as server,
        TemporaryDirectory() as downloads,
        browser(server.url, Path(downloads)) as page,
    ):
        asked = "?query=held-out-01.png"
        for width in WIDTHS:
            page.size(width)
            for name, link in (
                ("start", ""),
                ("answers", f"{asked}&k=8"),
                ("panels", f"{asked}&k=4&measure=retrac&open=totals&open=norms&open=map"),
                ("three", f"{asked}&k=6&measure=tracin&measure=retrac&measure=trak:1&near=10"),
            ):
                page.open(link)
                _shoot(page, out / f"page-{name}-{width}.png")
            page.click(".card .why")
            page.until(lambda: page.all("#why .heat"))
            _shoot(page, out / f"page-why-{width}.png", whole=False)
            page.driver.get((demo / "report.html").resolve().as_uri())
            _shoot(page, out / f"report-{width}.png", whole=width > 400)
        page.size(WIDTHS[0])
        page.driver.get((demo / "report.html").resolve().as_uri())
        _shoot(page, shown, of=".query")


def _shoot(page: Page, file: Path, *, whole: bool = True, of: str = "body") -> None:
    """An element, down to a few thousand pixels, or what is in view, once all images are there."""
    page.run("for (const one of document.images) one.loading = 'eager'")
    page.until(lambda: page.run("return [...document.images].every((one) => one.complete)"))
    page.driver.execute_async_script(
        "const done = arguments[0]; setTimeout(() => requestAnimationFrame(done), 300)"
    )
    left, top, width, height = page.run(
        "const it = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [it.left + scrollX, it.top + scrollY, it.width, it.height]",
        of,
    )
    options = {}
    if whole:
        size = {"width": width, "height": min(height, _MOST_PIXELS)}
        clip = {"x": left, "y": top, **size, "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
    found = page.driver.execute_cdp_cmd("Page.captureScreenshot", options)
    file.write_bytes(base64.b64decode(found["data"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
