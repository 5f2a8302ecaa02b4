"""Chromium, and a JupyterLab server for it, started once for all browser tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from lab_server import LIMIT, Lab, make_checkout, running_lab
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The program that CHROMIUM names, or an installed one; skips where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"Chromium is not installed: no {', '.join(NAMES)}, and CHROMIUM names none")
    expect.set_options(timeout=LIMIT * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=FLAGS, timeout=LIMIT * 1000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def offline_page(browser: Browser) -> Iterator[Page]:
    """An empty page that can open files but has no network."""
    context = browser.new_context(offline=True)
    context.set_default_timeout(LIMIT * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on an empty checkout; asks for the browser so as not to start without one."""
    with running_lab(make_checkout(tmp_path_factory.mktemp("lab"))) as running:
        yield running
