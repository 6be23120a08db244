"""The page in a real browser: Debian's Chromium without a window, driven by selenium."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from efficient_vits.plots import explore
from efficient_vits.results import Run, load_rows, published_accuracy, read_measurements

EVIL = "</script><img src=x onerror=window.broken=1><b>&amp;"
NEEDED = {"chromium": "chromium", "chromedriver": "chromium-driver"}


def measurement(name: str, images_per_second: float, device: str, **more: Any) -> dict[str, Any]:
    """A row as `efficient-vits measure --json` prints it."""
    row = {
        "name": name,
        "parameters": 20_000_000,
        "flops": {"total": 4_000_000_000},
        "memory": {"peak_bytes": 2**28, "batch_size": 1, "device": "cuda:0"},
        "throughput": {
            "images_per_second": images_per_second,
            "spread": 0.01,
            "batch_size": 64,
            "device": "cuda:0",
        },
        "input_size": [3, 224, 224],
        "environment": {"device": device, "cpu": "a processor"},
    }
    return row | more


OWN = [
    measurement("hydra_s16", 2500.0, "NVIDIA GeForce RTX 3090"),
    measurement("vit_s16", 1800.0, "NVIDIA GeForce RTX 3090"),
    measurement("gfnet_s16", 1500.0, "NVIDIA GeForce RTX 3090"),
    measurement("my_net_ti", 6000.0, "NVIDIA A100-SXM4-80GB", top1=80.5),
    measurement(EVIL, 3000.0, "NVIDIA A100-SXM4-80GB", top1=79.0, input_size=[3, 192, 256]),
    measurement("=slow_net", 20.0, "NVIDIA A100-SXM4-80GB"),
]


@pytest.fixture(scope="session")
def runs() -> list[Run]:
    """The benchmark's runs and own ones, in the order in which the page has them."""
    return [*load_rows(), *read_measurements(OWN, accuracy=published_accuracy())]


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, runs: list[Run]) -> Path:
    return explore(tmp_path_factory.mktemp("page") / "page.html", runs)


@pytest.fixture(scope="session")
def evil() -> str:
    """A model's name that would be markup and a script, were it not text."""
    return EVIL


def start(**experimental: Any) -> webdriver.Chrome:
    """A browser; options as chromedriver calls them."""
    paths = {program: shutil.which(program) for program in NEEDED}
    missing = [NEEDED[program] for program, path in paths.items() if path is None]
    if missing:
        pytest.fail(
            f"the page is tested in Chromium: apt-get install {' '.join(missing)}",
            pytrace=False,
        )
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths["chromium"])
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "window-size=1400,1000",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for key, value in experimental.items():
        options.add_experimental_option(key, value)
    service = webdriver.ChromeService(executable_path=str(paths["chromedriver"]))
    return webdriver.Chrome(options=options, service=service)


class Page:
    """An open page: what is drawn, what is listed, and its controls."""

    def __init__(self, driver: webdriver.Chrome, file: Path) -> None:
        self.driver, self.url = driver, file.as_uri()

    def load(self, fragment: str = "") -> "Page":
        """Load it anew."""
        self.driver.get("about:blank")
        self.driver.get(self.url + fragment)
        return self.settle()

    def settle(self) -> "Page":
        """Wait until what was asked for is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)));"
        )
        return self

    def go(self, fragment: str) -> "Page":
        """Change the fragment of the address, as somebody who types it does."""
        self.js("location.hash = arguments[0]", fragment)
        return self.settle()

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def choose(self, control: str, value: str) -> "Page":
        Select(self.one(f"#{control}")).select_by_value(value)
        return self.settle()

    def click(self, selector: str) -> "Page":
        element = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()
        return self.settle()

    def search(self, text: str) -> "Page":
        box = self.one("#search")
        box.clear()
        box.send_keys(text)
        asked = "return new URLSearchParams(location.hash.slice(1)).get('q')"
        self.wait(lambda: self.js(asked) == text)
        return self.settle()

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 20).until(lambda _: condition())

    def traces(self) -> list[dict[str, Any]]:
        """What plotly has drawn: its own list, read from the chart."""
        return json.loads(
            self.js(
                "return JSON.stringify(document.getElementById('chart')._fullData.map((t) => ({"
                "x: [...t.x], y: [...t.y], runs: [...t.customdata], meta: t.meta, mode: t.mode,"
                "symbol: t.marker?.symbol, dash: t.line?.dash, shape: t.line?.shape})))"
            )
        )

    def points(self) -> dict[int, tuple[float, float]]:
        """Place of each run that has a point."""
        return {
            run: (x, y)
            for trace in self.traces()
            if trace["meta"] and "own" in trace["meta"]
            for run, x, y in zip(trace["runs"], trace["x"], trace["y"], strict=True)
        }

    def fronts(self) -> dict[str | None, list[int]]:
        """The runs along each line that is drawn as a front, by device class."""
        return {
            trace["meta"]["front"]: trace["runs"]
            for trace in self.traces()
            if trace["meta"] and "front" in trace["meta"]
        }

    def ring(self) -> list[int]:
        return self.traces()[-1]["runs"]

    def rows(self) -> list[int]:
        """The runs in the table, from top to bottom."""
        return self.js("return [...document.querySelectorAll('#rows tr')].map(r => +r.dataset.run)")

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def fragment(self) -> str:
        return self.js("return decodeURIComponent(location.hash.replaceAll('+', ' '))")


@pytest.fixture(scope="session")
def open_page() -> Iterator[Callable[..., Page]]:
    """Pages in browsers of their own, which end after the last test."""
    started: list[webdriver.Chrome] = []

    def open_page(file: Path, **experimental: Any) -> Page:
        started.append(start(**experimental))
        return Page(started[-1], file)

    yield open_page
    for browser in started:
        browser.quit()


@pytest.fixture(scope="session")
def _loaded(open_page: Callable[..., Page], file: Path) -> Page:
    return open_page(file).load()


@pytest.fixture
def page(_loaded: Page) -> Page:
    """The page as it is at the start, loaded once for all tests."""
    _loaded.js("document.getElementById('reset').click()")
    _loaded.js("scrollTo({top: 0, behavior: 'instant'})")
    return _loaded.settle()
