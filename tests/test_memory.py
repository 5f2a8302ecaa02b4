"""What the process does with memory that it frees."""

import subprocess
import sys

import pytest

from superpoint_lib import memory

_FAULTS = """
import resource, sys
from superpoint_lib.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    bytearray(64 << 20)
before = pages()
for _ in range(10):
    bytearray(64 << 20)
print(pages() - before)
"""


def _faults(mode: str) -> int:
    command = [sys.executable, "-c", _FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_not_asked_for_again():
    # A bytearray comes zeroed: by the kernel, page by page, or by a write into pages at hand.
    assert _faults("keep") < 100


def test_elsewhere_nothing_is_done(monkeypatch):
    memory.keep_freed_memory.cache_clear()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("called into the libc"))
    assert memory.keep_freed_memory() is False
    monkeypatch.undo()
    memory.keep_freed_memory.cache_clear()


def test_an_import_changes_nothing():
    code = (
        "import superpoint_lib.training, superpoint_lib.adaptation, superpoint_lib.cli\n"
        "from superpoint_lib.memory import keep_freed_memory\n"
        "print(keep_freed_memory.cache_info().misses)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0\n"
