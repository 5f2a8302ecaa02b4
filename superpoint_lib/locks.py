"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(folder: Path, error: type[Exception]) -> Iterator[None]:
    """Keep other processes out of a folder while the block lasts.

    Two would overwrite each other's files. File systems without locks are trusted. The folder is
    made where it is missing, and a hidden file ``.lock`` in it stays.

    Args:
        folder: what is to have one process.
        error: what to raise.

    Raises:
        error: another process has the folder; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as timeout:
        raise error(
            f"another process is at work in {folder}: wait for it, or use another folder"
        ) from timeout
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()
