"""The process's memory: what is freed stays at hand for what comes next."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@cache
def keep_freed_memory() -> bool:
    """Let the process keep the memory it frees; does nothing where that is not glibc's to decide.

    glibc gives large blocks back to the kernel as soon as they are freed, and the kernel hands
    them out again zeroed, page by page. A network frees and asks for the same few hundred megabytes
    at every step, and on a CPU that takes time.

    The setting is the process's, and lasts until its end: memory once taken is reused but not
    returned. So it is made where the long work starts (``training.train``,
    ``adaptation.export_labels``, the command line), never by an import.

    Returns:
        Whether the process now keeps its memory: True on Linux with glibc.

    Source: mallopt(3), M_MMAP_MAX 0 (no block gets a mapping of its own) and M_TRIM_THRESHOLD -1
    (the end of the heap is never given back).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
