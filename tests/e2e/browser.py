"""Chromium as installed on the machine, without a window: pages are looked at as people see them, and nothing leaves the machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HINT = (
    "no Chromium was found: install it (Debian and Ubuntu: apt-get install chromium; `make browser` does it for root)"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PHONE, DESKTOP = {"width": 360, "height": 780}, {"width": 1280, "height": 900}

LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
"""What is wrong with a page as it stands on the screen, in words: sizes, overflow, contrast (WCAG 2.2, 1.4.3), labels, language."""


@dataclass
class Tab:
    """A page, and everything that it asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        found: list[str] = self.page.evaluate(LOOK)
        return [*found, *self.complaints]


def executable() -> str | None:
    """Where Chromium is."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a new profile."""
    path = executable()
    if path is None:
        pytest.skip(HINT)
    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=path, args=list(FLAGS), chromium_sandbox=False, timeout=180_000
        )
        yield running
        running.close()


@contextlib.contextmanager
def tab(browser: Browser, *, offline: bool = False, **options: Any) -> Iterator[Tab]:
    """A page in a session of its own."""
    with contextlib.closing(browser.new_context(offline=offline, **options)) as context:
        context.set_default_timeout(120_000)
        opened = Tab(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda said: opened.complaints.append(f"{said.type}: {said.text}"))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        yield opened
