"""Pictures with controls for the notebooks: move a slider, see what changes.

Every ``explore_*`` function does the slow part once (a forward pass, say), draws its first picture,
and returns an :class:`Explorer`: controls above a picture that follows them while they move. The
pictures come from the same ``render_*`` and ``plot_*`` functions as the static ones.

ipywidgets is imported when the first explorer is made, so the library works without it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from superpoint_lib.adaptation import (
    AdaptConfig,
    adapt_heatmap,
    adaptation_homographies,
    heatmap_keypoints,
)
from superpoint_lib.augmentation import PhotometricConfig, augment_photometric
from superpoint_lib.evaluation.extractors import take
from superpoint_lib.evaluation.metrics import reprojection_errors
from superpoint_lib.extraction import Features, extract, extract_from_maps, match
from superpoint_lib.extraction.descriptors import passes_ratio
from superpoint_lib.geometry import (
    HomographyConfig,
    resize_short_side,
    sample_homographies,
    valid_mask,
    warp_images,
)
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.plotting import (
    Array,
    plot_hinge_loss,
    render_figure,
    render_grid,
    render_heatmap,
    render_keypoints,
    render_matches,
    to_rgb,
)
from superpoint_lib.shapes import PRIMITIVES, ShapesConfig, draw_sample

Rgb: TypeAlias = NDArray[np.uint8]
Drawing: TypeAlias = tuple[Rgb, str]
"""A picture, uint8 (H, W, 3) RGB, and a line about it."""

PICTURE_WIDTH = 640
TILE_WIDTH = 200
TILES = 6
SHORT_SIDE = 240
FORWARD = 8
CORRECT_DISTANCE = 3.0
ALL_SHAPES = "all"


class Explorer:
    """Controls above a picture that follows them.

    ``controls`` holds the ipywidgets by name, and ``controls[name].value = ...`` redraws just as a
    slider does. ``picture`` is the image widget, ``note`` the line below it, ``panel`` the whole.

    An exception while drawing is shown below the picture and stored in the state of an Output
    widget as an error, where a check of the executed notebook finds it; then it is raised again.

    Args:
        draw: called with the values of the controls by name.
        controls: {name: ipywidget with a ``value``}.
        lossless: encode PNG (for charts) instead of JPEG (for photographs).

    Raises:
        Whatever ``draw`` raises for the first values.
    """

    def __init__(
        self, draw: Callable[..., Drawing], controls: Mapping[str, Any], lossless: bool = False
    ) -> None:
        ipywidgets = _ipywidgets()
        self.draw = draw
        self.controls = dict(controls)
        self.lossless = lossless
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap")
        self.picture = ipywidgets.Image(
            format="png" if lossless else "jpeg",
            layout=ipywidgets.Layout(
                max_width="100%", object_fit="contain", align_self="flex-start"
            ),
        )
        self.note = ipywidgets.Label()
        self.errors = ipywidgets.Output()
        self.panel = ipywidgets.VBox(
            [
                ipywidgets.Box(list(self.controls.values()), layout=row),
                self.picture,
                self.note,
                self.errors,
            ]
        )
        self._show()
        for control in self.controls.values():
            control.observe(self._follow, names="value")

    @property
    def values(self) -> dict[str, Any]:
        """The current value of each control."""
        return {name: control.value for name, control in self.controls.items()}

    def _show(self) -> None:
        picture, note = self.draw(**self.values)
        self.picture.value = encode_picture(picture, self.lossless)
        self.note.value = note

    def _follow(self, change: object) -> None:
        try:
            self._show()
        except Exception as error:
            self.errors.outputs = (
                {
                    "output_type": "error",
                    "ename": type(error).__name__,
                    "evalue": str(error),
                    "traceback": traceback.format_exc().splitlines(),
                },
            )
            raise
        self.errors.outputs = ()

    def __repr__(self) -> str:
        """The values, which is what a saved notebook keeps of the controls."""
        return f"Explorer({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # The panel's own text form would put the encoded picture into the notebook as text.
        bundle = self.panel._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        display({**data, "text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]


def encode_picture(picture: Rgb, lossless: bool = False) -> bytes:
    """Encode uint8 (H, W, 3) RGB as JPEG, or as PNG when ``lossless``."""
    kind, options = (".png", []) if lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88])
    _, data = cv2.imencode(kind, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return bytes(data)


# Controls -----------------------------------------------------------------------------------------


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            "the explore_* functions need ipywidgets: pip install 'superpoint-lib[notebooks]'"
        ) from error
    return ipywidgets


def _options(description: str) -> dict[str, Any]:
    """Layout shared by all controls: aligned in columns, descriptions in full."""
    return {
        "description": description,
        # Without one the browser shows "null" over the label.
        "tooltip": description,
        "style": {"description_width": "180px"},
        "layout": _ipywidgets().Layout(width="410px"),
    }


def _slider(description: str, value: float, low: float, high: float, step: float) -> Any:
    return _ipywidgets().FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        readout_format=_format(step),
        **_options(description),
    )


def _log_slider(description: str, value: float, low: int, high: int) -> Any:
    """A slider over powers of ten, from 10**low to 10**high."""
    return _ipywidgets().FloatLogSlider(
        value=value, min=low, max=high, step=0.001, readout_format=".3g", **_options(description)
    )


def _int_slider(description: str, value: int, low: int, high: int, step: int = 1) -> Any:
    return _ipywidgets().IntSlider(
        value=min(max(value, low), high), min=low, max=high, step=step, **_options(description)
    )


def _range(
    description: str, value: tuple[float, float], low: float, high: float, step: float
) -> Any:
    return _ipywidgets().FloatRangeSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        readout_format=_format(step),
        **_options(description),
    )


def _format(step: float) -> str:
    """As many decimals as the step has: a range of two longer numbers would be cut off."""
    return f".{max(0, -int(np.floor(np.log10(step) + 1e-9)))}f"


def _checkbox(description: str, value: bool) -> Any:
    options = _options(description)
    options["style"] = {"description_width": "initial"}
    return _ipywidgets().Checkbox(value=value, **options)


def _dropdown(description: str, value: str, choices: tuple[str, ...]) -> Any:
    return _ipywidgets().Dropdown(value=value, options=choices, **_options(description))


# Explorers ----------------------------------------------------------------------------------------


def explore_detections(
    model: nn.Module,
    image: Array,
    threshold: float = 0.005,
    nms_radius: int = 4,
    max_keypoints: int = 1000,
    subpixel: bool = True,
) -> Explorer:
    """Explore what follows the network in detection; used in notebook 00.

    The network runs once; a change only suppresses, selects and draws.

    Args:
        model: a MagicPoint or SuperPoint.
        image: (H, W) float in [0, 1] or uint8, gray or RGB.
        threshold: first least score, in [0.0001, 1].
        nms_radius: first radius of non-maximum suppression in pixels, in 0..16.
        max_keypoints: first largest number of keypoints, in 0..2000.
        subpixel: first setting of the refinement by soft-argmax.

    Returns:
        The explorer, controls named as the arguments of ``extract``.
    """
    background = to_rgb(image)
    maps = _detector_maps(model, image)
    size = (background.shape[0], background.shape[1])

    def draw(threshold: float, nms_radius: int, max_keypoints: int, subpixel: bool) -> Drawing:
        (features,) = extract_from_maps(
            maps,
            [size],
            max_keypoints=max_keypoints,
            threshold=threshold,
            nms_radius=nms_radius,
            subpixel=subpixel,
        )
        scores = features.keypoint_scores
        picture = render_keypoints(background, features.keypoints, scores, width=PICTURE_WIDTH)
        span = f", scores {scores[-1]:.4f} to {scores[0]:.4f}" if len(features) else ""
        return picture, f"{len(features)} keypoints{span}"

    return Explorer(
        draw,
        {
            "threshold": _log_slider("score threshold", threshold, -4, 0),
            "nms_radius": _int_slider("NMS radius (px)", nms_radius, 0, 16),
            "max_keypoints": _int_slider("keypoints at most", max_keypoints, 0, 2000, 10),
            "subpixel": _checkbox("sub-pixel positions", subpixel),
        },
    )


def explore_adaptation(
    model: nn.Module,
    image: Array,
    config: AdaptConfig | None = None,
    rng: np.random.Generator | None = None,
) -> Explorer:
    """Explore how responses add up over homographies; used in notebook 03.

    All warps are run once, one response each; a change only adds up and selects.

    Args:
        model: a MagicPoint or SuperPoint.
        image: (H, W) float in [0, 1] or uint8, gray or RGB.
        config: how to adapt; ``warps`` is the largest number on the slider. 32 warps by default.
        rng: draws the homographies; seed 0 by default.

    Returns:
        The explorer, with controls ``warps``, ``aggregation``, ``threshold``, ``response``.
    """
    config = config or AdaptConfig(warps=32)
    background = to_rgb(image)
    heatmaps = running_heatmaps(model, background, config, rng or np.random.default_rng(0))

    def draw(warps: int, aggregation: str, threshold: float, response: bool) -> Drawing:
        heatmap = heatmaps[aggregation][warps - 1]
        (features,) = heatmap_keypoints(heatmap[None], replace(config, threshold=threshold))
        canvas = render_heatmap(background, heatmap) if response else background
        picture = render_keypoints(
            canvas, features.keypoints, features.keypoint_scores, width=PICTURE_WIDTH
        )
        return picture, f"{len(features)} keypoints from {warps} warps"

    return Explorer(
        draw,
        {
            "warps": _int_slider("number of warps", min(10, config.warps), 1, config.warps),
            "aggregation": _dropdown("aggregation", config.aggregation, ("mean", "max")),
            "threshold": _log_slider("response threshold", config.threshold, -4, 0),
            "response": _checkbox("show the response", True),
        },
    )


def explore_matches(
    features0: Features,
    features1: Features,
    image0: Array,
    image1: Array,
    H_0to1: Array | None = None,
    max_keypoints: int = 500,
) -> Explorer:
    """Explore what each filter does to matches; used in notebook 00.

    Args:
        features0: N0 keypoints with descriptors, highest score first.
        features1: N1 keypoints with descriptors.
        image0: (H0, W0) float in [0, 1] or uint8, gray or RGB.
        image1: (H1, W1) likewise.
        H_0to1: (3, 3), image-0 pixels to image-1 pixels; matches within 3 px of it are drawn as
            correct.
        max_keypoints: first number of keypoints used of each image.

    Returns:
        The explorer, with controls ``mutual``, ``ratio``, ``min_similarity``, ``max_keypoints``.

    Raises:
        ValueError: features without descriptors.
    """
    if features0.descriptors is None or features1.descriptors is None:
        raise ValueError(
            "matches need descriptors: extract with a SuperPoint, a MagicPoint has none"
        )
    pictures = to_rgb(image0), to_rgb(image1)

    def draw(mutual: bool, ratio: float, min_similarity: float, max_keypoints: int) -> Drawing:
        top0, top1 = (take(one, slice(max_keypoints)) for one in (features0, features1))
        find = match if mutual else match_one_way
        # At their neutral ends, the sliders switch the tests off.
        matches, _ = find(top0, top1, ratio if ratio < 1 else None, min_similarity or None)
        correct = None if H_0to1 is None else _correct(top0, top1, matches, H_0to1)
        picture = render_matches(
            *pictures, top0.keypoints, top1.keypoints, matches, correct, width=2 * PICTURE_WIDTH
        )
        note = f"{len(matches)} matches"
        if correct is not None:
            note += f", {int(correct.sum())} correct"
        return picture, note

    most = max(len(features0), len(features1), 1)
    return Explorer(
        draw,
        {
            "mutual": _checkbox("mutual nearest neighbours only", True),
            "ratio": _slider("distance ratio", 1.0, 0.5, 1.0, 0.01),
            "min_similarity": _slider("least similarity", 0.0, 0.0, 1.0, 0.01),
            "max_keypoints": _int_slider("keypoints per image", max_keypoints, 1, most),
        },
    )


def explore_shapes(config: ShapesConfig | None = None, seed: int = 0) -> Explorer:
    """Explore the synthetic shapes; used in notebook 01.

    Args:
        config: how to draw them; by default as for training.
        seed: of the drawing.

    Returns:
        The explorer, with controls ``primitive``, ``first``, ``min_contrast``, ``keypoints``.
    """
    base = config or ShapesConfig()

    def draw(primitive: str, first: int, min_contrast: int, keypoints: bool) -> Drawing:
        chosen = replace(base, min_contrast=min_contrast)
        if primitive != ALL_SHAPES:
            chosen = replace(chosen, primitives=(primitive,), primitive_weights=(1.0,))
        samples = [draw_sample(index, chosen, seed) for index in range(first, first + 8)]
        tiles = [
            render_keypoints(image, corners, width=TILE_WIDTH) if keypoints else image
            for image, corners, _ in samples
        ]
        picture = render_grid(tiles, [name for _, _, name in samples], width=4 * TILE_WIDTH)
        return picture, f"{sum(len(corners) for _, corners, _ in samples)} corners"

    return Explorer(
        draw,
        {
            "primitive": _dropdown("shape", ALL_SHAPES, (ALL_SHAPES, *PRIMITIVES)),
            "first": _int_slider("first picture", 0, 0, 400, 8),
            "min_contrast": _int_slider("least contrast", base.min_contrast, 0, 40),
            "keypoints": _checkbox("show corners", True),
        },
    )


def explore_homographies(
    image: Array, config: HomographyConfig | None = None, seed: int = 0
) -> Explorer:
    """Explore random homographies; used in notebook 03.

    Args:
        image: (H, W) float in [0, 1] or uint8, gray or RGB; shown in gray.
        config: the first values.
        seed: of the random numbers, which stay the same while the sliders move.

    Returns:
        The explorer, with controls ``perspective``, ``scale``, ``max_angle`` (degrees),
        ``patch_ratio``, ``translation``, ``allow_artifacts``, ``seed``.
    """
    base = config or HomographyConfig()
    gray = _small_gray(image)
    height, width = gray.shape
    tensor = torch.from_numpy(gray)[None, None]

    def draw(
        perspective: float,
        scale: float,
        max_angle: int,
        patch_ratio: float,
        translation: bool,
        allow_artifacts: bool,
        seed: int,
    ) -> Drawing:
        chosen = replace(
            base,
            perspective_amplitude_x=perspective,
            perspective_amplitude_y=perspective,
            scale_amplitude=scale,
            max_angle=float(np.deg2rad(max_angle)),
            patch_ratio=patch_ratio,
            translation=translation,
            allow_artifacts=allow_artifacts,
        )
        rng = np.random.default_rng(seed)
        homographies = sample_homographies(TILES - 1, height, width, chosen, rng)
        warped = warp_images(tensor, homographies)[:, 0].numpy()
        seen = float(valid_mask(homographies, height, width).mean())
        note = f"{100 * seen:.0f} % of the warped pixels show the image"
        return _with_original(gray, list(warped), "warp"), note

    return Explorer(
        draw,
        {
            "perspective": _slider(
                "perspective amplitude", base.perspective_amplitude_x, 0.0, 0.4, 0.01
            ),
            "scale": _slider(
                "scale amplitude",
                base.scale_amplitude,
                0.0,
                max(0.8, base.scale_amplitude),  # a slider silently moves a value beyond its end
                0.01,
            ),
            "max_angle": _int_slider(
                "largest angle (degrees)", round(np.rad2deg(base.max_angle)), 0, 180
            ),
            "patch_ratio": _slider("patch ratio", base.patch_ratio, 0.3, 1.0, 0.01),
            "translation": _checkbox("translation", base.translation),
            "allow_artifacts": _checkbox("may leave the image", base.allow_artifacts),
            "seed": _int_slider("seed", seed, 0, 50),
        },
    )


def explore_photometric(
    image: Array, config: PhotometricConfig | None = None, seed: int = 0
) -> Explorer:
    """Explore photometric augmentation; used in notebook 01.

    Args:
        image: (H, W) float in [0, 1] or uint8, gray or RGB; shown in gray with a short side of 240
            pixels, the size that training sees.
        config: the first values.
        seed: of the random numbers, which stay the same while the sliders move.

    Returns:
        The explorer, with controls named as the fields of ``PhotometricConfig`` (of
        ``speckle_probability``, the upper end), and ``seed``. An
        effect is left out where its control is at "no change".
    """
    base = config or PhotometricConfig()
    gray = _small_gray(image)

    def draw(seed: int, speckle_probability: float, **others: Any) -> Drawing:
        chosen = replace(base, speckle_probability=(0.0, speckle_probability), **others)
        variants = [
            augment_photometric(gray, chosen, np.random.default_rng([seed, index]))
            for index in range(TILES - 1)
        ]
        spread = np.mean([variant.std() for variant in variants])
        note = f"standard deviation {255 * gray.std():.0f} gray levels, then {255 * spread:.0f}"
        return _with_original(gray, variants, "variant"), note

    return Explorer(
        draw,
        {
            "brightness_change": _slider(
                "brightness (gray levels)", base.brightness_change, 0, 128, 1
            ),
            "contrast_range": _range("contrast factor", base.contrast_range, 0, 3, 0.1),
            "noise_sigma": _range("noise (gray levels)", base.noise_sigma, 0, 50, 1),
            "speckle_probability": _slider(
                "speckle at most", base.speckle_probability[1], 0, 0.05, 0.0005
            ),
            "shade_transparency": _range("shade strength", base.shade_transparency, -1, 1, 0.1),
            "motion_kernel": _int_slider("motion blur (px)", base.motion_kernel, 1, 25, 2),
            "seed": _int_slider("seed", seed, 0, 50),
        },
    )


def explore_hinge_loss(
    lambda_d: float = 250.0,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    positive_similarity: float = 0.8,
    negative_similarity: float = 0.25,
) -> Explorer:
    """Explore the weights and margins of the descriptor hinge loss; used in notebook 04.

    Args:
        lambda_d: first weight of corresponding pairs.
        positive_margin: first margin of corresponding pairs.
        negative_margin: first margin of the other pairs.
        positive_similarity: first similarity taken for all corresponding pairs.
        negative_similarity: first similarity taken for all other pairs.

    Returns:
        The explorer, controls named as the arguments of ``plot_hinge_loss``.
    """
    figure = plot_hinge_loss()

    def draw(**values: Any) -> Drawing:
        picture = render_figure(plot_hinge_loss(**values, figure=figure))
        return picture, "30 x 40 cells: 1200 corresponding pairs, 1200 x 1199 others"

    return Explorer(
        draw,
        {
            "lambda_d": _log_slider("lambda_d", lambda_d, -2, 3),
            "positive_margin": _slider("positive margin", positive_margin, 0.0, 1.0, 0.01),
            "negative_margin": _slider("negative margin", negative_margin, -0.5, 1.0, 0.01),
            "positive_similarity": _slider(
                "similarity, corresponding", positive_similarity, -1.0, 1.0, 0.01
            ),
            "negative_similarity": _slider(
                "similarity, others", negative_similarity, -1.0, 1.0, 0.01
            ),
        },
        lossless=True,
    )


# What the explorers compute -----------------------------------------------------------------------


def _detector_maps(model: nn.Module, image: Array) -> dict[str, torch.Tensor]:
    """What the network answers inside ``extract``, which pads the image; without descriptors."""
    answers: list[dict[str, torch.Tensor]] = []
    with model.register_forward_hook(lambda module, images, maps: answers.append(maps)):
        extract(model, image, max_keypoints=0)
    return {"logits": answers[0]["logits"].cpu()}


def match_one_way(
    features0: Features,
    features1: Features,
    ratio: float | None = None,
    min_similarity: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match every descriptor of image 0 to its nearest one of image 1: ``match`` but not mutual.

    Args:
        features0: with descriptors (N0, D) of unit length; N0 may be 0.
        features1: with descriptors (N1, D).
        ratio: keep a match only if its distance is below ``ratio`` times that to the second nearest
            in image 1; None for no test.
        min_similarity: keep a match only from this similarity on; None for no test.

    Returns:
        matches (M, 2) int64 and similarity (M,).
    """
    if not len(features0) or not len(features1):
        return torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0)
    assert features0.descriptors is not None and features1.descriptors is not None
    table = features0.descriptors.cpu() @ features1.descriptors.cpu().T
    similarity, nearest1 = table.max(dim=1)
    keep = torch.ones(len(table), dtype=torch.bool)
    if ratio is not None:
        keep &= passes_ratio(table, ratio)
    if min_similarity is not None:
        keep &= similarity >= min_similarity
    index0 = torch.arange(len(table))
    return torch.stack([index0, nearest1], dim=1)[keep], similarity[keep]


def _gray_tensor(rgb: Rgb, device: torch.device) -> torch.Tensor:
    """(1, 1, H, W) float32 in [0, 1]."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(gray).to(device, torch.float32)[None, None] / 255


def running_heatmaps(
    model: nn.Module, background: Rgb, config: AdaptConfig, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Aggregate the responses of the first 1, 2, ... N warps.

    Args:
        model: a MagicPoint or SuperPoint.
        background: uint8 (H, W, 3), any size; padded by replication to multiples of 8.
        config: ``warps`` is N; ``aggregation`` and ``filter_counts`` play no part.
        rng: draws the homographies.

    Returns:
        {"mean": (N, H, W), "max": (N, H, W)} float32; entry n - 1 is what ``adapt_heatmap`` gives
        for the first n homographies.
    """
    height, width = background.shape[:2]
    image = _gray_tensor(background, next(model.parameters()).device)
    image = functional.pad(image, (0, -width % CELL_SIZE, 0, -height % CELL_SIZE), mode="replicate")
    padded = image.shape[-2], image.shape[-1]
    homographies = adaptation_homographies(config.warps, *padded, config.homography, rng)
    shape = (len(homographies), height, width)
    heatmaps, counts = torch.zeros(shape), torch.zeros(shape)
    # Every warp at all sizes, or each at its own.
    turns = [config.sizes] if config.agree else [(size,) for size in config.sizes]
    for turn, sizes in enumerate(turns):
        single = replace(config, aggregation="mean", filter_counts=0, sizes=sizes)
        indices = range(turn, len(homographies), len(turns))
        for some in (list(indices[i : i + FORWARD]) for i in range(0, len(indices), FORWARD)):
            # Copies of the image with one homography each: responses that are not added up.
            copies = image.expand(len(some), -1, -1, -1)
            heatmap, count = adapt_heatmap(model, copies, homographies[some, None], single)
            heatmaps[some] = heatmap[:, :height, :width].cpu()
            counts[some] = count[:, :height, :width].cpu()
    responses = heatmaps * counts
    means = responses.cumsum(0) / counts.cumsum(0).clamp_min(1e-6)
    return {"mean": means, "max": responses.cummax(0).values}


def _correct(
    features0: Features, features1: Features, matches: torch.Tensor, H_0to1: Array
) -> NDArray[np.bool_]:
    points0 = features0.keypoints[matches[:, 0]].cpu().numpy()
    points1 = features1.keypoints[matches[:, 1]].cpu().numpy()
    errors = reprojection_errors(points0, points1, np.asarray(H_0to1))
    return np.asarray(errors <= CORRECT_DISTANCE)


def _small_gray(image: Array) -> NDArray[np.float32]:
    """The image as float32 gray with a short side of at most 240 pixels."""
    gray = cv2.cvtColor(to_rgb(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    if min(gray.shape) > SHORT_SIDE:
        gray, _ = resize_short_side(gray, SHORT_SIDE)
    return gray


def _with_original(image: NDArray[Any], others: Sequence[NDArray[Any]], name: str) -> Rgb:
    titles = ["image", *(f"{name} {i + 1}" for i in range(len(others)))]
    return render_grid([image, *others], titles, columns=3, width=4 * TILE_WIDTH)
