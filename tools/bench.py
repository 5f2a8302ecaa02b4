"""Measure each stage against what it can hardly be faster than, and against what others do.

    make bench                             # all stages; writes results/benchmark.json
    python tools/bench.py matching ...     # some stages, to the screen only
    python tools/bench.py --update start   # some stages, replaced in results/benchmark.json

Where there is a GPU, it is measured, and the file is results/benchmark_gpu.json; where the
processor does not multiply bfloat16, it is results/benchmark_float32.json.
Each stage runs in a process of its own, so that its peak memory is its own. What is compared runs
in turns in that process: a busy machine slows both, and a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from benchmark.measuring import DEVICE, Row, peak_memory
from benchmark.stages import STAGES

from superpoint_lib.digests import commit_name
from superpoint_lib.machine import machine_name
from superpoint_lib.model import uses_bfloat16
from superpoint_lib.paths import project_root, results_dir, write_json

ON_GPU = DEVICE.type == "cuda"
KIND = "_gpu" if ON_GPU else "" if uses_bfloat16("auto", DEVICE) else "_float32"
OUTPUT = results_dir() / f"benchmark{KIND}.json"


def measure(stage: str) -> dict[str, Any] | None:
    """Run one stage in a process of its own; None where it fails, its error printed."""
    started, commit = time.perf_counter(), commit_name()
    command = [sys.executable, __file__, "--json", stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {
        "seconds": round(time.perf_counter() - started, 1),
        "commit": commit,
        "machine": machine_name(DEVICE),
        "torch": torch.__version__,
    }


def show(row: Row) -> str:
    """The lines of a row, at most 100 columns wide."""
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    error = f" +- {row['error']:.1g}" if "error" in row else ""
    value = f"{row['value']:.3g}{error} {row['unit']}"
    line = f"  {row['what']:50}{value:>15}   {row['goal']:18}{verdict}".rstrip()
    return "\n".join([line, *(_curve_lines(row) if "sizes" in row else [])])


def _curve_lines(row: Row) -> list[str]:
    parts = {
        "": row["sizes"],
        "ms": [1000 * value for value in row["seconds"]],
        "MB": [1000 * value for value in row["memory_gb"]],
    }
    return [
        f"      {unit:3}" + "".join(f"{_short(value):>10}" for value in values)
        for unit, values in parts.items()
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def record(results: dict[str, Any], fresh: bool) -> None:
    """Write ``OUTPUT``; stages that were not measured are kept unless ``fresh``."""
    earlier = {}
    if OUTPUT.is_file() and not fresh:
        earlier = json.loads(OUTPUT.read_text(encoding="utf-8"))["stages"]
    stages = earlier | results
    facts = {
        "command": f"python tools/bench.py --update {' '.join(stages)}" if ON_GPU else "make bench",
        "system": platform.platform(),
        "torch": torch.__version__,
        "stages": {name: stages[name] for name in STAGES if name in stages},
    }
    write_json(OUTPUT, facts)
    print(OUTPUT.relative_to(project_root()))


def main(arguments: Sequence[str]) -> None:
    """Measure the stages named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--update", action="store_true", help="replace these stages in the file")
    parser.add_argument("--json", action="store_true", help="one stage here, as JSON to the screen")
    options = parser.parse_args(arguments)
    if options.json:
        rows = STAGES[options.stages[0]]()
        print(json.dumps({"rows": rows, "peak_memory_gb": round(peak_memory(), 2)}))
        return
    names = options.stages or list(STAGES)
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        sys.exit(f"bench: no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    started = time.perf_counter()
    results: dict[str, Any] = {}
    failed = []
    for number, name in enumerate(names, 1):
        print(f"{name}  ({number} of {len(names)})", flush=True)
        result = measure(name)
        if result is None:
            failed.append(name)
            continue
        results[name] = result
        for row in result["rows"]:
            print(show(row), flush=True)
        took, peak = result["seconds"], result["peak_memory_gb"]
        print(f"  {took:.0f} s, peak memory {peak} GB", flush=True)
        if options.update:
            record(results, fresh=False)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if not options.update and len(names) == len(STAGES) and results:
        record(results, fresh=not failed)
    if failed:
        sys.exit(f"bench: failed, their errors are above: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
