"""Take the progress bars out of executed notebooks: stored, a bar stands at 0 % for ever.

python tools/drop_progress_bars.py notebooks/02_magicpoint_training.ipynb ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import nbformat

from superpoint_lib.report import drop_progress_bars


def main(paths: Sequence[str]) -> None:
    """Rewrite the notebooks that hold one."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        if found := drop_progress_bars(notebook):
            nbformat.write(notebook, path)
            print(f"{path}: {found} left out")


if __name__ == "__main__":
    main(sys.argv[1:])
