"""What a student does in JupyterLab: open a notebook, run it, look, turn the knobs.

The cells are run by the menu, the controls are moved by keyboard and mouse, and what is checked is
what the browser shows: the picture's bytes, the texts, where things are and whether they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from lab_server import LIMIT, Lab, write_notebook
from playwright.sync_api import Browser, Locator, Page, expect

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SETUP = """
import cv2, ipywidgets, numpy as np, torch
from superpoint_lib import SuperPoint, extract, plotting, widgets
from superpoint_lib.adaptation import AdaptConfig
from superpoint_lib.model import ModelConfig
small = ModelConfig(channels=(4, 4, 8, 8), head_channels=8, descriptor_dim=16)
torch.manual_seed(0)
model = SuperPoint(small).eval()
noise = np.random.default_rng(0).random((56, 80)).astype(np.float32)
image = cv2.GaussianBlur(noise, (0, 0), 1.5)
features = extract(model, image, 100, 1e-4, 2)
"""
STATIC = "plotting.plot_keypoints(image, features.keypoints)"
DETECTIONS = "widgets.explore_detections(model, image, 1e-4, 2, 100)"
# Refuses one value, as a callback with a mistake in it might.
REFUSING = """
def draw(n):
    if n == 2:
        raise ValueError(f"{n} is refused")
    return np.full((40, 60, 3), 50 * n, np.uint8), f"n is {n}"
widgets.Explorer(draw, {"n": ipywidgets.IntSlider(1, 0, 5, description="n")})
"""
OTHERS = [
    "widgets.explore_matches(features, features, image, image)",
    "widgets.explore_adaptation(model, image, AdaptConfig(warps=4))",
    "widgets.explore_shapes()",
    "widgets.explore_homographies(image)",
    "widgets.explore_photometric(image)",
    "widgets.explore_hinge_loss()",
]

# All code cells, of which the page is told the number, have been run, or one has failed.
RUN_IS_OVER = """count => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")];
  return document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
    || prompts.length === count && prompts.every(prompt => /[0-9]/.test(prompt.textContent));
}"""
# The bytes that a picture shows, as text; empty while it is being replaced.
PICTURE_BYTES = """async image => {
  try {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].join();
  } catch { return ""; }
}"""
PICTURE_IS_NEW = f"""async ([image, before]) => {{
  const bytes = await ({PICTURE_BYTES})(image);
  return bytes && bytes !== before && image.complete && image.naturalWidth > 0;
}}"""
IS_LOADED = "image => image.complete && image.naturalWidth > 0"
# The texts on and beside controls that are wider or higher than the place they are shown in.
TEXTS = ".widget-label, .widget-label-basic, .widget-readout, .widget-checkbox span"
CUT_OFF = """texts => texts.filter(text => text.checkVisibility() && text.textContent
  && getComputedStyle(text).display !== "inline"
  && (text.scrollWidth > text.clientWidth || text.scrollHeight > text.clientHeight + 1))
  .map(text => `${text.textContent}: ${text.scrollWidth} in ${text.clientWidth}`)"""


@dataclass(frozen=True)
class Shown:
    """An explorer as the page shows it, in the output of one cell."""

    cell: Locator

    @property
    def picture(self) -> Locator:
        return self.cell.locator("img.widget-image")

    @property
    def note(self) -> Locator:
        return self.cell.locator(".widget-vbox > .widget-label")

    @property
    def errors(self) -> Locator:
        return self.cell.locator(".widget-vbox .jp-OutputArea-output")

    def slider(self, description: str) -> Locator:
        return self.cell.locator(".widget-hslider").filter(has_text=description)

    def handle(self, description: str) -> Locator:
        return self.slider(description).locator(".noUi-handle")

    def readout(self, description: str) -> Locator:
        return self.slider(description).locator(".widget-readout")

    def checkbox(self, description: str) -> Locator:
        return self.cell.locator(".widget-checkbox").filter(has_text=description).locator("input")

    def changes(self, act: Callable[[], object]) -> None:
        """Do something to a control, and wait until the picture is another one."""
        before = self.picture.evaluate(PICTURE_BYTES)
        assert before
        act()
        page = self.cell.page
        page.wait_for_function(PICTURE_IS_NEW, arg=[self.picture.element_handle(), before])


def open_and_run(browser: Browser, lab: Lab, name: str) -> Page:
    """Open ``notebooks/<name>.ipynb`` in a fresh JupyterLab and run all its cells from the menu."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(LIMIT * 1000)
    page = context.new_page()
    # A workspace of its own, so that no other notebook is opened beside it.
    place = f"lab/workspaces/{name}/tree/notebooks/{name}.ipynb"
    page.goto(f"{lab.url}{place}?token={lab.token}")
    # Cells that are run before the kernel is there make JupyterLab ask for one.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    notebook = nbformat.read(lab.checkout / "notebooks" / f"{name}.ipynb", as_version=4)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    page.wait_for_function(RUN_IS_OVER, arg=count)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.all_text_contents() == []
    return page


def cell_with(page: Page, code: str) -> Locator:
    """The code cell whose source contains ``code``."""
    source = page.locator(".jp-InputArea-editor").filter(has_text=code)
    return page.locator(".jp-CodeCell").filter(has=source)


def top_and_bottom(thing: Locator) -> tuple[float, float]:
    box = thing.bounding_box()
    assert box is not None
    return box["y"], box["y"] + box["height"]


def assert_loaded(picture: Locator) -> None:
    """The picture is shown and has been decoded."""
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    picture.page.wait_for_function(IS_LOADED, arg=picture.element_handle())


@pytest.fixture(scope="module")
def small(browser: Browser, lab: Lab) -> Iterator[Page]:
    """A notebook with a small network, a static picture and every explorer, run once."""
    write_notebook(
        lab.checkout / "notebooks" / "small.ipynb", SETUP, STATIC, DETECTIONS, REFUSING, *OTHERS
    )
    page = open_and_run(browser, lab, "small")
    yield page
    page.context.close()


@pytest.fixture
def detections(small: Page) -> Shown:
    shown = Shown(cell_with(small, "explore_detections("))
    assert_loaded(shown.picture)
    return shown


def test_the_widget_is_under_the_static_picture(small, detections):
    static = cell_with(small, STATIC).locator(".jp-RenderedImage img")
    assert_loaded(static)
    expect(detections.note).to_contain_text("keypoints")
    # Controls, picture, note: one below the other, below the static picture.
    parts = (static, detections.handle("NMS radius"), detections.picture, detections.note)
    places = [top_and_bottom(part) for part in parts]
    for (_, bottom), (top, _) in pairwise(places):
        assert bottom <= top


def test_a_slider_follows_the_keyboard(detections):
    expect(detections.readout("NMS radius")).to_have_text("2")
    radius = detections.handle("NMS radius")
    note = detections.note.text_content()
    detections.changes(lambda: [radius.press("ArrowRight") for _ in range(6)])
    expect(detections.readout("NMS radius")).to_have_text("8")
    expect(detections.note).not_to_have_text(note)
    detections.changes(lambda: [radius.press("ArrowLeft") for _ in range(6)])
    expect(detections.note).to_have_text(note)


def test_the_picture_follows_while_a_slider_is_dragged(detections):
    mouse = detections.cell.page.mouse
    handle = detections.handle("keypoints at most")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    note = detections.note.text_content()
    mouse.move(x, y)
    mouse.down()
    # Still held: a picture that only came with the release would never come.
    detections.changes(lambda: mouse.move(x + 40, y, steps=4))
    mouse.up()
    expect(detections.readout("keypoints at most")).not_to_have_text("100")
    expect(detections.note).not_to_have_text(note)


def test_a_number_can_be_typed(detections):
    readout = detections.readout("keypoints at most")

    def type_number(text: str) -> None:
        readout.click()
        readout.fill(text)
        readout.press("Enter")

    detections.changes(lambda: type_number("20"))
    expect(detections.note).to_contain_text("20 keypoints")
    detections.changes(lambda: type_number("100"))
    expect(detections.note).to_contain_text("100 keypoints")
    expect(readout).to_have_text("100")


def test_a_checkbox_changes_the_picture(detections):
    subpixel = detections.checkbox("sub-pixel positions")
    expect(subpixel).to_be_checked()
    detections.changes(subpixel.uncheck)
    detections.changes(subpixel.check)


def test_a_choice_changes_the_picture(small):
    shapes = Shown(cell_with(small, "explore_shapes("))
    assert_loaded(shapes.picture)
    shapes.changes(lambda: shapes.cell.locator("select").select_option("checkerboard"))


def test_an_exception_while_drawing_is_shown_under_the_picture(small):
    refusing = Shown(cell_with(small, "widgets.Explorer("))
    assert_loaded(refusing.picture)
    expect(refusing.errors).to_have_count(0)
    refusing.handle("n").press("ArrowRight")
    expect(refusing.errors).to_contain_text("ValueError: 2 is refused")
    expect(refusing.errors).to_be_visible()
    assert top_and_bottom(refusing.errors)[0] >= top_and_bottom(refusing.picture)[1]
    # The next value draws again, and the message goes.
    refusing.changes(lambda: refusing.handle("n").press("ArrowRight"))
    expect(refusing.note).to_have_text("n is 3")
    expect(refusing.errors).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 900])
def test_no_text_beside_a_control_is_cut_off(small, width):
    small.set_viewport_size({"width": width, "height": 900})
    for code in (DETECTIONS, *OTHERS):
        shown = Shown(cell_with(small, code))
        assert_loaded(shown.picture)
        texts = shown.cell.locator(TEXTS)
        assert texts.count() >= 8, code
        assert texts.evaluate_all(CUT_OFF) == [], code
        # The picture gives way instead of leaving the notebook.
        box, place = shown.picture.bounding_box(), shown.cell.bounding_box()
        assert box["x"] + box["width"] <= place["x"] + place["width"], code


def test_the_quickstart_runs_and_can_be_played_with(browser, lab):
    name = "00_quickstart"
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    # Without the stored outputs, whatever is seen comes from this run.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, lab.checkout / "notebooks" / f"{name}.ipynb")
    page = open_and_run(browser, lab, name)

    static = page.locator(".jp-RenderedImage img")
    expect(static).to_have_count(4)
    for index in range(4):
        assert_loaded(static.nth(index))

    detections = Shown(cell_with(page, "explore_detections("))
    assert_loaded(detections.picture)
    before = detections.note.text_content()
    detections.changes(lambda: detections.handle("NMS radius").press("PageUp"))
    expect(detections.note).not_to_have_text(before)

    matches = Shown(cell_with(page, "explore_matches("))
    assert_loaded(matches.picture)
    before = matches.note.text_content()
    matches.changes(matches.checkbox("mutual").uncheck)
    expect(matches.note).not_to_have_text(before)
    for shown in (detections, matches):
        assert shown.cell.locator(TEXTS).evaluate_all(CUT_OFF) == []
    page.context.close()
