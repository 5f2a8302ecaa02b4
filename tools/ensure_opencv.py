"""Put opencv-python-headless in the place of opencv-python where the latter cannot be loaded.

The wheel of opencv-python links libGL and X11 libraries that small containers lack. Both wheels
hold the same ``cv2`` package and overwrite each other's files, so they are never both installed.
Usage: python tools/ensure_opencv.py constraints.txt
"""

import re
import subprocess
import sys


def load_error() -> str | None:
    """Why a fresh interpreter cannot load cv2 for want of a shared library; None when it can."""
    probe = [sys.executable, "-c", "import cv2"]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return None
    reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "unknown"
    if not re.search(r"\.so(\.\d+)*: |DLL load failed", reason):
        raise SystemExit(f"import cv2 fails: {reason}")
    return reason


def pip(*arguments: str) -> None:
    """Run pip of this interpreter, quietly."""
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet"], check=True)


def main(constraints: str) -> None:
    """Replace the wheel if it must be replaced, and say so."""
    reason = load_error()
    if reason is None:
        return
    print(f"opencv-python cannot be loaded here ({reason})")
    print("installing opencv-python-headless in its place; cv2 is the same")
    pip("uninstall", "--yes", "opencv-python")
    pip("install", "--constraint", constraints, "opencv-python-headless")
    if (reason := load_error()) is not None:
        raise SystemExit(f"opencv-python-headless cannot be loaded either: {reason}")


if __name__ == "__main__":
    main(sys.argv[1])
