"""Names for contents: what has the same name holds the same.

They tell whether what was stored earlier, labels, records or a training, still belongs to the
weights, files and code of now.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line names code before it needs torch
    from torch import Tensor

_PACKAGE = Path(__file__).resolve().parent


def digest(parts: Iterable[bytes]) -> str:
    """Sixteen hexadecimal digits that no other parts have, nor the same ones divided otherwise."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.hexdigest()[:16]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Name weights by their names and numbers, whatever type the numbers are stored in."""
    return digest(
        part
        for name, tensor in sorted(state.items())
        for part in (name.encode(), tensor.detach().cpu().double().numpy().tobytes())
    )


def code_digest(without: Collection[str] = ()) -> str:
    """Name the code of this library, as its files are now, by all its lines.

    Args:
        without: modules and packages at its top to leave out.
    """
    return digest(
        path.read_bytes()
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.relative_to(_PACKAGE).with_suffix("").parts[0] not in without
    )


def commit_name() -> str:
    """The checkout's commit, with "+" for uncommitted changes; "unknown" outside a checkout."""
    try:
        # Installed inside somebody else's checkout, the library would tell of that one.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=_PACKAGE, capture_output=True, text=True, check=True)
    return done.stdout.strip()
