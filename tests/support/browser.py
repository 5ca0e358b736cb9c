"""The page in headless Chromium, as a person uses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_SECONDS = 90
KEYS = Keys


class Page:
    """A tab. Every step waits until the page shows what its link says."""

    def __init__(self, driver: Chrome, url: str, downloads: Path) -> None:
        self.driver, self.url, self.downloads = driver, url, downloads

    def open(self, link: str = "") -> None:
        self.driver.get(self.url + link)
        self.settle()

    def until(self, done: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, _SECONDS, 0.05).until(lambda _: done())

    def settle(self) -> None:
        """Wait until the page has followed its link."""
        self.until(lambda: self.run("return document.body?.dataset.shown === location.search"))

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [one.text for one in self.all(selector)]

    def click(self, selector: str) -> None:
        found = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def put(self, selector: str, value: str) -> None:
        """Set a control as its own event would."""
        self.run(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));",
            self.one(selector),
            value,
        )
        self.settle()

    def press(self, key: str) -> None:
        """Press a key, whatever has the focus."""
        ActionChains(self.driver).send_keys(key).perform()

    def pointer(self) -> ActionChains:
        """Movements of the pointer, to be performed at once."""
        return ActionChains(self.driver, duration=20)

    @property
    def link(self) -> Mapping[str, list[str]]:
        return parse_qs(urlsplit(self.driver.current_url).query)

    @property
    def shown(self) -> list[list[str]]:
        """Ids of the first list of each measure."""
        return [
            [
                str(one.get_attribute("data-id"))
                for one in side.find_elements(By.CSS_SELECTOR, ".card")
            ]
            for side in self.all("article.measure > .side:first-of-type")
        ]

    def size(self, width: int, height: int = 900) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def theme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": name}]},
        )

    def broken_rules(self) -> list[Any]:
        """Rules of accessibility that the page breaks, and where, by axe-core."""
        rules = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": rules})
        found: list[Any] = self.driver.execute_async_script(
            "axe.run().then((found) => arguments[0](found.violations.map((one) =>"
            " [one.id, one.nodes.map((node) => node.html.slice(0, 200))])))"
        )
        return found

    def problems(self) -> list[str]:
        """What the browser complained of: errors of scripts, refused resources."""
        found: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [one["message"] for one in found if one["level"] in {"SEVERE", "WARNING"}]

    def taken(self, name: str) -> Path:
        """A downloaded file."""
        file = self.downloads / name
        self.until(lambda: file.exists() and file.stat().st_size > 0)
        return file


def there() -> bool:
    """Whether this machine has a browser and its driver."""
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


@contextmanager
def browser(url: str, downloads: Path) -> Iterator[Page]:
    """A headless browser at a page."""
    options = Options()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        page = Page(driver, url, downloads)
        page.size(1400)
        yield page
    finally:
        driver.quit()
