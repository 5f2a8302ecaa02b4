"""How well a detector finds known corners: precision, recall, localisation.

Detections are matched to labelled corners one to one, the most confident first, and precision and
recall are taken over all pictures together (the evaluation of MagicPoint, DeTone et al. 2018,
section 4). Derived in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS, augment_photometric
from superpoint_lib.shapes import SHAPES_PRESETS, ShapesConfig, draw_shape

Detector = Callable[[NDArray[np.float32]], tuple[NDArray[np.floating], NDArray[np.floating]]]
"""An image, float32 (H, W) in [0, 1], gives keypoints (N, 2) as (x, y) and scores (N,)."""

_CURVE_POINTS = 101
# The last number of a seed sequence that names its use; a zero would be dropped as padding.
_DRAWING_STREAM, _NOISE_STREAM = 1, 2


@dataclass(frozen=True)
class Detections:
    """The matched detections of a set of pictures.

    Attributes:
        scores: (M,) of all detections of all pictures.
        errors: (M,) distance in pixels to the matched corner, NaN for false positives.
        corners: number of labelled corners.
        images: number of pictures.
    """

    scores: NDArray[np.float64]
    errors: NDArray[np.float64]
    corners: int
    images: int

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(M,) true where the detection has a corner of its own."""
        return ~np.isnan(self.errors)


def match_detections(
    keypoints: NDArray[np.floating],
    scores: NDArray[np.floating],
    corners: NDArray[np.floating],
    distance: float,
) -> NDArray[np.float64]:
    """Match detections to labelled corners: greedy by score, one to one.

    The most confident detection takes the nearest corner within `distance`, the next one the
    nearest that is left, and so on. Computed in rounds: every detection without a corner asks for
    the nearest one that no better detection holds, every corner keeps the best that asked. When
    nobody asks any more, that is the greedy result.

    Args:
        keypoints: (N, 2) as (x, y), pixels.
        scores: (N,), any range; equal scores count as ordered by their place in the list.
        corners: (K, 2) the labels.
        distance: largest distance of a match in pixels, inclusive.

    Returns:
        (N,) float64, the distance to the matched corner in pixels, NaN where there is none.

    Raises:
        ValueError: shapes that do not fit together.

    Derived in notebook 02.
    """
    keypoints, corners = np.asarray(keypoints, np.float64), np.asarray(corners, np.float64)
    if keypoints.shape != (len(scores), 2) or corners.shape[1:] != (2,):
        raise ValueError(
            f"need keypoints (N, 2), scores (N,) and corners (K, 2); got {keypoints.shape}, "
            f"{np.shape(scores)} and {corners.shape}"
        )
    errors = np.full(len(keypoints), np.nan)
    if not len(keypoints) or not len(corners):
        return errors
    order = np.argsort(-np.asarray(scores), kind="stable")
    gaps = np.linalg.norm(keypoints[order, None] - corners, axis=-1)
    near = np.flatnonzero((gaps <= distance).any(axis=1))
    gaps, order = np.where(gaps[near] <= distance, gaps[near], np.inf), order[near]
    rank = np.arange(len(near))[:, None]
    holder = np.full(len(corners), len(near))  # rank of the detection that holds each corner
    while True:
        options = np.where(rank < holder, gaps, np.inf)
        asking = np.isfinite(options).any(axis=1) & ~np.isin(rank[:, 0], holder)
        if not asking.any():
            break
        np.minimum.at(holder, options[asking].argmin(axis=1), rank[asking, 0])
    held = np.flatnonzero(holder < len(near))
    errors[order[holder[held]]] = gaps[holder[held], held]
    return errors


def match_images(
    predictions: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
    labels: Sequence[NDArray[np.floating]],
    distance: float,
) -> Detections:
    """Match the detections of every picture and put them together.

    Args:
        predictions: (keypoints (N, 2), scores (N,)) of each picture.
        labels: corners (K, 2) of each picture; K may be 0.
        distance: largest distance of a match in pixels.

    Returns:
        The detections of all pictures.

    Raises:
        ValueError: not as many predictions as labels.

    Derived in notebook 02.
    """
    scores: list[NDArray[np.floating]] = [np.zeros(0)]
    errors: list[NDArray[np.floating]] = [np.zeros(0)]
    for (keypoints, its_scores), corners in zip(predictions, labels, strict=True):
        scores.append(np.asarray(its_scores))
        points = np.asarray(keypoints).reshape(-1, 2)
        errors.append(match_detections(points, scores[-1], corners, distance))
    corners_in_all = sum(len(corners) for corners in labels)
    return Detections(np.concatenate(scores), np.concatenate(errors), corners_in_all, len(labels))


def precision_recall(
    detections: Detections,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall of the detections at or above each score.

    precision = TP / (TP + FP), recall = TP / corners, counted at every distinct score.

    Args:
        detections: from `match_images`.

    Returns:
        precision (T,), recall (T,), thresholds (T,), from the highest score down. Recall is NaN
        when there are no corners at all.

    Convention: detections of equal score come in together, so that their order cannot matter.

    Derived in notebook 02.
    """
    order = np.argsort(-detections.scores, kind="stable")
    scores = detections.scores[order]
    last_of_score = np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])
    found = np.cumsum(detections.correct[order])[last_of_score].astype(np.float64)
    recall = found / (detections.corners if detections.corners else np.nan)
    return found / (last_of_score + 1), recall, scores[last_of_score]


def average_precision(detections: Detections) -> float:
    """Area under the precision-recall curve: AP = sum_n (R_n - R_(n-1)) P_n.

    Corners that no detection matches count as missed: recall ends below 1 and the rest of the
    area is lost. Without misses this is scikit-learn's ``average_precision_score``.

    Args:
        detections: from `match_images`.

    Returns:
        A number in [0, 1], NaN when there are no corners.

    Convention: no interpolation. The published evaluation replaces P_n by the best precision at
    any higher recall, which gives the same or slightly more.

    Derived in notebook 02.
    """
    precision, recall, _ = precision_recall(detections)
    if not detections.corners:
        return float("nan")
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def localization_error(detections: Detections) -> float:
    """Mean distance in pixels between matched detections and their corners, NaN without any."""
    matched = detections.errors[detections.correct]
    return float(matched.mean()) if len(matched) else float("nan")


def shapes_test_set(
    primitive: str,
    images: int,
    noise: bool,
    seed: int = 0,
    config: ShapesConfig = SHAPES_PRESETS["default"],
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Draw the test pictures of one primitive, with or without photometric noise.

    Args:
        primitive: one of `superpoint_lib.shapes.PRIMITIVES`.
        images: how many.
        noise: change the gray levels by the "synthetic" preset; the drawing is the same either way.
        seed: of the set. No picture is one of `draw_sample`'s, whatever its seed.
        config: how the shapes are drawn.

    Yields:
        image float32 (H, W) in [0, 1] and corners float32 (K, 2).
    """
    name = int.from_bytes(primitive.encode(), "little")
    for i in range(images):
        rng = np.random.default_rng((seed, name, i, _DRAWING_STREAM))
        image, corners = draw_shape(primitive, config, rng)
        if noise:
            rng = np.random.default_rng((seed, name, i, _NOISE_STREAM))
            image = augment_photometric(image, PHOTOMETRIC_PRESETS["synthetic"], rng)
        yield image, corners


def evaluate_detectors_on_shapes(
    detectors: Mapping[str, Detector],
    images_per_primitive: int = 200,
    noise: bool = False,
    seed: int = 0,
    distances: Sequence[float] = (4.0, 2.0),
    config: ShapesConfig = SHAPES_PRESETS["default"],
) -> dict[str, Any]:
    """Measure detectors on freshly drawn shapes that no training sees.

    Args:
        detectors: by name. Each gets every picture once.
        images_per_primitive: pictures drawn of each of `config.primitives`; those without
            keypoints count too, every detection on them is a false positive.
        noise: with the photometric changes of the "synthetic" preset.
        seed: of the test set.
        distances: largest distances of a match, in pixels.
        config: how the shapes are drawn.

    Returns:
        Plain numbers, lists and dictionaries for JSON, None where a figure is undefined:
        ``{"images_per_primitive", "noise", "seed", "size", "detectors": {name: {distance:
        figures}}}``, where figures are ``average_precision``, ``localization_error`` (pixels),
        ``recall``, ``detections_per_image``, ``curve`` (``{"precision", "recall"}``, at most 101
        points each), ``primitives``: the same figures, without the curve, for each primitive, and
        ``in_proportion``: the same of pictures in the proportions of `config.primitive_weights`.

    Convention: one curve over the detections of all pictures, not a mean of curves. As many
    pictures of each primitive; the published evaluation has fewer ellipses and pictures of noise,
    on which all detections are wrong: ``in_proportion`` is to be compared with it. It also drops
    scores below 1e-4, which means something for probabilities alone; here a detector drops what
    it will.

    Derived in notebook 02.
    """
    found: dict[str, dict[str, list[Any]]] = {
        name: {primitive: [] for primitive in config.primitives} for name in detectors
    }
    labels: dict[str, list[NDArray[np.floating]]] = {p: [] for p in config.primitives}
    most = max(config.primitive_weights)
    shares = {p: w / most for p, w in zip(config.primitives, config.primitive_weights, strict=True)}
    for primitive in config.primitives:
        for image, corners in shapes_test_set(primitive, images_per_primitive, noise, seed, config):
            labels[primitive].append(corners)
            for name, detector in detectors.items():
                found[name][primitive].append(detector(image))
    return {
        "images_per_primitive": images_per_primitive,
        "noise": noise,
        "seed": seed,
        "size": [config.height, config.width],
        "detectors": {
            name: {
                f"{distance:g}": _figures(found[name], labels, distance, shares)
                for distance in distances
            }
            for name in detectors
        },
    }


def _figures(
    found: Mapping[str, list[Any]],
    labels: Mapping[str, list[NDArray[np.floating]]],
    distance: float,
    shares: Mapping[str, float],
) -> dict[str, Any]:
    parts = {p: match_images(found[p], labels[p], distance) for p in labels}
    everything = _together(parts.values())
    counts = {p: round(len(labels[p]) * share) for p, share in shares.items()}
    in_proportion = _together(
        match_images(found[p][:count], labels[p][:count], distance) for p, count in counts.items()
    )
    return {
        **_summary(everything),
        "curve": _curve(everything),
        "primitives": {primitive: _summary(part) for primitive, part in parts.items()},
        "in_proportion": _summary(in_proportion),
    }


def _together(parts: Iterable[Detections]) -> Detections:
    parts = list(parts)
    return Detections(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.errors for part in parts]),
        sum(part.corners for part in parts),
        sum(part.images for part in parts),
    )


def _summary(detections: Detections) -> dict[str, float | None]:
    recall = detections.correct.sum() / detections.corners if detections.corners else np.nan
    figures = {
        "average_precision": average_precision(detections),
        "localization_error": localization_error(detections),
        "recall": float(recall),
        "detections_per_image": len(detections.scores) / max(detections.images, 1),
    }
    return {key: None if np.isnan(value) else value for key, value in figures.items()}


def _curve(detections: Detections) -> dict[str, list[float]]:
    """The precision-recall curve, thinned to points evenly spread along the ranking's recall."""
    precision, recall, _ = precision_recall(detections)
    if not len(recall) or not detections.corners:
        return {"precision": [], "recall": []}
    wanted = np.linspace(recall[0], recall[-1], _CURVE_POINTS)
    chosen = np.unique(np.searchsorted(recall, wanted).clip(0, len(recall) - 1))
    return {
        "precision": np.round(precision[chosen], 4).tolist(),
        "recall": np.round(recall[chosen], 4).tolist(),
    }
