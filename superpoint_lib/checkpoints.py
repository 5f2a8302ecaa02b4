"""Find, read, recognise and write weight files.

Our own files are safetensors whose metadata holds the model's configuration. The public SuperPoint
checkpoints differ in the names of their layers, in where normalisation stands and in its eps; each
layout is recognised by its keys and mapped to our names and configuration, so that one ``model``
serves all. Nothing here ever runs code from a file.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from superpoint_lib.paths import atomic_path, bundled_weights_dir

BUNDLED_NAMES = ("superpoint", "superpoint-open", "magicpoint", "magicpoint-synthetic")
"""Weights that come inside the package, as safetensors of float16 or, newer ones, int8."""

OWN_LAYOUT = "superpoint-lib"
OWN_VERSION = 1
_STEP = ".step"
_SMALL_SHARE = 0.02  # of the numbers of a network: a kernel with less is small

_BLOCKS = (
    *(f"encoder.block{stage}{half}" for stage in (1, 2, 3, 4) for half in "ab"),
    *(f"{head}.{part}" for head in ("detector", "descriptor") for part in ("hidden", "output")),
)
_CONV_PARTS = ("weight", "bias")
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"
_OWN_KEY = "encoder.block1a.conv.weight"
_TRAINED = "weights.safetensors"  # what a training calls them, in its folder
_WRAPPERS = ("model_state_dict", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.", "model.")


@dataclass(frozen=True)
class Weights:
    """What a weight file holds, in this library's terms.

    Attributes:
        state_dict: parameter name of ``MagicPoint`` or ``SuperPoint`` to CPU tensor; floating-point
            tensors are float32 whatever the file stores.
        config: fields of ``model.ModelConfig`` as plain values; fields left out have its defaults.
        layout: "superpoint-lib" (ours), "magicleap", "rpautrat-v6", "zeng-tf-bn" or "eric".
        metadata: what was stored beside the weights (how they were made); empty for other layouts.
    """

    state_dict: dict[str, Tensor]
    config: dict[str, Any]
    layout: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """Where a public checkpoint keeps each of our blocks, and how its network is built.

    Attributes:
        convs: prefix of the convolution of each of ``_BLOCKS``, in that order.
        norms: likewise for the normalisation; empty where there is none.
        config: the fields of ``ModelConfig`` that the layout decides.
    """

    name: str
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    config: dict[str, Any]

    def key_map(self) -> dict[str, str]:
        """Map each key of the file to our key."""
        mapping: dict[str, str] = {}
        for block, conv in zip(_BLOCKS, self.convs, strict=True):
            mapping |= {f"{conv}.{part}": f"{block}.conv.{part}" for part in _CONV_PARTS}
        if self.norms:
            for block, norm in zip(_BLOCKS, self.norms, strict=True):
                mapping |= {f"{norm}.{part}": f"{block}.norm.{part}" for part in _NORM_PARTS}
        return mapping


_NO_NORM = {"norm": "none"}
_NORM_AFTER_RELU = {
    "norm": "batch",
    "norm_order": "conv-relu-norm",
    "norm_outputs": True,
    "norm_eps": 1e-3,
}
_NORM_BEFORE_RELU = {
    "norm": "batch",
    "norm_order": "conv-norm-relu",
    "norm_outputs": True,
    "norm_eps": 1e-5,
}
_HEAD_LETTERS = ("Pa", "Pb", "Da", "Db")
_ERIC_STAGES = ("inc.conv.conv", *(f"down{stage}.mpconv.1.conv" for stage in (1, 2, 3)))

# All four have the paper's widths and count the pixels of a cell row by row, as we do.
_LAYOUTS = (
    # magicleap/SuperPointPretrainedNetwork, superpoint_v1.pth.
    _Layout(
        "magicleap",
        convs=(
            *(f"conv{stage}{half}" for stage in (1, 2, 3, 4) for half in "ab"),
            *(f"conv{letters}" for letters in _HEAD_LETTERS),
        ),
        norms=(),
        config=_NO_NORM,
    ),
    # rpautrat/SuperPoint, superpoint_v6_from_tf.pth; glue-factory's superpoint_open is the same.
    _Layout(
        "rpautrat-v6",
        convs=(
            *(f"backbone.{stage}.{half}.conv" for stage in range(4) for half in range(2)),
            *(f"{head}.{part}.conv" for head in ("detector", "descriptor") for part in range(2)),
        ),
        norms=(
            *(f"backbone.{stage}.{half}.bn" for stage in range(4) for half in range(2)),
            *(f"{head}.{part}.bn" for head in ("detector", "descriptor") for part in range(2)),
        ),
        config=_NORM_AFTER_RELU,
    ),
    # shaofengzeng/SuperPoint-Pytorch, superpoint_bn.pth: converted from TensorFlow, whose eps is
    # 1e-3. Networks trained there from scratch (eps 1e-5) have the same keys.
    _Layout(
        "zeng-tf-bn",
        convs=(
            *(f"backbone.block{stage}_{half}.0" for stage in (1, 2, 3, 4) for half in (1, 2)),
            *(f"detector_head.conv{letters}" for letters in _HEAD_LETTERS[:2]),
            *(f"descriptor_head.conv{letters}" for letters in _HEAD_LETTERS[2:]),
        ),
        norms=(
            *(f"backbone.block{stage}_{half}.2" for stage in (1, 2, 3, 4) for half in (1, 2)),
            *(f"detector_head.bn{letters}" for letters in _HEAD_LETTERS[:2]),
            *(f"descriptor_head.bn{letters}" for letters in _HEAD_LETTERS[2:]),
        ),
        config=_NORM_AFTER_RELU,
    ),
    # eric-yyjau/pytorch-superpoint, SuperPointNet_gauss2.
    _Layout(
        "eric",
        convs=(
            *(f"{stage}.{index}" for stage in _ERIC_STAGES for index in (0, 3)),
            *(f"conv{letters}" for letters in _HEAD_LETTERS),
        ),
        norms=(
            *(f"{stage}.{index}" for stage in _ERIC_STAGES for index in (1, 4)),
            *(f"bn{letters}" for letters in _HEAD_LETTERS),
        ),
        config=_NORM_BEFORE_RELU,
    ),
)


def load_weights(name_or_path: str | Path) -> Weights:
    """Read a weight file and say what it is.

    Convention: a bundled name wins over a file of that name; write "./superpoint" for the file.
    The layout "zeng-tf-bn" is read with eps 1e-3, which fits its converted TensorFlow weights; the
    keys cannot tell them from networks trained in that repository with eps 1e-5.

    Args:
        name_or_path: one of ``BUNDLED_NAMES``, a ``.safetensors`` file written by
            ``save_weights``, the folder of a training that holds one, the state dict of one of our
            networks without normalisation (what it is shows in its shapes), or a PyTorch file in
            the layout of Magic Leap, rpautrat (v6), shaofengzeng or eric-yyjau, with or without a
            mapping around it ("model_state_dict", "state_dict", "model") and the prefix "module."
            or "model." of wrappers.

    Returns:
        The tensors under our names, the configuration they need, and the layout.

    Raises:
        FileNotFoundError: no such file, or a bundled name whose file is not there.
        ValueError: not a weight file, a pickle holding anything beside tensors and plain values
            (refused unread), keys of no known layout, or missing or unknown keys, named.
    """
    path = _find(name_or_path)
    tensors, header = (
        _read_safetensors(path) if _holds_safetensors(path) else (_read_torch(path), {})
    )
    tensors = _without_prefix(_as_floats(tensors))
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors are not finite, {broken[0]!r} the first")
    if header.get("layout") == OWN_LAYOUT:
        config, metadata = _read_header(header, path)
        return Weights(tensors, config, OWN_LAYOUT, metadata)
    if _OWN_KEY in tensors:
        return Weights(tensors, _config_of_shapes(tensors, path), OWN_LAYOUT, {})
    layout = _recognise(tensors, path)
    return Weights(_rename(tensors, layout, path), dict(layout.config), layout.name, {})


def save_weights(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write weights as safetensors, at once or not at all.

    Convention: as int8, a kernel w is stored as whole numbers q = round(w / s), -127..127, and as
    one step s = max |w| / 127 for each output channel, under the kernel's key and ".step"; all
    else is float16 then. So are kernels with less than a fiftieth of all numbers: they save next to
    nothing, and the first kernels and the detector's last ones, which are so small, bear rounding
    worst. ``load_weights`` gives q s.

    Args:
        path: must end in ``.safetensors``.
        state_dict: of a ``MagicPoint`` or ``SuperPoint``; any device and memory format.
        config: the fields of its ``ModelConfig``, as plain values (``config.to_dict``).
        metadata: what a reader should know of how the weights were made, as plain values.
        dtype: what floating-point tensors are stored as; torch.int8 halves float16's size, for
            errors of half a step. Integers are kept.

    Returns:
        The path.

    Raises:
        ValueError: another extension, or a tensor that is not finite once stored as ``dtype``
            (float16 ends at 65504), named.
        TypeError: ``config`` or ``metadata`` has no JSON form.
    """
    path = Path(path)
    if not _is_safetensors(path):
        raise ValueError(f"{path}: weights are written as .safetensors; give the file that ending")
    tensors: dict[str, Tensor] = {}
    floats = torch.float16 if dtype == torch.int8 else dtype
    least = _SMALL_SHARE * sum(value.numel() for value in state_dict.values())
    for key, value in state_dict.items():
        stored = value.detach().to("cpu", floats if value.is_floating_point() else value.dtype)
        if not stored.isfinite().all():
            raise ValueError(f"{path}: {key!r} is not finite as {floats}; nothing was written")
        if dtype == torch.int8 and value.ndim == 4 and value.numel() >= least:
            stored, tensors[key + _STEP] = _as_steps(value.detach().to("cpu", torch.float32))
        tensors[key] = stored.contiguous()
    header = {
        "layout": OWN_LAYOUT,
        "version": str(OWN_VERSION),
        "config": json.dumps(dict(config)),
        "metadata": json.dumps(dict(metadata)),
    }
    with atomic_path(path) as temporary:
        # save_file would make a file that only its owner can read.
        temporary.write_bytes(save(tensors, header))
    return path


def _as_steps(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel (O, I, h, w) as int8 multiples of steps (O,)."""
    steps = kernel.abs().amax((1, 2, 3)) / 127
    # A channel that is zero throughout has any step.
    steps = torch.where(steps > 0, steps, 1.0)
    return (kernel / steps[:, None, None, None]).round().to(torch.int8), steps


def _as_floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was stored, as float32; integers that are not multiples of steps stay."""
    floats = {}
    for key, value in tensors.items():
        if key + _STEP in tensors:
            floats[key] = value * tensors[key + _STEP][:, None, None, None]
        elif not key.endswith(_STEP):
            floats[key] = value.float() if value.is_floating_point() else value
    return floats


def _find(name_or_path: str | Path) -> Path:
    if name_or_path in BUNDLED_NAMES:
        path = bundled_weights_dir() / f"{name_or_path}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"the bundled weights {name_or_path!r} are not in this installation (no {path}); "
                "train them with `superpoint train`, or give the path of a weight file"
            )
        return path
    path = Path(name_or_path)
    if path.is_dir() and (path / _TRAINED).is_file():
        return path / _TRAINED
    if path.is_dir():
        raise FileNotFoundError(f"the folder {path} holds no {_TRAINED}")
    if not path.is_file():
        raise FileNotFoundError(
            f"no weight file {path}; the bundled names, given as str, are "
            f"{', '.join(BUNDLED_NAMES)}"
        )
    return path


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _holds_safetensors(path: Path) -> bool:
    """Told by the ending, or under another one by how they begin: eight bytes, and then JSON."""
    with path.open("rb") as file:
        return _is_safetensors(path) or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file: {error}") from error


def _read_header(header: Mapping[str, str], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if header.get("version") != str(OWN_VERSION):
        raise ValueError(
            f"{path}: written by another version of this library (file version "
            f"{header.get('version')}, known: {OWN_VERSION}); update superpoint-lib"
        )
    try:
        return json.loads(header["config"]), json.loads(header["metadata"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its stored configuration cannot be read: {error!r}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, since it is damaged or holds Python objects beside tensors and "
            "plain values, which could run code when read. Where you trust its origin, load it "
            "with the software that wrote it and save its state_dict() alone"
        ) from error
    except Exception as error:
        # Nearly anything: text is read as a pickle's instructions, and fails as these happen to.
        raise ValueError(f"{path}: not a PyTorch weight file: {error!r}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        held = f"; it holds {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{path}: holds no state dict (a mapping of names to tensors), by itself or as one of "
            f"{', '.join(_WRAPPERS)}{held}"
        )
    return dict(content)


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without what wrappers of a network put before every name."""
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def _config_of_shapes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The configuration of a state dict of our own, which alone does not hold it."""
    if any(".norm." in key for key in tensors):
        raise ValueError(
            f"{path}: a state dict with normalisation, whose order and eps it does not tell; write "
            "it by checkpoints.save_weights(path, model.state_dict(), "
            "config.to_dict(model.config), {})"
        )
    try:
        widths = {block: len(tensors[f"{block}.conv.bias"]) for block in _BLOCKS[:9]}
    except KeyError as error:
        raise ValueError(
            f"{path}: a state dict of a network of ours, but without {error}"
        ) from None
    config: dict[str, Any] = {"norm": "none", "head_channels": widths["detector.hidden"]}
    config["channels"] = tuple(widths[f"encoder.block{stage}b"] for stage in (1, 2, 3, 4))
    if (output := tensors.get("descriptor.output.conv.bias")) is not None:
        config["descriptor_dim"] = len(output)
    return config


def _recognise(tensors: Mapping[str, Tensor], path: Path) -> _Layout:
    """Return the layout most of whose keys are there."""

    def share(layout: _Layout) -> float:
        keys = layout.key_map()
        return sum(key in tensors for key in keys) / len(keys)

    best = max(_LAYOUTS, key=share)
    if share(best) <= 0.5:
        some = ", ".join(sorted(tensors)[:5]) or "none"
        names = ", ".join([OWN_LAYOUT, *(layout.name for layout in _LAYOUTS)])
        raise ValueError(
            f"{path}: its keys ({some}, ...) fit no known layout; known layouts: {names}"
        )
    return best


def _rename(tensors: Mapping[str, Tensor], layout: _Layout, path: Path) -> dict[str, Tensor]:
    key_map = layout.key_map()
    missing = [key for key in key_map if key not in tensors]
    # PyTorch's batch counters say nothing about the network; converted files often lack them.
    unknown = [key for key in tensors if key not in key_map and not key.endswith(_COUNTER)]
    if missing or unknown:
        raise ValueError(
            f"{path}: looks like the {layout.name} layout, but has missing keys "
            f"{missing or 'none'} and unknown keys {unknown or 'none'}"
        )
    return {ours: tensors[theirs] for theirs, ours in key_map.items()}
