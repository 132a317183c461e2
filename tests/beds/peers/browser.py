"""The distribution's Chromium, driven by Playwright: pages that are watched for errors while a test uses them."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="peer chromium: not installed")
DEADLINE_MS = 60_000
"""For each thing that a test waits for: the machine may be busy."""
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-breakpad", "--disable-dev-shm-usage")
"""Tests run as root, for whom Chromium has no sandbox. It opens our own pages only."""
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI);
});
"""

Scheme = Literal["light", "dark"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(ARGUMENTS), timeout=DEADLINE_MS, handle_sigint=False
        )
        try:
            yield browser
        finally:
            browser.close()


class WatchedPage:
    """A page, with everything that it has complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def violations(self) -> list[str]:
        """Of the Content Security Policy, by the page that is open now."""
        found = self.page.evaluate("window.violations")
        return [str(each) for each in found]


@contextlib.contextmanager
def watched(
    browser: Browser, base_url: str, *, width: int = 1440, scheme: Scheme = "light", scripts: bool = True
) -> Iterator[WatchedPage]:
    """A page in a context of its own, without cookies of others."""
    context = browser.new_context(
        base_url=base_url,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        java_script_enabled=scripts,
    )
    try:
        context.set_default_timeout(DEADLINE_MS)
        context.add_init_script(NOTE_VIOLATIONS)
        yield WatchedPage(context.new_page())
    finally:
        context.close()
