"""``superpoint extract``: the features of images, in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from superpoint_lib.cli.features import (
    ExtractorOptions,
    feature_finder,
    naming,
    reduce_image,
    size_text,
)
from superpoint_lib.cli.shared import CommandError, UsageError, check_folder, keeping, parse


@dataclass(frozen=True)
class ExtractOptions(ExtractorOptions):
    """Write the features of images to one .npz file each."""

    images: Positional[tuple[Path, ...]] = ()
    """Image files, or folders of them."""
    output: Path = Path("runs/features")
    """Folder for the files, which hold keypoints (x, y), keypoint_scores, descriptors and
    image_size (height, width); those of a folder's sub-folders go into sub-folders."""


def command(arguments: Sequence[str]) -> int:
    """Write the features of images; returns the exit status."""
    options = parse(ExtractOptions, "extract", arguments)
    images = _image_files(options.images)
    check_folder("extract: --output", options.output)
    with keeping(len(images) > 1):
        return _extract_all(options, images)


def _extract_all(options: ExtractOptions, images: Sequence[tuple[Path, Path]]) -> int:
    import numpy as np

    from superpoint_lib.geometry import warp_points
    from superpoint_lib.paths import atomic_path, read_gray

    targets: dict[Path, Path] = {}
    for path, relative in images:
        target = options.output / relative.with_suffix(".npz")
        if targets.get(target, path) != path:
            raise CommandError(
                f"{targets[target]} and {path} would both be written to {target}: extract them to "
                "separate folders"
            )
        targets[target] = path
    find = feature_finder(options)
    options.output.mkdir(parents=True, exist_ok=True)
    unreadable = []
    for target, path in targets.items():
        try:
            with naming(path):
                image = read_gray(path)
                looked_at, to_file = reduce_image(image, options.longest)
                features = find(looked_at).numpy()
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        arrays: dict[str, Any] = {
            "keypoints": warp_points(features.keypoints, to_file),
            "keypoint_scores": features.keypoint_scores,
            "image_size": image.shape,
        }
        if features.descriptors is not None:
            arrays["descriptors"] = features.descriptors
        with atomic_path(target) as temporary:
            np.savez_compressed(temporary, **arrays)
        told = f", looked at in {size_text(looked_at)} pixels" if looked_at is not image else ""
        print(f"{target}: {len(features)} keypoints, computed in {features.computed_in}{told}")
    if unreadable:
        raise CommandError(f"{len(unreadable)} of {len(images)} left out: {'; '.join(unreadable)}")
    return 0


def _image_files(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each image, and its path in the folder it was found in; its name, if it was given itself."""
    from superpoint_lib.paths import list_images

    if not paths:
        raise UsageError("extract: name an image or a folder (see superpoint extract --help)")
    files: list[tuple[Path, Path]] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no such image or folder: {path}")
        if path.is_dir():
            files += [(image, image.relative_to(path)) for image in list_images(path)]
        else:
            files.append((path, Path(path.name)))
    if not files:
        raise CommandError(
            f"no images in {', '.join(map(str, paths))} that OpenCV reads (.jpg, .png, .tif, .webp "
            "and the like; convert .heic first)"
        )
    return files
