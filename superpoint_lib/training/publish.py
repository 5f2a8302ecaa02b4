"""A finished run's weights, made ready for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from superpoint_lib.checkpoints import save_weights
from superpoint_lib.config import to_dict
from superpoint_lib.model import MagicPoint, SuperPoint, fold_batch_norm


def release(
    run_dir: str | Path,
    output: str | Path,
    metadata: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the weights of a finished run for others: folded, small, with their origin.

    Batch normalisation between convolution and ReLU is folded into the convolutions; the released
    network has none and so cannot behave differently in train mode. Other networks are written as
    they are. A descriptor head that no loss has trained is left out.

    Args:
        run_dir: folder of a finished ``train``.
        output: the .safetensors file to write.
        metadata: more to say (title, licence, figures); goes before what the run recorded: its
            configuration, seed, steps, commit, duration in seconds and machine.
        dtype: as in ``save_weights``.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    run_dir, output = Path(run_dir), Path(output)
    weights_path = run_dir / "weights.safetensors"
    if not weights_path.is_file():
        raise FileNotFoundError(
            f"{weights_path} is missing: finish the training of {run_dir} first"
        )
    config = json.loads((run_dir / "config.json").read_text())
    kind = SuperPoint if config["descriptor_weight"] else MagicPoint
    net = kind.from_pretrained(str(weights_path)).eval()
    if net.config.norm == "batch" and net.config.norm_order == "conv-norm-relu":
        net = fold_batch_norm(net)
    facts = json.loads((run_dir / "run.json").read_text())
    # Of paths, what means something on another machine.
    config |= {key: [_short(path) for path in config[key]] for key in ("images", "labels")}
    config["init"] = _short(config["init"])
    everything = {**(metadata or {}), **facts, "seed": config["seed"], "training": config}
    save_weights(output, net.state_dict(), to_dict(net.config), everything, dtype)
    return output


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
