"""The pages that a run leaves behind, opened from the disk without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lab_server import LIMIT, make_checkout, write_notebook
from playwright.sync_api import Browser, Page, expect

NAME = "00_small"
PARAMETERS = f'output: str = "runs/quick/{NAME}"  # folder for artefacts'
CHART = """
from superpoint_lib.plotting import plot_curves, plot_images
plot_curves({"ours": ([1, 2, 3], [0.5, 0.6, 0.65])}, "warps", "repeatability")
"""
# Noise does not pack well as PNG: a picture like this is kept as JPEG.
PHOTOGRAPH = """
import numpy as np
plot_images([np.random.default_rng(0).random((240, 320))])
"""
RESULTS = """
from superpoint_lib.paths import project_root, write_json
write_json(project_root() / output / "results.json", {"matches": 35})
"""


@pytest.fixture(scope="module")
def run_dir(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one notebook, made by the command that a user types."""
    checkout = make_checkout(tmp_path_factory.mktemp("site"))
    write_notebook(
        checkout / "notebooks" / f"{NAME}.ipynb", CHART, PHOTOGRAPH, RESULTS, parameters=PARAMETERS
    )
    (checkout / "notebooks" / "profiles").mkdir()
    (checkout / "notebooks" / "profiles" / "quick.yaml").write_text("{}")
    command = [sys.executable, "-m", "superpoint_lib", "run", "--profile", "quick"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "runs" / "quick"


def loaded_images(page: Page) -> list[str]:
    """The sources of all images of a page, each looked at and found to be there."""
    images = page.locator("img").all()
    for image in images:
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") > 0, image.get_attribute("src")
    return [image.get_attribute("src") or "" for image in images]


@pytest.fixture
def index(offline_page: Page, run_dir: Path) -> Page:
    offline_page.goto((run_dir / "index.html").as_uri())
    return offline_page


def test_the_index_of_a_run_opens_without_a_network(index, run_dir):
    requests: list[str] = []
    index.on("request", lambda request: requests.append(request.url))
    index.reload()
    expect(index.get_by_role("heading", name="SuperPoint, step by step: quick")).to_be_visible()
    expect(index.get_by_role("cell", name="35")).to_be_visible()
    thumbnails = loaded_images(index)
    assert thumbnails
    assert all(address.startswith("file:") for address in requests)

    links = index.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert len(links) == 1 + len(thumbnails)
    for link in links:
        assert link.startswith(run_dir.as_uri())
        assert Path(unquote(urlsplit(link).path)).is_file(), link


def test_a_notebook_opens_from_the_index_with_its_pictures(index):
    index.get_by_role("link", name=f"Title of {NAME}").click()
    expect(index.get_by_role("heading", name=f"Title of {NAME}")).to_be_visible()
    assert len(loaded_images(index)) == 2  # the chart and the photograph


def test_the_index_shows_every_picture(index):
    assert len(loaded_images(index)) == 2
