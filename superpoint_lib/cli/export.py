"""``superpoint export``: ONNX and weight files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superpoint_lib import __version__
from superpoint_lib.cli.shared import (
    CommandError,
    UsageError,
    check_file,
    load_model,
    option_name,
    parse,
)


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as an ONNX or weight file, or a finished training as a weight file."""

    weights: str = "superpoint"
    """A bundled name, the path of a weight file, or, for .safetensors, the folder of a training,
    whose batch normalisation is folded in."""
    output: Path = Path("superpoint.onnx")
    """The file to write: .onnx or .safetensors."""
    stored_as: Literal["float16", "int8"] = "float16"
    """Numbers of a .safetensors file. int8 halves it: all but the smallest kernels are rounded to
    1/127 of the largest weight of each output channel."""
    blend: str = ""
    """Weights to average those of a training with, number by number: what it was trained further
    from, to keep some of what that could do better."""
    blend_share: float = 0.5
    """Of the weights to blend with, in 0..1."""
    sharpen: float = 1.0
    """Exponent of the probabilities of a training's detector: above 1, faint keypoints fade."""
    learnt_from: str = ""
    """The training data, in words, for the metadata of a .safetensors file."""
    max_keypoints: int | None = None
    """Makes an .onnx file that gives keypoints, scores and descriptors, so many for each image, as
    superpoint extract --precision float32 --longest 0 does: reduce large images before. By default
    it gives the network's maps."""
    threshold: float = 0.005
    """Least score of those keypoints, in [0, 1]."""
    nms_radius: int = 4
    """Radius of their non-maximum suppression, in pixels."""
    height: int | None = None
    """Fixes the height of the images of an .onnx file; free by default."""
    width: int | None = None
    """Fixes the width likewise."""


#: What an .onnx file says of itself.
_ONNX_INPUT = "images: float32 (B, 1, H, W), gray levels in 0..1, 16 pixels or more along each side"


_ONNX_OUTPUTS = {
    False: "logits: (B, 65, ceil(H / 8), ceil(W / 8)), and descriptors of the same cells",
    True: "keypoints: (B, K, 2) as (x, y) in pixels; rows whose keypoint_scores are 0 hold none",
}


#: By the ending of the file to export, the options that change nothing in it.
_NOT_FOR = {
    ".onnx": ("stored_as", "blend", "blend_share", "sharpen", "learnt_from"),
    ".safetensors": ("max_keypoints", "threshold", "nms_radius", "height", "width"),
}


def command(arguments: Sequence[str]) -> int:
    """Write a file of a model; returns the exit status."""
    options = parse(ExportOptions, "export", arguments)
    if options.output.suffix not in _NOT_FOR:
        raise CommandError(f"{options.output}: choose a name that ends in .onnx or .safetensors")
    default = vars(ExportOptions())
    changed = {key for key, value in vars(options).items() if value != default[key]}
    unused = [option_name(key) for key in _NOT_FOR[options.output.suffix] if key in changed]
    if unused:
        raise UsageError(f"export: {', '.join(unused)}: not for {options.output.suffix} files")
    if "blend_share" in changed and not options.blend:
        raise UsageError("export: --blend-share: give --blend too, the weights to average with")
    if options.max_keypoints is None and changed & {"threshold", "nms_radius"}:
        raise UsageError("export: --threshold and --nms-radius: give --max-keypoints too")
    check_file("export: --output", options.output)
    if options.output.suffix == ".safetensors":
        print(_export_weights(options))
        return 0
    from superpoint_lib.checkpoints import load_weights
    from superpoint_lib.interop import export_onnx

    told = load_weights(options.weights).metadata
    metadata = {
        "weights": options.weights,
        "made_by": f"superpoint_lib {__version__}",
        "input": _ONNX_INPUT,
        "output": _ONNX_OUTPUTS[options.max_keypoints is not None],
    }
    path = export_onnx(
        load_model(options.weights, device="cpu"),
        options.output,
        options.height,
        options.width,
        max_keypoints=options.max_keypoints,
        threshold=options.threshold,
        nms_radius=options.nms_radius,
        metadata=metadata | ({"learnt_from": told["learnt_from"]} if "learnt_from" in told else {}),
    )
    print(path)
    return 0


def _export_weights(options: ExportOptions) -> Path:
    import torch

    from superpoint_lib.checkpoints import BUNDLED_NAMES, load_weights, save_weights
    from superpoint_lib.training import release

    source = Path(options.weights)
    own = options.weights not in BUNDLED_NAMES
    sources = [path.resolve() for path in (source, source / "weights.safetensors")]
    if own and options.output.resolve() in sources:
        raise CommandError(f"{options.output} holds the weights to export: name another --output")
    told = {"learnt_from": options.learnt_from}
    dtype = torch.int8 if options.stored_as == "int8" else torch.float16
    if own and source.is_dir():
        blend = (options.blend, options.blend_share) if options.blend else None
        return release(options.weights, options.output, told, dtype, blend, options.sharpen)
    if options.blend or options.sharpen != 1:
        raise CommandError("--blend and --sharpen take the folder of a training as --weights")
    given = load_weights(options.weights)
    metadata = given.metadata | (told if options.learnt_from else {})
    return save_weights(options.output, given.state_dict, given.config, metadata, dtype)
