"""Bridges to other libraries: OpenCV keypoints and matches, kornia, ONNX, video files.

kornia and onnx are imported only where they are used. Conversions keep coordinates as they are:
OpenCV, kornia and this library all count pixel centres at integers, as (x, y); so do hloc and
LightGlue, whose sizes are (width, height). COLMAP's pixel centres are at halves: add 0.5.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from superpoint_lib.evaluation.classical import bits_as_signs
from superpoint_lib.exported import FeatureGraph, NetworkGraph
from superpoint_lib.extraction import MIN_IMAGE_SIZE, Features, refuse_fractions
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.paths import atomic_path

KEYPOINT_SIZE = float(CELL_SIZE)
"""Size in pixels that a keypoint is given where another library asks for one: a cell's side. Of
OpenCV's keypoints it is the diameter, of kornia's frames the radius."""

_FIRST_WITH_LOOPS = (2, 11)  # PyTorch whose ONNX exporter translates while_loop

KorniaMatching = Literal["nn", "mnn", "snn", "smnn"]


# OpenCV -------------------------------------------------------------------------------------------


def to_opencv_keypoints(features: Features, size: float = KEYPOINT_SIZE) -> list[cv2.KeyPoint]:
    """Convert keypoints to OpenCV's.

    The descriptors need no conversion: ``features.descriptors.numpy()`` is what ``cv2.BFMatcher``
    takes (with ``cv2.NORM_L2``).

    Args:
        features: N keypoints, N may be 0.
        size: diameter in pixels written into each keypoint.

    Returns:
        N ``cv2.KeyPoint`` in the same order: (x, y), the score as ``response``, no angle (-1).
    """
    points, scores = _array(features.keypoints), _array(features.keypoint_scores)
    return [
        cv2.KeyPoint(float(x), float(y), size, -1.0, float(score))
        for (x, y), score in zip(points, scores, strict=True)
    ]


def from_opencv_keypoints(
    keypoints: Sequence[cv2.KeyPoint],
    descriptors: NDArray[Any] | None = None,
    image_size: tuple[int, int] = (0, 0),
) -> Features:
    """Convert OpenCV keypoints to features, so that ``match`` and the evaluation take them.

    Args:
        keypoints: N OpenCV keypoints, N may be 0.
        descriptors: (N, D) numbers as OpenCV's extractors return them, or None; floats are scaled
            to unit length (a zero descriptor stays zero), the bits of uint8 ones (ORB's, say) are
            written as numbers of both signs, ``evaluation.classical.bits_as_signs``; give bytes
            that are no bits (SIFT's, if asked for as ``CV_8U``) as floats.
        image_size: (height, width) of the image they were found in.

    Returns:
        Features with the highest response first (equal ones keep their order).

    Raises:
        ValueError: the number of descriptors is not that of the keypoints.
    """
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    scores = np.array([keypoint.response for keypoint in keypoints], np.float32)
    order = np.argsort(-scores, kind="stable")
    rows = None
    if descriptors is None and not len(points):
        descriptors = np.zeros((0, 0), np.float32)  # OpenCV gives None where it finds nothing
    if descriptors is not None:
        if len(descriptors) != len(points):
            raise ValueError(f"{len(points)} keypoints but {len(descriptors)} descriptors")
        binary = descriptors.dtype == np.uint8
        numbers = bits_as_signs(descriptors) if binary else descriptors
        rows = nn.functional.normalize(
            torch.from_numpy(np.ascontiguousarray(numbers[order])), dim=1
        )
    return Features(
        torch.from_numpy(points[order]), torch.from_numpy(scores[order]), rows, image_size
    )


def to_opencv_matches(
    matches: Tensor | NDArray[Any], similarity: Tensor | NDArray[Any]
) -> list[cv2.DMatch]:
    """Convert matches to OpenCV's, with image 0 as the query and image 1 as the train image.

    Args:
        matches: (M, 2) indices, M may be 0.
        similarity: (M,) dot products s of unit descriptors.

    Returns:
        M ``cv2.DMatch``; ``distance`` is the Euclidean one, sqrt(2 - 2 s).
    """
    pairs = _array(matches).reshape(-1, 2)
    distances = np.sqrt(np.maximum(2.0 - 2.0 * _array(similarity).astype(np.float64), 0.0))
    return [
        cv2.DMatch(int(i), int(j), float(d)) for (i, j), d in zip(pairs, distances, strict=True)
    ]


def from_opencv_matches(matches: Sequence[cv2.DMatch]) -> tuple[Tensor, Tensor]:
    """Convert OpenCV matches of unit descriptors under ``cv2.NORM_L2``.

    Args:
        matches: M OpenCV matches, M may be 0.

    Returns:
        matches (M, 2) int64 and similarity (M,) float32, s = 1 - distance^2 / 2.
    """
    pairs = np.array([(m.queryIdx, m.trainIdx) for m in matches], np.int64).reshape(-1, 2)
    distances = np.array([m.distance for m in matches], np.float32)
    return torch.from_numpy(pairs), torch.from_numpy(1.0 - 0.5 * distances**2)


# kornia -------------------------------------------------------------------------------------------


def to_kornia_lafs(
    features: Features, scale: float = KEYPOINT_SIZE, orientation: float = 0.0
) -> Tensor:
    """Convert keypoints to kornia's local affine frames.

    Args:
        features: N keypoints, N may be 0.
        scale: of every frame, in pixels.
        orientation: of every frame, in degrees.

    Returns:
        (1, N, 2, 3) as made by ``kornia.feature.laf_from_center_scale_ori``.
    """
    from kornia.feature import laf_from_center_scale_ori

    points = torch.as_tensor(features.keypoints)[None]
    count = points.shape[1]
    return laf_from_center_scale_ori(
        points,
        points.new_full((1, count, 1, 1), scale),
        points.new_full((1, count, 1), orientation),
    )


def match_kornia(
    features0: Features,
    features1: Features,
    method: KorniaMatching = "smnn",
    threshold: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Match descriptors with ``kornia.feature.DescriptorMatcher``.

    Args:
        features0: with descriptors (N0, D); N0 may be 0.
        features1: with descriptors (N1, D).
        method: "nn" nearest neighbour, "mnn" mutual, "snn" with a test on the ratio to the second
            nearest, "smnn" both.
        threshold: largest ratio accepted by "snn" and "smnn".

    Returns:
        matches (M, 2) int64, and (M,) kornia's distances: Euclidean for "nn" and "mnn", the ratio
        of the two smallest for "snn" and "smnn" (the larger of both directions).

    Raises:
        ValueError: features without descriptors.
    """
    from kornia.feature import DescriptorMatcher

    if features0.descriptors is None or features1.descriptors is None:
        raise ValueError(
            "matching needs descriptors: extract with a SuperPoint, a MagicPoint has none"
        )
    matcher = DescriptorMatcher(method, threshold)
    described = (torch.as_tensor(features.descriptors) for features in (features0, features1))
    distances, matches = matcher(*described)
    return matches.reshape(-1, 2).long(), distances.reshape(-1)


# ONNX ---------------------------------------------------------------------------------------------


def export_onnx(
    model: nn.Module,
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    max_keypoints: int | None = None,
    threshold: float = 0.005,
    nms_radius: int = 4,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the network, alone or with all that follows it, as an ONNX file.

    The input "images" (B, 1, H, W) holds gray levels in [0, 1], of any size from 16 px up. Sizes
    that are not multiples of 8 are padded on the right and bottom by replication, as ``extract``
    does it. The batch size stays free; so do height and width unless given. Shown in notebook 08.

    With ``max_keypoints`` K the file does what ``extract`` does, in float32: its outputs are
    "keypoints" (B, K, 2), (x, y) in pixels, "keypoint_scores" (B, K), and, for a SuperPoint,
    "descriptors" (B, K, D), best first. Scores are 0 where a picture has fewer keypoints::

        session = onnxruntime.InferenceSession("superpoint.onnx")
        keypoints, scores, descriptors = session.run(None, {"images": image[None, None]})
        found = scores[0] > 0

    Without, it holds what ``model(images)`` computes in evaluation mode: outputs "logits" (B, 65,
    ceil(H / 8), ceil(W / 8)) and, for a SuperPoint, "descriptors" (B, D, ...). This library does
    the rest::

        logits, descriptors = session.run(None, {"images": image[None, None]})
        maps = {"logits": torch.from_numpy(logits), "descriptors": torch.from_numpy(descriptors)}
        features = extract_from_maps(maps, [image.shape])

    Args:
        model: a SuperPoint or MagicPoint; its mode and device are left as they are.
        path: the file to write; its folder is made.
        height: fixes the height in pixels; None leaves it free.
        width: likewise.
        max_keypoints: the best so many of each picture; None for the network alone.
        threshold: as in ``extract``; for keypoints only, as is the next.
        nms_radius: as in ``extract``. Of equal scores within it, all are kept.
        metadata: texts to store in the file, by their names.

    Returns:
        The path.

    Raises:
        ValueError: a size below 16 px, a setting out of range, or a folder in place of a file.
        ImportError: onnx or onnxscript is not installed, or PyTorch is older than 2.11, which
            ``max_keypoints`` needs.
    """
    refuse_fractions(height=height, width=width, max_keypoints=max_keypoints, nms_radius=nms_radius)
    for name, value in (("height", height), ("width", width)):
        if value is not None and value < MIN_IMAGE_SIZE:
            raise ValueError(f"{name} must be at least {MIN_IMAGE_SIZE} px, got {value}")
    if max_keypoints is not None and max_keypoints < 1:
        raise ValueError(f"max_keypoints must be at least 1, got {max_keypoints}")
    if not 0 <= threshold <= 1 or nms_radius < 0:
        raise ValueError(
            "threshold must be in 0..1 and nms_radius 0 or more, got threshold "
            f"{threshold} and nms_radius {nms_radius}"
        )
    _need_onnx()
    if max_keypoints is not None and _torch_version() < _FIRST_WITH_LOOPS:
        raise ImportError(
            "max_keypoints needs PyTorch 2.11 or newer, whose exporter knows loops; this is "
            f"{torch.__version__}"
        )
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).eval().float()
    # Of weights in channels_last order the exporter cannot prove that any width will do.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Sizes that are no special case (neither 1 nor equal), so that the exporter keeps them free.
    example = next(model.parameters()).new_zeros((2, 1, height or 43, width or 59))
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if height is None:
        free[2] = torch.export.Dim("height", min=MIN_IMAGE_SIZE)
    if width is None:
        free[3] = torch.export.Dim("width", min=MIN_IMAGE_SIZE)
    with torch.inference_mode():
        names = list(model(example[..., :CELL_SIZE, :CELL_SIZE]))
    network = NetworkGraph(model, names)
    graph: nn.Module = network
    if max_keypoints is not None:
        graph = FeatureGraph(network, max_keypoints, threshold, nms_radius)
        names = ["keypoints", "keypoint_scores", *names[1:]]
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=(free,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
    return path


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed; the ONNX export needs it: pip install onnx onnxscript"
        ) from error


class _quiet(warnings.catch_warnings):
    """Without the exporter's notes on its own progress and deprecations."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self.level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        logging.getLogger("torch.onnx").setLevel(self.level)
        super().__exit__(*error)


# Video --------------------------------------------------------------------------------------------


def read_video(
    path: str | Path, step: int = 1, max_frames: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of a video file, one at a time.

    Args:
        path: a file that OpenCV can decode.
        step: take every ``step``-th frame, from the first one on.
        max_frames: stop after this many taken frames; None reads to the end.

    Yields:
        uint8 (H, W, 3) RGB, ready for ``extract``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no frame that OpenCV can decode, or ``step`` is below 1. Raised
            at the call, not at the first frame.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    capture = cv2.VideoCapture(str(path))
    if not capture.grab():
        capture.release()
        raise ValueError(
            f"{path}: OpenCV can decode no frame of it; convert it, e.g. to .mp4 with H.264"
        )
    return _frames(capture, step, max_frames)


def _frames(
    capture: cv2.VideoCapture, step: int, max_frames: int | None
) -> Iterator[NDArray[np.uint8]]:
    index, taken = 0, 0
    try:
        while max_frames is None or taken < max_frames:
            if index % step == 0:
                decoded, frame = capture.retrieve()
                if not decoded:
                    return
                yield np.ascontiguousarray(frame[..., ::-1])
                taken += 1
            if not capture.grab():
                return
            index += 1
    finally:
        capture.release()


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
