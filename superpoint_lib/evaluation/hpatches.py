"""HPatches: detectors and descriptors measured on image sequences with known homographies.

A folder of sequences (``i_*`` illumination, ``v_*`` viewpoint; Balntas et al., "HPatches",
CVPR 2017) goes in, a table comes out: repeatability, localisation error, homography accuracy and
its AUC, share of correct matches, matching score and nearest-neighbour mAP, with bootstrap
intervals. What published evaluations do differently (sizes, NMS, which points are kept) is data, a
:class:`ProtocolConfig`; every extractor runs through the same code::

    sequences = load_sequences("data/hpatches")
    results = evaluate({"ours": superpoint_extractor(model)}, sequences, "rpautrat")
    print(results.table())

Derived in notebook 06.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from superpoint_lib.evaluation import metrics
from superpoint_lib.evaluation.kept import KeptRecords, sequence_digest
from superpoint_lib.evaluation.protocols import (
    PROTOCOLS,
    ProtocolConfig,
    TaskConfig,
    protocol_config,
)
from superpoint_lib.evaluation.results import KEYS, Record, Results, compare, shortened
from superpoint_lib.extraction import (
    Features,
    box_nms,
    decode_heatmap,
    extract_from_maps,
    match,
    network_maps,
    nms,
    sample_descriptors,
    soft_argmax,
)
from superpoint_lib.geometry import (
    invert_homographies,
    mean_corner_error,
    resize_and_crop,
    resize_short_side,
    transform_homography,
    turn_and_zoom,
)
from superpoint_lib.model import Precision
from superpoint_lib.multiscale import extract_multiscale
from superpoint_lib.paths import UnreadableImageError, list_images, read_gray
from superpoint_lib.refinement import refine_matches

Image = NDArray[np.float32]
Homography = NDArray[np.float64]
Split = Literal["illumination", "viewpoint"]
_SPLITS: dict[str, Split] = {"i": "illumination", "v": "viewpoint"}
_LINK_HINT = (
    "expected one folder per sequence, named i_* or v_*, with images 1 to 6 (any extension OpenCV "
    "reads) and homographies H_1_2 to H_1_6; download HPatches (hpatches-sequences-release, "
    "https://github.com/hpatches/hpatches-dataset) and link it: "
    "ln -s /path/to/hpatches data/hpatches; of pictures of your own "
    "evaluation.mini.warped_pairs(source=folder) makes such folders"
)

__all__ = [
    "PROTOCOLS",
    "Extractor",
    "HPatchesSequence",
    "MatchedPair",
    "ProtocolConfig",
    "Refined",
    "Results",
    "TaskConfig",
    "compare",
    "evaluate",
    "inspect_pair",
    "load_sequences",
    "plain_extractor",
    "prepare_image",
    "random_extractor",
    "refine_by_ransac",
    "superpoint_extractor",
]

# --- sequences --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HPatchesSequence:
    """One scene: a reference image, other images of it, and the homographies between them.

    Attributes:
        name: Folder name, ``i_*`` or ``v_*``.
        image_paths: The reference first.
        homographies: (len(image_paths) - 1, 3, 3) float64, reference pixels to image-k pixels.
    """

    name: str
    image_paths: tuple[Path, ...]
    homographies: NDArray[np.float64]

    @property
    def split(self) -> Split:
        """ "illumination" or "viewpoint", from the name's first letter."""
        return _SPLITS[self.name[0]]


def load_sequences(folder: str | Path) -> list[HPatchesSequence]:
    """Find the sequences of a folder in the HPatches layout.

    Args:
        folder: Holds one folder per sequence, ``i_*`` or ``v_*`` (soft links are followed), each
            with images ``1``, ``2``, ... (any extension OpenCV reads) and text files ``H_1_2``, ...
            HPatches has six images in each.

    Returns:
        The sequences sorted by name. Pictures are not read yet.

    Raises:
        FileNotFoundError: No such folder, no sequence in it, or a file missing: every sequence
            must have as many images as the longest one, and the message names what lacks.
        ValueError: A homography file that is not an invertible 3 x 3 matrix, by name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: {_LINK_HINT}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[:2] in ("i_", "v_"))
    if not folders:
        raise FileNotFoundError(f"no sequences in {root}: {_LINK_HINT}")
    pictures = {sequence: _numbered_images(sequence) for sequence in folders}
    count = max([2, *(number for found in pictures.values() for number in found)])
    missing = [
        name for sequence in folders for name in _missing(sequence, pictures[sequence], count)
    ]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {len(missing)} files of sequences with {count} images: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return [_load_sequence(sequence, pictures[sequence], count) for sequence in folders]


def _numbered_images(folder: Path) -> dict[int, Path]:
    """Images by number; of "1.png" and "1.ppm" the first in the alphabet counts."""
    paths = reversed(list_images(folder, recursive=False))
    return {int(path.stem): path for path in paths if path.stem.isdecimal()}


def _missing(folder: Path, found: dict[int, Path], count: int) -> list[str]:
    pictures = [f"{folder.name}/{k}.*" for k in range(1, count + 1) if k not in found]
    matrices = [f"{folder.name}/H_1_{k}" for k in range(2, count + 1)]
    return pictures + [name for name in matrices if not (folder.parent / name).is_file()]


def _load_sequence(folder: Path, found: dict[int, Path], count: int) -> HPatchesSequence:
    homographies = [_read_homography(folder / f"H_1_{k}") for k in range(2, count + 1)]
    paths = tuple(found[k] for k in range(1, count + 1))
    return HPatchesSequence(folder.name, paths, np.stack(homographies))


def _read_homography(path: Path) -> Homography:
    try:
        H = np.loadtxt(path, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: not a text file of numbers ({error})") from error
    if H.shape != (3, 3):
        raise ValueError(f"{path}: a homography has 3 x 3 numbers, this file {H.shape}")
    try:
        invert_homographies(H)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return H


# --- extractors -------------------------------------------------------------------------------


Extractor = Callable[[Image, TaskConfig], Features]
"""An image, float32 (H, W) in [0, 1], and the protocol's knobs (``threshold``, ``nms``,
``nms_radius``, ``nms_iou``, ``border``, ``extract_keypoints``) give ``Features``, best score first,
of the same image size; ``descriptors`` None for a detector alone."""


def superpoint_extractor(
    model: torch.nn.Module,
    subpixel: bool = True,
    precision: Precision = "float32",
    scales: Sequence[float] = (1.0,),
    turned: bool = False,
    pyramid: Sequence[float] = (),
) -> Extractor:
    """Let a ``SuperPoint`` or ``MagicPoint`` take part, its knobs set by the protocol.

    Args:
        model: In the mode (train or eval) it should be measured in.
        subpixel: Refine keypoints by a soft-argmax, after suppression.
        precision: As in ``extract``; float32 by default, so that figures are the same everywhere.
        scales: More than one: as in ``extract_multiscale``.
        turned: As in ``extract_multiscale``.
        pyramid: As in ``extract_multiscale``.

    Returns:
        An ``Extractor``; a ``MagicPoint`` gives no descriptors. With several looks at an image it
        refuses protocols that suppress by boxes, with a ``ValueError``.
    """

    looks: dict[str, Any] = {"scales": scales, "turned": turned, "pyramid": pyramid}

    def extractor(image: Image, task: TaskConfig) -> Features:
        knobs: dict[str, Any] = {
            "max_keypoints": task.extract_keypoints,
            "threshold": task.threshold,
            "nms_radius": task.nms_radius,
            "border": task.border,
            "subpixel": subpixel,
            "precision": precision,
        }
        if task.nms == "box":
            if turned or pyramid or tuple(scales) != (1.0,):
                raise ValueError("suppression by boxes is for one look: choose another protocol")
            return _extract_with_boxes(model, image, task, subpixel, precision)
        return cast(Features, extract_multiscale(model, image, **looks, **knobs))

    return extractor


@torch.no_grad()
def _extract_with_boxes(
    model: torch.nn.Module, image: Image, task: TaskConfig, subpixel: bool, precision: Precision
) -> Features:
    maps, computed_in = network_maps(model, torch.from_numpy(image)[None, None], precision)
    # Descriptors are sampled after suppression: before it every pixel is a candidate.
    candidates = extract_from_maps(
        {"logits": maps["logits"]},
        [image.shape],
        max_keypoints=image.size,
        threshold=task.threshold,
        nms_radius=0,
        subpixel=False,
    )[0]
    survivors = _suppress(_best_first(candidates), task)
    last = survivors.keypoints.new_tensor(image.shape[::-1]) - 1 - task.border
    inside = (survivors.keypoints >= task.border) & (survivors.keypoints <= last)
    kept = _take(_take(survivors, inside.all(1)), slice(task.extract_keypoints))
    keypoints = kept.keypoints
    if subpixel:
        height, width = image.shape  # of the maps' padding nothing counts
        heatmap = decode_heatmap(maps["logits"])[0, :height, :width]
        keypoints = soft_argmax(heatmap, keypoints)
    descriptors = (
        sample_descriptors(maps["descriptors"][0], keypoints) if "descriptors" in maps else None
    )
    return Features(keypoints, kept.keypoint_scores, descriptors, kept.image_size, computed_in)


@dataclass(frozen=True)
class Refined:
    """An extractor whose matches are refined in both images (``refine_matches``).

    Unconfirmed matches are left out, and the others measured where they lie then; of its detector
    nothing changes. The rough homography is RANSAC's from all matches (``refine_by_ransac``).
    """

    extractor: Extractor

    def __call__(self, image: Image, task: TaskConfig) -> Features:
        """What the extractor finds."""
        return self.extractor(image, task)


def plain_extractor(function: Callable[[Image], Features], suppress: bool = False) -> Extractor:
    """Let any ``image -> Features`` function take part, such as OpenCV's extractors.

    Its best ``extract_keypoints`` keypoints count, coordinates as they are. The score threshold,
    which is meant for probabilities, does not apply.

    Args:
        function: Takes an image float32 (H, W) in [0, 1] and returns ``Features``.
        suppress: Put the protocol's NMS after it, for a detector without NMS of its own. Not for
            SIFT or ORB, which search scale space: one place may hold keypoints of several scales.

    Returns:
        An ``Extractor``.
    """

    def extractor(image: Image, task: TaskConfig) -> Features:
        features = _best_first(function(image))
        return _take(
            _suppress(features, task) if suppress else features, slice(task.extract_keypoints)
        )

    return extractor


def random_extractor(seed: int = 0, keypoints: int = 10000) -> Extractor:
    """Keypoints drawn evenly over the image: the floor every detector has to beat.

    Each image has its own points, which depend on its pixels and the seed alone.

    Args:
        seed: Non-negative.
        keypoints: Number drawn, before the protocol's suppression.

    Returns:
        An ``Extractor`` without descriptors.
    """

    def draw(image: Image) -> Features:
        rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).tobytes())])
        height, width = image.shape
        points = rng.uniform([0, 0], [width - 1, height - 1], size=(keypoints, 2))
        scores = torch.from_numpy(rng.random(keypoints).astype(np.float32))
        return Features(torch.from_numpy(points.astype(np.float32)), scores, None, (height, width))

    return plain_extractor(draw, suppress=True)


def _best_first(features: Features) -> Features:
    order = torch.argsort(features.keypoint_scores, descending=True, stable=True)
    return _take(features, order)


def _suppress(features: Features, task: TaskConfig) -> Features:
    """The protocol's NMS on features sorted best first, which they stay."""
    if task.nms_radius == 0 or len(features) == 0:
        return features
    if task.nms == "box":
        kept = box_nms(features.keypoints, features.keypoint_scores, task.nms_radius, task.nms_iou)
        return _take(features, kept)
    return _take(features, _radius_survivors(features, task.nms_radius))


def _radius_survivors(features: Features, radius: int) -> torch.Tensor:
    """Indices of the keypoints, sorted best first, that survive; distances between whole pixels."""
    height, width = features.image_size
    pixels = features.keypoints.round().long()
    x, y = pixels[:, 0].clamp(0, width - 1), pixels[:, 1].clamp(0, height - 1)
    flat = y * width + x
    # Ranks instead of scores: positive, without ties, and exact in float32.
    ranks = torch.arange(len(features), 0, -1, dtype=torch.float32, device=flat.device)
    heatmap = torch.zeros(height * width, device=flat.device)
    heatmap.scatter_reduce_(0, flat, ranks, "amax")
    survivors = nms(heatmap.reshape(1, height, width), radius).flatten()
    return torch.nonzero(survivors[flat] == ranks).flatten()


def _take(features: Features, index: torch.Tensor | slice) -> Features:
    descriptors = None if features.descriptors is None else features.descriptors[index]
    return dataclasses.replace(
        features,
        keypoints=features.keypoints[index],
        keypoint_scores=features.keypoint_scores[index],
        descriptors=descriptors,
    )


# --- one pair ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """An image as the protocol prepares it, with what an extractor found there.

    Attributes:
        image: float32 (H, W) in [0, 1].
        transform: (3, 3), pixels of the file to pixels of ``image``.
        features: All keypoints of the image, best first.
    """

    image: Image
    transform: Homography
    features: Features


@dataclass(frozen=True)
class MatchedPair:
    """Everything the descriptor metrics of a pair are made of, ready to be drawn.

    Attributes:
        image0: The prepared reference, float32 (H0, W0) in [0, 1].
        image1: The other image.
        H_0to1: (3, 3) true homography between the prepared images.
        keypoints0: (N0, 2) keypoints that took part; their indices are those of ``matches``.
        keypoints1: (N1, 2); of a ``Refined`` extractor, where they were moved to.
        matches: (M, 2) int64 mutual nearest neighbours; of a ``Refined`` one, the confirmed ones.
        similarity: (M,) confidences.
        errors: (M,) distances in image 1 to the true place, in pixels.
        inliers: (M,) bool, of the estimated homography.
        H_estimated: (3, 3), or None where none was found.
        corner_error: Mean corner error in pixels; infinity where none was found.
    """

    image0: Image
    image1: Image
    H_0to1: Homography
    keypoints0: NDArray[np.float64]
    keypoints1: NDArray[np.float64]
    matches: NDArray[np.int64]
    similarity: NDArray[np.float64]
    errors: NDArray[np.float64]
    inliers: NDArray[np.bool_]
    H_estimated: Homography | None
    corner_error: float


def prepare_image(image: Image, task: TaskConfig) -> tuple[Image, Homography]:
    """Resize and crop an image as the task says.

    Returns:
        The image and the transform (3, 3) from old to new pixels.
    """
    if task.resize == "crop":
        return resize_and_crop(image, task.height, task.width)
    if task.resize == "short-side":
        return resize_short_side(image, task.height)
    return image, np.eye(3)


def inspect_pair(
    extractor: Extractor,
    sequence: HPatchesSequence,
    pair: int,
    protocol: str | ProtocolConfig = "rpautrat",
) -> MatchedPair:
    """Redo one pair, to draw it: images, keypoints, matches and how wrong each is.

    Args:
        extractor: With descriptors.
        sequence: One of ``load_sequences``.
        pair: Number of the second image, 2 to 6: the ``pair`` of a record.
        protocol: Name in ``PROTOCOLS`` or a configuration.

    Returns:
        A ``MatchedPair``, with the numbers ``evaluate`` gets.

    Raises:
        ValueError: No such pair, or the extractor gives no descriptors.
    """
    if not 2 <= pair <= len(sequence.image_paths):
        raise ValueError(f"{sequence.name} has pairs 2 to {len(sequence.image_paths)}, not {pair}")
    config = protocol_config(protocol)
    paths = (sequence.image_paths[0], sequence.image_paths[pair - 1])
    view0, view1 = (_view(extractor, read_gray(path), config.descriptor) for path in paths)
    if view0.features.descriptors is None:
        raise ValueError("this extractor gives no descriptors: there are no matches to inspect")
    refined = isinstance(extractor, Refined)
    return _match_pair(view0, view1, sequence.homographies[pair - 2], config, refined)


def corner_errors(pair: MatchedPair, ransac: metrics.RansacConfig) -> list[float]:
    """Mean corner errors of RANSAC on a pair's matches in ``ransac.orders`` orders.

    Returns:
        Pixels, infinity where no homography was found. One order: that of the matches; of more,
        each is random, the same ones each time.
    """
    if ransac.orders == 1:
        return [pair.corner_error]
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(ransac.orders):
        matches = pair.matches[rng.permutation(len(pair.matches))]
        ends = pair.keypoints0[matches[:, 0]], pair.keypoints1[matches[:, 1]]
        H, _inliers = metrics.estimate_homography(*ends, ransac)
        errors.append(mean_corner_error(H, pair.H_0to1, *pair.image0.shape))
    return errors


def _view(extractor: Extractor, image: Image, task: TaskConfig) -> View:
    prepared, transform = prepare_image(image, task)
    features = extractor(prepared, task)
    if tuple(features.image_size) != prepared.shape:
        raise ValueError(
            f"the extractor was given an image of {prepared.shape} and returned features of one "
            f"of {tuple(features.image_size)}"
        )
    return View(prepared, transform, features)


def _select(features: Features, H: Homography, size: tuple[int, int], task: TaskConfig) -> Features:
    """The keypoints that take part in a pair; ``H`` leads to the other image, of ``size``."""
    if task.shared_first:
        visible = metrics.visible_mask(_points(features), H, size)
        features = _take(features, torch.from_numpy(np.flatnonzero(visible)))
    return _take(features, slice(task.max_keypoints))


def _select_pair(
    view0: View, view1: View, H_files: Homography, task: TaskConfig
) -> tuple[Features, Features, Homography]:
    H = transform_homography(H_files, view0.transform, view1.transform)
    selected0 = _select(view0.features, H, view1.image.shape, task)
    selected1 = _select(view1.features, invert_homographies(H), view0.image.shape, task)
    return selected0, selected1, H


def _detector_record(
    view0: View, view1: View, H_files: Homography, protocol: ProtocolConfig
) -> Record:
    features0, features1, H = _select_pair(view0, view1, H_files, protocol.detector)
    result = metrics.repeatability(
        _points(features0),
        _points(features1),
        H,
        view0.image.shape,
        view1.image.shape,
        protocol.distance,
    )
    turn, zoom = turn_and_zoom(H, *view0.image.shape)
    return {
        "turn": round(turn, 3),
        "zoom": round(zoom, 5),
        "n_visible0": result.n_visible0,
        "n_visible1": result.n_visible1,
        "repeatability": result.repeatability,
        "localization_error": result.localization_error,
    }


def _match_pair(
    view0: View, view1: View, H_files: Homography, protocol: ProtocolConfig, refined: bool
) -> MatchedPair:
    features0, features1, H = _select_pair(view0, view1, H_files, protocol.descriptor)
    found, similarity = (tensor.cpu().numpy() for tensor in match(features0, features1))
    keypoints0, keypoints1 = _points(features0), _points(features1)
    points0, points1 = keypoints0[found[:, 0]], keypoints1[found[:, 1]]
    if refined:
        moved, confirmed = refine_by_ransac(
            view0.image, view1.image, points0, points1, protocol.ransac
        )
        keypoints1[found[:, 1]] = moved
        found, similarity = found[confirmed], similarity[confirmed]
        points0, points1 = points0[confirmed], moved[confirmed]
    estimate, inliers = metrics.estimate_homography(points0, points1, protocol.ransac)
    return MatchedPair(
        view0.image,
        view1.image,
        H,
        keypoints0,
        keypoints1,
        found,
        similarity.astype(np.float64),
        metrics.reprojection_errors(points0, points1, H),
        inliers,
        estimate,
        mean_corner_error(estimate, H, *view0.image.shape),
    )


def refine_by_ransac(
    image0: Image,
    image1: Image,
    points0: NDArray[np.floating],
    points1: NDArray[np.floating],
    ransac: metrics.RansacConfig | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Do ``refine_matches`` by the homography that RANSAC finds in the matches themselves.

    Args:
        image0: As there.
        image1: As there.
        points0: As there.
        points1: As there.
        ransac: As in ``metrics.estimate_homography``.

    Returns:
        As there: (M, 2) and (M,). Where RANSAC finds no homography nothing is confirmed.
    """
    H, inliers = metrics.estimate_homography(points0, points1, ransac)
    if H is None:
        return np.array(points1, np.float64), inliers  # all False
    return refine_matches(image0, image1, points0, points1, H)


def _descriptor_record(pair: MatchedPair, protocol: ProtocolConfig) -> Record:
    visible0 = metrics.visible_mask(pair.keypoints0, pair.H_0to1, pair.image1.shape)
    visible1 = metrics.visible_mask(
        pair.keypoints1, invert_homographies(pair.H_0to1), pair.image0.shape
    )
    close = pair.errors <= protocol.distance
    correct = close if protocol.reference == "ground_truth" else pair.inliers
    both_visible = visible0[pair.matches[:, 0]] & visible1[pair.matches[:, 1]]
    record: Record = {
        "n_keypoints0": len(pair.keypoints0),
        "n_keypoints1": len(pair.keypoints1),
        "n_matches": len(pair.matches),
        "n_inliers": int(pair.inliers.sum()),
        "corner_error": pair.corner_error,
    }
    errors = corner_errors(pair, protocol.ransac)
    for eps in protocol.corner_thresholds:
        record[f"homography@{eps:g}"] = metrics.homography_accuracy(errors, eps)
    for eps in protocol.corner_thresholds:
        record[f"auc@{eps:g}"] = float(metrics.auc_terms(errors, eps).mean())
    for distance in protocol.match_distances:
        share = (pair.errors <= distance).mean() if len(pair.errors) else 0.0
        record[f"correct_matches@{distance:g}"] = float(share)
    record["matching_score"] = metrics.matching_score(
        int((correct & both_visible).sum()), int(visible0.sum()), int(visible1.sum())
    )
    record["average_precision"] = metrics.match_average_precision(correct, pair.similarity)
    return record


def _points(features: Features) -> NDArray[np.float64]:
    return features.keypoints.detach().cpu().numpy().astype(np.float64)


# --- all pairs --------------------------------------------------------------------------------


def evaluate(
    extractors: Mapping[str, Extractor],
    sequences: Sequence[HPatchesSequence],
    protocol: str | ProtocolConfig = "rpautrat",
    progress: bool = True,
    kept: Mapping[str, KeptRecords] = MappingProxyType({}),
) -> Results:
    """Measure extractors on sequences: every pair (reference, k) of every sequence.

    Each image is read once, and an extractor sees it once for each size the protocol uses. A pair
    without a homography (blank images, fewer than four matches, RANSAC without a model) counts as
    failed: an infinite corner error and zeros. An extractor without descriptors is measured as a
    detector alone.

    Args:
        extractors: By the name they get in tables.
        sequences: From ``load_sequences``.
        protocol: Name in ``PROTOCOLS`` or a configuration.
        progress: Show a progress bar.
        kept: By the name of an extractor, where its records are kept sequence by sequence, and
            those of an earlier call are found; extractors without are measured anew.

    Returns:
        ``Results`` with one record per extractor and pair. A sequence with an unreadable image is
        left out and listed in ``Results.skipped``, so that the others are not lost.

    Raises:
        ValueError: An unknown protocol, no extractors, or no sequences left by the protocol.
    """
    config = protocol_config(protocol)
    measured = [sequence for sequence in sequences if sequence.name not in config.excluded]
    if not extractors or not measured:
        raise ValueError("evaluate needs at least one extractor and one sequence")
    # An extractor and its refined self in turn: what both see is held no longer than that.
    plains = [id(_plain(extractor)) for extractor in extractors.values()]
    in_turn = sorted(extractors.items(), key=lambda item: plains.index(id(_plain(item[1]))))
    records: list[Record] = []
    skipped: dict[str, str] = {}
    with tqdm(total=len(measured) * len(extractors), disable=not progress, unit="sequence") as bar:
        for sequence in measured:
            bar.set_postfix_str(sequence.name)
            views = _Views(sequence)
            label = sequence_digest(sequence.image_paths, sequence.homographies) if kept else ""
            try:
                for name, extractor in in_turn:
                    measure = functools.partial(
                        _sequence_records, name, extractor, sequence, views, config
                    )
                    records += kept[name].take(label, name, measure) if name in kept else measure()
                    bar.update()
            except UnreadableImageError as error:
                skipped[sequence.name] = str(error)
                bar.update(len(extractors))
    name = protocol if isinstance(protocol, str) else "custom"
    records.sort(key=lambda record: list(extractors).index(record["extractor"]))
    return Results(name, config, tuple(records), skipped)


class _Views:
    """The images of a sequence as the extractor of the moment sees them, each looked at once.

    An extractor and its ``Refined`` see the same.
    """

    def __init__(self, sequence: HPatchesSequence) -> None:
        self._sequence = sequence
        self._extractor: Extractor | None = None
        self._seen: dict[TaskConfig, list[View]] = {}

    @functools.cached_property
    def _images(self) -> list[Image]:
        return [read_gray(path) for path in self._sequence.image_paths]

    def of(self, extractor: Extractor, task: TaskConfig) -> list[View]:
        plain = _plain(extractor)
        if plain is not self._extractor:
            self._extractor, self._seen = plain, {}
        if task not in self._seen:
            self._seen[task] = [_view(plain, image, task) for image in self._images]
        return self._seen[task]


def _plain(extractor: Extractor) -> Extractor:
    return extractor.extractor if isinstance(extractor, Refined) else extractor


def _sequence_records(
    name: str,
    extractor: Extractor,
    sequence: HPatchesSequence,
    views: _Views,
    config: ProtocolConfig,
) -> list[Record]:
    detector_views = views.of(extractor, config.detector)
    has_descriptors = detector_views[0].features.descriptors is not None
    # A detector alone need not be looked at with the knobs of descriptors.
    descriptor_views = views.of(extractor, config.descriptor) if has_descriptors else detector_views
    refined = isinstance(extractor, Refined)
    records = []
    for k, H in enumerate(sequence.homographies, start=1):
        record: Record = dict(zip(KEYS, (name, sequence.name, sequence.split, k + 1), strict=True))
        record |= _detector_record(detector_views[0], detector_views[k], H, config)
        if has_descriptors:
            pair = _match_pair(descriptor_views[0], descriptor_views[k], H, config, refined)
            record |= _descriptor_record(pair, config)
        records.append({key: shortened(value) for key, value in record.items()})
    return records
