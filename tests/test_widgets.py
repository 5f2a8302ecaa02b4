"""The explorers: a control changes the picture, the network runs once, errors surface."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from superpoint_lib import widgets
from superpoint_lib.adaptation import AdaptConfig, adapt_heatmap, adaptation_homographies
from superpoint_lib.extraction import Features, extract, match
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
from superpoint_lib.model import ModelConfig, SuperPoint

pytest.importorskip("ipywidgets")

SMALL = ModelConfig(channels=(4, 4, 8, 8), head_channels=8, descriptor_dim=16)


def decode(explorer) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(explorer.picture.value, np.uint8), cv2.IMREAD_COLOR)


def changes(explorer, name, value) -> bool:
    before = explorer.picture.value
    explorer.controls[name].value = value
    return explorer.picture.value != before


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    noise = np.random.default_rng(0).random((56, 80)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return SuperPoint(SMALL).eval()


@pytest.fixture
def passes(model):
    """Counts the forward passes of the model."""
    counted = []
    handle = model.register_forward_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def test_library_imports_without_ipywidgets_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['ipywidgets'] = None\n"
        "from superpoint_lib import widgets\n"
        "try: widgets.explore_hinge_loss()\n"
        "except ImportError as error: assert 'pip install' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_detections_follow_every_control_after_one_forward_pass(model, image, passes):
    explorer = widgets.explore_detections(model, image, threshold=1e-4, nms_radius=2)
    assert len(passes) == 1
    assert decode(explorer).shape == (448, 640, 3)
    expected = extract(model, image, threshold=1e-4, nms_radius=2)
    passes.clear()
    assert explorer.note.value.startswith(f"{len(expected)} keypoints")
    assert changes(explorer, "max_keypoints", 10)
    assert explorer.note.value.startswith("10 keypoints")
    assert changes(explorer, "subpixel", False)
    assert changes(explorer, "nms_radius", 12)
    assert changes(explorer, "threshold", 1.0)
    assert explorer.note.value == "0 keypoints"
    assert not passes


def test_detections_leave_the_models_mode_alone(model, image):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        widgets.explore_detections(model, image)
        assert model.training
    finally:
        model.eval()
        model.load_state_dict(before)


def pair_of_features() -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(0)
    points = 50 * torch.rand((40, 2), generator=generator)
    descriptors = nn.functional.normalize(torch.randn((40, 8), generator=generator), dim=1)
    noisy = descriptors + 0.3 * torch.randn((40, 8), generator=generator)
    noisy = nn.functional.normalize(noisy, dim=1)
    scores = torch.linspace(1, 0.1, 40)
    first = Features(points, scores, descriptors, (56, 80))
    return first, Features(points + 2, scores, noisy, (56, 80))


def test_matches_follow_every_control(image):
    features0, features1 = pair_of_features()
    shift = np.array([[1.0, 0, 2], [0, 1, 2], [0, 0, 1]])
    explorer = widgets.explore_matches(features0, features1, image, image, shift)
    matches, _ = match(features0, features1)
    right = int((matches[:, 0] == matches[:, 1]).sum())
    assert explorer.note.value.startswith(f"{len(matches)} matches, ")
    assert int(explorer.note.value.split()[2]) >= right > 20
    assert changes(explorer, "mutual", False)
    assert explorer.note.value.startswith("40 matches")
    assert changes(explorer, "ratio", 0.7)
    few, _ = match(features0, features1, ratio=0.7)
    assert changes(explorer, "mutual", True)
    assert explorer.note.value.startswith(f"{len(few)} matches")
    assert changes(explorer, "max_keypoints", 30)
    assert changes(explorer, "min_similarity", 0.9)
    explorer.controls["min_similarity"].value = 1.0
    assert explorer.note.value == "0 matches, 0 correct"


def test_matches_of_nothing(image):
    nothing = Features(torch.zeros((0, 2)), torch.zeros(0), torch.zeros((0, 8)), (56, 80))
    some, _ = pair_of_features()
    for features0, features1 in ((nothing, some), (some, nothing), (nothing, nothing)):
        explorer = widgets.explore_matches(features0, features1, image, image)
        assert explorer.note.value == "0 matches"
        explorer.controls["mutual"].value = False
        assert explorer.note.value == "0 matches"


def test_matches_need_descriptors(image):
    some, _ = pair_of_features()
    with pytest.raises(ValueError, match="MagicPoint has none"):
        widgets.explore_matches(replace(some, descriptors=None), some, image, image)


@pytest.mark.parametrize(
    ("sizes", "agree"), [((1.0,), False), ((1.0, 1.5), False), ((1.0, 1.5), True)]
)
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_adaptation_adds_up_as_the_library_does(model, image, aggregation, sizes, agree):
    config = AdaptConfig(warps=11, aggregation=aggregation, border=2, sizes=sizes, agree=agree)
    homographies = adaptation_homographies(11, 56, 80, "adaptation", np.random.default_rng(0))
    tensor = torch.from_numpy(np.rint(255 * image) / 255).float()[None, None]
    expected, _ = adapt_heatmap(model, tensor, homographies, config)
    background = widgets.to_rgb(image)
    rng = np.random.default_rng(0)
    running = widgets.running_heatmaps(model, background, config, rng)[aggregation]
    torch.testing.assert_close(running[-1], expected[0], atol=5e-5, rtol=1e-3)
    alone, _ = adapt_heatmap(model, tensor, homographies[:3], config)
    torch.testing.assert_close(running[2], alone[0], atol=1e-5, rtol=1e-3)


def test_adaptation_follows_every_control_without_the_network(model, image, passes):
    config = AdaptConfig(warps=12, threshold=1e-4, nms_radius=2)
    explorer = widgets.explore_adaptation(model, image, config)
    done = len(passes)
    assert explorer.controls["warps"].max == 12
    assert changes(explorer, "warps", 12)
    assert changes(explorer, "aggregation", "max")
    assert changes(explorer, "response", False)
    assert changes(explorer, "threshold", 1.0)
    assert explorer.note.value == "0 keypoints from 12 warps"
    assert len(passes) == done


def test_adaptation_takes_any_size(model, image):
    explorer = widgets.explore_adaptation(model, image[:50, :77], AdaptConfig(warps=2))
    height, width = decode(explorer).shape[:2]
    assert width == 640 and height == round(50 * 640 / 77)


def test_shapes_homographies_photometric_and_hinge_follow_every_control(image):
    shapes = widgets.explore_shapes()
    assert changes(shapes, "primitive", "gaussian_noise") and shapes.note.value == "0 corners"
    assert changes(shapes, "primitive", "cube") and changes(shapes, "first", 8)
    assert changes(shapes, "min_contrast", 0) and changes(shapes, "keypoints", False)

    for preset in HOMOGRAPHY_PRESETS.values():
        first = widgets.explore_homographies(image, preset).controls
        assert first["scale"].value == pytest.approx(preset.scale_amplitude)
        assert first["perspective"].value == pytest.approx(preset.perspective_amplitude_x)
    warps = widgets.explore_homographies(image)
    for name, value in {
        "perspective": 0.0,
        "scale": 0.0,
        "max_angle": 0,
        "patch_ratio": 0.5,
    }.items():
        assert changes(warps, name, value), name
    for name, value in {"translation": False, "seed": 1}.items():
        warps.controls[name].value = value
    warps.controls["patch_ratio"].value = 1.0
    assert warps.note.value.startswith("100 %")  # nothing is left but the identity
    warps.controls["perspective"].value = 0.3
    assert changes(warps, "allow_artifacts", False)

    photometric = widgets.explore_photometric(image)
    for name, value in {
        "brightness_change": 128,
        "contrast_range": (0.1, 0.2),
        "noise_sigma": (30, 40),
        "speckle_probability": 0.05,
        "shade_transparency": (-1, -0.9),
        "motion_kernel": 15,
        "seed": 7,
    }.items():
        assert changes(photometric, name, value), name

    hinge = widgets.explore_hinge_loss()
    for name in hinge.controls:
        assert changes(hinge, name, hinge.controls[name].value / 2), name


def all_explorers(model, image):
    features0, features1 = pair_of_features()
    return [
        widgets.explore_detections(model, image),
        widgets.explore_matches(features0, features1, image, image),
        widgets.explore_adaptation(model, image, AdaptConfig(warps=2)),
        widgets.explore_shapes(),
        widgets.explore_homographies(image),
        widgets.explore_photometric(image),
        widgets.explore_hinge_loss(),
    ]


def test_controls_follow_the_finger_and_are_readable(model, image):
    for explorer in all_explorers(model, image):
        for control in explorer.controls.values():
            assert getattr(control, "continuous_update", True)
            width = control.style.description_width
            # Average glyphs of a notebook's 13 px font are under 7 px wide.
            assert width == "initial" or 7 * len(control.description) <= int(
                width.removesuffix("px")
            )


def test_an_error_while_drawing_is_shown_kept_and_raised_again():
    import ipywidgets

    def draw(number: int):
        if number == 2:
            raise ValueError("two is refused")
        return np.full((4, 4, 3), number, np.uint8), f"number {number}"

    explorer = widgets.Explorer(draw, {"number": ipywidgets.IntSlider(1)}, lossless=True)
    assert decode(explorer)[0, 0].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="two is refused"):
        explorer.controls["number"].value = 2
    (stored,) = explorer.errors.outputs
    assert (stored["output_type"], stored["ename"]) == ("error", "ValueError")
    assert stored["evalue"] == "two is refused" and "ValueError" in stored["traceback"][-1]
    explorer.controls["number"].value = 3
    assert explorer.errors.outputs == () and explorer.note.value == "number 3"
    with pytest.raises(ValueError, match="two is refused"):
        widgets.Explorer(draw, {"number": ipywidgets.IntSlider(2)})


def test_saved_notebooks_keep_the_values_and_not_the_picture(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    explorer = widgets.explore_hinge_loss()
    explorer._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert shown[0]["text/plain"].startswith("Explorer(lambda_d=250")
    assert len(shown[0]["text/plain"]) < 300


def test_encode_picture_keeps_rgb_order():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200
    for lossless in (True, False):
        data = np.frombuffer(widgets.encode_picture(picture, lossless), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR)[4, 4, 2] > 190


def test_matching_one_way_by_hand():
    first, second = pair_of_features()
    similarity = first.descriptors @ second.descriptors.T
    best, next_best = similarity.topk(2).values.unbind(1)
    clear = (2 - 2 * best).sqrt() < 0.8 * (2 - 2 * next_best).sqrt()
    for settings, kept in (
        ({}, best > -2),
        ({"ratio": 0.8}, clear),
        ({"min_similarity": float(best[7])}, best >= best[7]),
    ):
        matches, values = widgets.match_one_way(first, second, **settings)
        assert len(matches) > 0 and torch.equal(matches[:, 0], kept.nonzero()[:, 0])
        assert torch.equal(matches[:, 1], similarity.argmax(1)[kept])
        assert torch.equal(values, best[kept])
    assert 0 < clear.sum() < 40


def test_matches_are_correct_within_three_pixels():
    points = torch.zeros((3, 2))
    ends = torch.tensor([[13.0, 0.0], [13.1, 0.0], [10.0, -2.9]])
    first, second = (Features(p, torch.ones(3), None, (56, 80)) for p in (points, ends))
    shift = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
    pairs = torch.arange(3)[:, None].expand(-1, 2)
    assert widgets._correct(first, second, pairs, shift).tolist() == [True, False, True]


def test_sliders_stand_at_the_values_they_are_given_and_pass_them_on(image, monkeypatch):
    asked = []

    def homographies(number, height, width, config, rng):
        asked.append(config)
        return np.tile(np.eye(3), (number, 1, 1))

    def photometric(gray, config, rng):
        asked.append(config)
        return gray

    monkeypatch.setattr(widgets, "sample_homographies", homographies)
    monkeypatch.setattr(widgets, "augment_photometric", photometric)
    config = replace(HOMOGRAPHY_PRESETS["coco"], max_angle=float(np.deg2rad(25)))
    config = replace(config, perspective_amplitude_x=0.1, perspective_amplitude_y=0.1)
    explorer = widgets.explore_homographies(image, config)
    assert replace(asked[0], max_angle=0.0) == replace(config, max_angle=0.0)
    assert asked[0].max_angle == pytest.approx(config.max_angle)
    explorer.controls["perspective"].value = 0.3
    moved = asked[-1]
    assert (moved.perspective_amplitude_x, moved.perspective_amplitude_y) == (0.3, 0.3)
    asked.clear()
    config = widgets.PhotometricConfig(speckle_probability=(0.001, 0.004))
    widgets.explore_photometric(image, config)
    expected = replace(config, speckle_probability=(0.0, 0.004))
    assert len(asked) == widgets.TILES - 1 and asked[0] == expected


def test_pictures_are_shown_with_the_short_side_of_training():
    large = np.random.default_rng(0).random((300, 400), dtype=np.float32)
    small = widgets._small_gray(large)
    assert small.shape == (240, 320) and small.dtype == np.float32 and 0 < small.mean() < 1
    assert widgets._small_gray(large[:100]).shape == (100, 400)


def test_the_note_gives_the_range_of_scores(model, image):
    explorer = widgets.explore_detections(model, image, threshold=1e-4, max_keypoints=20)
    scores = extract(model, image, threshold=1e-4, max_keypoints=20).keypoint_scores
    told = f"{len(scores)} keypoints, scores {scores[-1]:.4f} to {scores[0]:.4f}"
    assert explorer.note.value == told


@pytest.mark.parametrize(("step", "format_"), [(1, ".0f"), (0.1, ".1f"), (0.0005, ".4f")])
def test_values_have_as_many_decimals_as_the_step(step, format_):
    assert widgets._format(step) == format_
