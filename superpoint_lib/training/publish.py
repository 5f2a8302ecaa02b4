"""A finished run's weights, made ready for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superpoint_lib.checkpoints import load_weights, save_weights
from superpoint_lib.config import to_dict
from superpoint_lib.model import MagicPoint, SuperPoint, fold_batch_norm


def release(
    run_dir: str | Path,
    output: str | Path,
    metadata: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    blend: tuple[str, float] | None = None,
    sharpen: float = 1.0,
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
        blend: weights to average these with, number by number, and their share in 0..1: see
            ``blend_weights``.
        sharpen: exponent of the detector's probabilities, see ``sharpen_scores``.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: weights of another network to blend with, a share outside 0..1, or an exponent
            that is not positive.
    """
    run_dir, output = Path(run_dir), Path(output)
    weights_path = run_dir / "weights.safetensors"
    if not weights_path.is_file():
        raise FileNotFoundError(
            f"{weights_path} is missing: finish the training of {run_dir} first"
        )
    config = json.loads((run_dir / "config.json").read_text())
    kind = SuperPoint if config["descriptor_weight"] else MagicPoint
    net = kind.from_pretrained(weights_path)
    if net.config.norm == "batch" and net.config.norm_order == "conv-norm-relu":
        net = fold_batch_norm(net)
    if blend is not None:
        name, share = blend
        net.load_state_dict(blend_weights(net.state_dict(), load_weights(name).state_dict, share))
        metadata = {"blended_with": _short(name), "blend_share": share} | (metadata or {})
    if sharpen != 1:
        sharpen_scores(net, sharpen)
        metadata = {"sharpened": sharpen} | (metadata or {})
    facts = json.loads((run_dir / "run.json").read_text())
    # Of paths, what means something on another machine.
    config |= {key: [_short(path) for path in config[key]] for key in ("images", "labels")}
    config["init"] = _short(config["init"])
    everything = {**(metadata or {}), **facts, "seed": config["seed"], "training": config}
    save_weights(output, net.state_dict(), to_dict(net.config), everything, dtype)
    return output


def blend_weights(
    weights: Mapping[str, Tensor], others: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return the mean of two networks, (1 - share) of the first and ``share`` of the other.

    Of a network and of what it was trained further from, the mean has a part of what was gained,
    and of what was lost: the straight line between them seldom crosses bad weights.

    Args:
        weights: tensors by name.
        others: tensors of the same names and shapes.
        share: in 0..1.

    Returns:
        The means, in the types of ``weights``.

    Raises:
        ValueError: other names or shapes, or a share outside 0..1.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models (2022), equation 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the other weights must be in 0..1, got {share}")
    shapes, other_shapes = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (weights, others)
    )
    if shapes != other_shapes:
        differing = sorted(set(shapes.items()) ^ set(other_shapes.items()))
        raise ValueError(f"networks of different weights do not blend: {differing[0][0]} differs")
    # Batch normalisation counts its batches in a whole number, of which there is no average.
    return {
        name: torch.lerp(w, others[name].to(w), share) if w.is_floating_point() else w
        for name, w in weights.items()
    }


def sharpen_scores(net: MagicPoint, exponent: float) -> None:
    """Make a detector surer of itself, in place: its logits times g.

    A class of probability p gets p^g / sum_k p_k^g: faint responses fade, strong ones stay, and
    keypoints all but keep their order. It changes what a threshold stands for, not what the network
    knows.

    Args:
        net: a MagicPoint or SuperPoint without normalisation of its outputs.
        exponent: g > 0.

    Raises:
        ValueError: an exponent that is not positive, or normalised outputs, which have a scale of
            their own.

    Source: temperature scaling, Guo et al., On Calibration of Modern Neural Networks (2017),
    section 4.2, with T = 1 / g. Shown in notebook 05.
    """
    if exponent <= 0:
        raise ValueError(f"exponent is {exponent}, must be above 0")
    if net.config.norm != "none" and net.config.norm_outputs:
        raise ValueError("the scores of a network with normalised outputs cannot be sharpened")
    state = net.state_dict()
    for name in ("weight", "bias"):
        state[f"detector.output.conv.{name}"].mul_(exponent)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
