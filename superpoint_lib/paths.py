"""Where things are kept, and how files are read and written.

Inputs are found beside the notebooks (``data/``), outputs go under ``runs/``. Every file is written
under a temporary name and then moved into place, so an interrupted run never leaves half a file.
"""

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGE_EXTENSIONS = frozenset(
    {
        ".bmp",
        ".dib",
        ".gif",
        ".hdr",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".pic",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Lower-case extensions of the picture formats that OpenCV's wheels read rightly as grey values.

Sun raster (.ras, .sr) and .pfm are left out: OpenCV 5 reads grey ones as black, or leaves colour
ones in colour. So is .avif, whose orientation tag it does not apply, and .pam (`read_gray`).
"""

# The largest value of a netpbm file: after the width and the height, comments between them.
_MAXVAL = re.compile(rb"P[2356]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)")

_PACKAGE = Path(__file__).resolve().parent


class UnreadableImageError(ValueError):
    """A file exists but holds no picture that OpenCV can decode; the message names the file."""


def project_root() -> Path:
    """Return the checkout: the nearest folder with ``pyproject.toml`` and ``notebooks/``.

    Convention: looked for from the working directory upwards, then from the package upwards; the
    working directory itself where there is no checkout (an installed library).
    """
    here = Path.cwd()
    for folder in (here, *here.parents, *_PACKAGE.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def data_dir() -> Path:
    """Return the folder of linked datasets (its README says what goes where).

    The environment variable ``SUPERPOINT_DATA`` names another one, relative to the project root or
    absolute; one that does not exist leaves only the pictures inside the dependencies.
    """
    return project_root() / os.environ.get("SUPERPOINT_DATA", "data")


def runs_dir() -> Path:
    """Return the folder of everything a run makes: checkpoints, labels, executed notebooks."""
    return project_root() / "runs"


def results_dir() -> Path:
    """Return the folder of the small JSON and CSV files that README and notebooks quote."""
    return project_root() / "results"


def figures_dir() -> Path:
    """Return the folder of the pictures that the README shows."""
    return project_root() / "figures"


def bundled_weights_dir() -> Path:
    """Return the folder, inside the package, of the weights that come with it."""
    return _PACKAGE / "weights"


def list_images(*folders: str | Path, recursive: bool = True) -> list[Path]:
    """List the pictures in folders, sorted within each folder given.

    Convention: soft links are followed, but not those that lead back to a folder on the way; hidden
    files are left out, extensions compared without case.

    Args:
        folders: one or several folders; the order given is kept.
        recursive: look into sub-folders too.

    Returns:
        Paths that begin with the folder as given; empty if there is no picture.

    Raises:
        FileNotFoundError: a folder is missing; the message says how to supply it.
        NotADirectoryError: a path is not a folder.
    """
    return [path for folder in folders for path in _images_in(Path(folder), recursive)]


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(
            f"no folder {folder}: link your pictures there (ln -s /path/to/pictures {folder}), "
            "or see data/README.md and `superpoint data --help` for how to get the data sets"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of pictures")
    return list_files(folder, IMAGE_EXTENSIONS, recursive)


def list_files(folder: Path, extensions: Collection[str], recursive: bool = True) -> list[Path]:
    """List the files of a folder that have one of these extensions, by the rules of list_images."""
    return sorted(
        path for path in _walk(folder, recursive, frozenset()) if path.suffix.lower() in extensions
    )


def _walk(folder: Path, recursive: bool, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    above |= {here, *here.parents}  # a link that leads back there would be walked for ever
    _, names, files = next(os.walk(folder), ("", [], []))
    yield from (folder / name for name in files if name[0] != ".")
    for name in names if recursive else ():
        if name[0] != "." and (folder / name).resolve() not in above:
            yield from _walk(folder / name, recursive, above)


def read_gray(path: str | Path) -> np.ndarray:
    """Read a picture as grey values.

    Convention: colours are weighted as OpenCV does (0.299 R + 0.587 G + 0.114 B), deeper pictures
    are reduced to 8 bits, and the camera's orientation tag is applied (but that of an AVIF file:
    OpenCV leaves such a picture as it is stored). OpenCV darkens the transparent pixels of a TIFF
    file whose alpha is unassociated. PAM files are refused: with gray values and transparency,
    OpenCV 5 writes beyond its memory.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: the file is empty or is not a picture; it is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    data = _without_profile(np.fromfile(path, dtype=np.uint8))
    header = data[:1024].tobytes()
    if header.startswith(b"P7"):
        raise UnreadableImageError(f"cannot read {path}: PAM is not supported, save it as PNG")
    maxval = _MAXVAL.match(header)
    largest = int(maxval[3]) if maxval else 255
    # OpenCV takes it for 255 or 65535; the cameras of machines write 1023 and 4095.
    flags = cv2.IMREAD_GRAYSCALE | (0 if largest in (255, 65535) else cv2.IMREAD_ANYDEPTH)
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise UnreadableImageError(f"cannot read {path} as a picture: {error}") from error
    if image is None:
        raise UnreadableImageError(
            f"cannot read {path} as a picture: empty, or a format that OpenCV does not read"
        )
    if flags != cv2.IMREAD_GRAYSCALE:
        image = (image.clip(0, largest) * (255 / largest)).round()
    return image.astype(np.float32) / 255


def _without_profile(data: np.ndarray) -> np.ndarray:
    """Leave out the colour profile of a PNG: OpenCV ignores it, libpng complains of old ones."""
    header = data[:256].tobytes()  # a profile stands before the pixels
    name = header.find(b"iCCP")
    if name < 0 or not header.startswith(b"\x89PNG"):
        return data
    # A chunk is its length, its name, as many bytes as its length says, and a checksum.
    length = int.from_bytes(header[name - 4 : name], "big")
    return np.delete(data, np.s_[name - 4 : name + length + 8])


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it into place if the block succeeds.

    The temporary name keeps the extension, which some writers insist on, and is short, as ``path``
    may be as long as names can be. Missing parent folders are made. If the block raises, ``path``
    stays as it was and the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text at once or not at all, and return the path.

    Names of files that are not text, as Python has them, are written as the bytes that they are.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write indented JSON at once or not at all, and return the path.

    Convention: numpy scalars and arrays, paths and dataclasses are written as plain values.

    Raises:
        TypeError: a value that has no JSON form.
    """
    return write_text(path, json.dumps(value, indent=2, default=_json_value) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")
