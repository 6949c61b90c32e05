"""A real headless browser for tests: Debian's chromium, driven by selenium, with its console and its network requests on record.

tests/conftest.py registers the fixture. Without chromium and its driver a test that asks for it is skipped with a reason, or
fails where the environment variable CI is set.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


class Browser:
    """One page at a time. `driver` is selenium's, for everything this class has no word for."""

    def __init__(self, profile: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options=options, service=Service(executable_path=str(shutil.which("chromedriver"))))
        self.driver.set_page_load_timeout(60)

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a viewport of `width` x `height` CSS pixels; records of earlier pages are dropped."""
        self.run("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.run("Emulation.setEmulatedMedia", features=scheme)
        self.driver.get("about:blank")
        self.console(), self.requests()
        self.driver.get(url)

    def run(self, command: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools Protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.driver.execute_script(f"return ({expression});")

    def console(self) -> list[str]:
        """Everything the page's console got since the last call, as `LEVEL message`."""
        return [f"{entry['level']} {entry['message']}" for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Every address requested since the last call, the page's own first."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def screenshot(self, path: Path) -> None:
        """The whole page, however long, as a PNG."""
        height = self.js("Math.ceil(document.documentElement.getBoundingClientRect().height)")
        self.run("Emulation.setDeviceMetricsOverride", width=self.js("window.innerWidth"), height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(self.driver.get_screenshot_as_png())


def missing() -> str | None:
    """What keeps a browser from starting here, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the Python package selenium is not installed"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install chromium chromium-driver)"
    return None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A fresh headless chromium with a profile of its own, ended when the module's tests are done."""
    reason = missing()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run the browser tests: {reason}")
        pytest.skip(reason)
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.driver.quit()
