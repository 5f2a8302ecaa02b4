"""The networks: a VGG encoder with a keypoint head (MagicPoint) and a descriptor head (SuperPoint).

Images in, maps out. Decoding, suppression and sampling are functions in ``extraction``; reading and
mapping weight files is ``checkpoints``. Architecture: DeTone, Malisiewicz and Rabinovich,
"SuperPoint: Self-Supervised Interest Point Detection and Description", 2018, section 3.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superpoint_lib import config as configuration
from superpoint_lib.checkpoints import Weights, load_weights
from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN
from superpoint_lib.machine import bfloat16_is_faster

Precision = Literal["auto", "bf16", "float32"]
M = TypeVar("M", bound="MagicPoint")


@dataclass(frozen=True)
class ModelConfig:
    """What can differ between published SuperPoint networks; the defaults are ours.

    Attributes:
        descriptor_dim: length of a descriptor.
        norm: normalisation layer after each hidden convolution.
        norm_order: whether it comes before or after the ReLU.
        norm_outputs: whether the two 1x1 output convolutions are normalised as well.
        norm_eps: added to the variance inside the normalisation's square root.
        norm_momentum: weight of the newest batch in the running statistics (PyTorch's convention:
            TensorFlow's momentum 0.99 is 0.01 here).
        norm_groups: number of groups of ``norm="group"``; a layer whose channels it does not divide
            uses their greatest common divisor.
        channels: width of the four encoder stages, each of two 3x3 convolutions.
        head_channels: width of the 3x3 convolution that starts each head.
    """

    descriptor_dim: int = 256
    norm: Literal["none", "batch", "group"] = "batch"
    norm_order: Literal["conv-norm-relu", "conv-relu-norm"] = "conv-norm-relu"
    norm_outputs: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    norm_groups: int = 8
    channels: tuple[int, int, int, int] = (64, 64, 128, 128)
    head_channels: int = 256


class ImageConv2d(nn.Conv2d):
    """The first convolution: under autocast, exact in the image and in its weights.

    Rounded to bfloat16, gray levels keep 8 bits, and filters that should sum to zero no longer do:
    most of what bfloat16 does to the keypoints happens here. Each factor is therefore split into
    its rounded value and the rounded remainder, ``x = x1 + x2``, and ``x1 w1 + x2 w1 + x1 w2`` is
    one convolution of three channels. Only its result, summed in float32, is rounded.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, H, W) to (B, out_channels, H, W)."""
        device = x.device.type
        if self.weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(device)
        x1, x2 = _split(x, dtype)
        w1, w2 = _split(self.weight, dtype)
        images, weights = torch.cat([x1, x2, x1], dim=1), torch.cat([w1, w1, w2], dim=1)
        # With one channel any order of memory is channels_last, with three it has to be asked for.
        weights = weights.contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, weights, self.bias, padding=self.kernel_size[0] // 2)


class ConvBlock(nn.Module):
    """A convolution that keeps height and width, with optional normalisation and ReLU.

    The order of normalisation and ReLU is ``config.norm_order``. Parameters: ``conv.weight``,
    ``conv.bias`` and, where there is a normalisation, ``norm.weight``, ``norm.bias`` and its
    running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        config: ModelConfig,
        normalise: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        convolution = ImageConv2d if in_channels == 1 else nn.Conv2d
        self.conv = convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = _norm_layer(out_channels, config) if normalise else nn.Identity()
        self.relu = relu
        self.norm_first = config.norm_order == "conv-norm-relu"
        # He initialisation keeps the signal's variance through the ReLUs, which matters most
        # where there is no normalisation to restore it.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu" if relu else "linear")
        nn.init.zeros_(_bias(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        x = self.conv(x)
        if not self.relu:
            return self.norm(x)
        if self.norm_first:
            return F.relu(self.norm(x), inplace=True)
        return self.norm(F.relu(x, inplace=True))


class Encoder(nn.Sequential):
    """Eight 3x3 convolutions and three 2x2 max-poolings: (B, 1, H, W) to (B, 128, H/8, W/8)."""

    def __init__(self, config: ModelConfig) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = (1, *config.channels)
        for stage in range(1, len(widths)):
            width = widths[stage]
            layers[f"block{stage}a"] = ConvBlock(widths[stage - 1], width, 3, config)
            layers[f"block{stage}b"] = ConvBlock(width, width, 3, config)
            if stage < len(config.channels):
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
        super().__init__(layers)


class Head(nn.Sequential):
    """A 3x3 convolution and a 1x1 output convolution: features to (B, out_channels, H/8, W/8)."""

    def __init__(self, out_channels: int, config: ModelConfig) -> None:
        hidden = ConvBlock(config.channels[-1], config.head_channels, 3, config)
        output = ConvBlock(
            config.head_channels,
            out_channels,
            1,
            config,
            normalise=config.norm_outputs,
            relu=False,
        )
        super().__init__(OrderedDict(hidden=hidden, output=output))


class MagicPoint(nn.Module):
    """The keypoint detector: every 8x8 cell is classified into its 64 pixels or "no keypoint".

    Trained in notebook 02.

    Args:
        config: the network's widths and normalisation.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else ModelConfig()
        self.encoder = Encoder(self.config)
        self.detector = Head(DUSTBIN + 1, self.config)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the map of cell logits.

        Convention: channel ``dy * 8 + dx`` of a cell is its pixel at column dx, row dy; channel 64
        is the dustbin.

        Args:
            images: (B, 1, H, W) float in [0, 1], H and W multiples of 8. ``extract`` takes any
                size.

        Returns:
            ``{"logits": (B, 65, H/8, W/8)}``, at least float32 whatever the autocast precision.

        Raises:
            ValueError: the shape is another; the message names it.
        """
        return {"logits": self._logits(self._features(images))}

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Build the network a weight file describes, in eval mode, on the CPU.

        Convention: a SuperPoint file read as ``MagicPoint`` drops the descriptor head.

        Args:
            name_or_path: a bundled name ("superpoint", "superpoint-open", "magicpoint",
                "magicpoint-synthetic") or a file in a layout of ``checkpoints.load_weights``.

        Returns:
            The network, with ``.config`` as stored or as the layout implies.

        Raises:
            FileNotFoundError: no such bundled file or path.
            ValueError: not a weight file of a known layout, a missing, unknown or misshapen key,
                or a file without descriptor head read as ``SuperPoint``.
        """
        weights = load_weights(name_or_path)
        where = str(name_or_path)
        config = configuration.from_dict(ModelConfig, weights.config, where=where)
        with _random_state_kept(), torch.device("cpu"):
            model = cls(config)
        model.load_state_dict(_matching_state(model, weights, where))
        # The order of memory in which convolutions are fastest; outputs are in the usual one.
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _features(self, images: Tensor) -> Tensor:
        _check_images(images)
        return self.encoder(images)

    def _logits(self, features: Tensor) -> Tensor:
        block, output = self.detector
        hidden = block(features)
        if torch.is_autocast_enabled(features.device.type):
            # Cheap, and a logit of 10 rounded to 8 bits would be off by up to 0.03.
            hidden = hidden.to(next(output.parameters()).dtype)
            with torch.autocast(features.device.type, enabled=False):
                return _at_least_float32(output(hidden)).contiguous()
        return _at_least_float32(output(hidden)).contiguous()


class SuperPoint(MagicPoint):
    """MagicPoint with a second head that describes each 8x8 cell by a unit vector.

    Trained in notebook 05.

    Args:
        config: the network's widths and normalisation.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__(config)
        self.descriptor = Head(self.config.descriptor_dim, self.config)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of cell logits and of descriptors in one pass.

        Convention: the descriptor of cell (i, j), row i and column j, stands at pixel
        x = 8 j + 3.5, y = 8 i + 3.5, and leaves here with L2 norm 1 (computed in float32).

        Args:
            images: (B, 1, H, W) float in [0, 1], H and W multiples of 8.

        Returns:
            ``{"logits": (B, 65, H/8, W/8), "descriptors": (B, descriptor_dim, H/8, W/8)}``.

        Raises:
            ValueError: the shape is another; the message names it.
        """
        features = self._features(images)
        descriptors = _at_least_float32(self.descriptor(features))
        descriptors = F.normalize(descriptors, dim=1).contiguous()
        return {"logits": self._logits(features), "descriptors": descriptors}


def fold_batch_norm(model: M) -> M:
    """Fold the running statistics of batch normalisation into the convolutions before it.

    In eval mode batch normalisation is the affine map ``g (x - mean) / sqrt(var + eps) + b``, which
    a preceding convolution absorbs: its weights are scaled by ``g / sqrt(var + eps)`` and its bias
    becomes ``(bias - mean) g / sqrt(var + eps) + b``. The result has no normalisation left, so
    train and eval mode agree exactly. Explained in notebook 07.

    Args:
        model: a ``MagicPoint`` or ``SuperPoint`` with ``norm`` "batch" (or "none": copied as is).

    Returns:
        A network of the same class with ``norm="none"`` whose outputs equal those of ``model`` in
        eval mode, on the same device, in eval mode. ``model`` is left as it was.

    Raises:
        ValueError: group normalisation (its statistics depend on the image), or the order
            conv-relu-norm (the affine map cannot pass the ReLU, nor the zero padding of the next
            convolution).
    """
    config = model.config
    if config.norm == "none":
        return copy.deepcopy(model).eval()
    if config.norm != "batch" or config.norm_order != "conv-norm-relu":
        raise ValueError(
            "only norm='batch' with norm_order='conv-norm-relu' can be folded into convolutions; "
            f"this model has norm={config.norm!r}, norm_order={config.norm_order!r}"
        )
    plain = configuration.replace(config, norm="none", norm_outputs=False)
    with _random_state_kept():
        folded = type(model)(plain).to(next(model.parameters()))
    state = {}
    for name, block in model.named_modules():
        if isinstance(block, ConvBlock):
            weight, bias = _folded_convolution(block)
            state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = weight, bias
    folded.load_state_dict(state)
    return folded.eval()


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to compute in bfloat16: "auto" does where that is faster on ``device``.

    Raises:
        ValueError: an unknown precision.
    """
    known = get_args(Precision)
    if precision not in known:
        raise ValueError(f"precision must be one of {', '.join(known)}, got {precision!r}")
    if precision != "auto":
        return precision == "bf16"
    return bfloat16_is_faster(device)


@contextmanager
def exact_float32(exact: bool) -> Iterator[None]:
    """Inside, if ``exact``, no NVIDIA GPU rounds the factors of float32 convolutions to 10 bits.

    It would by default (TF32), as PyTorch sets it.
    """
    # PyTorch 2.9 has a new switch, and refuses to read the old one once the new one was used.
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    switch, name, exactly = (
        (convolutions, "fp32_precision", "ieee")
        if convolutions is not None
        else (torch.backends.cudnn, "allow_tf32", False)
    )
    before = getattr(switch, name) if exact else exactly
    if before not in ("tf32", True):
        yield
        return
    setattr(switch, name, exactly)
    try:
        yield
    finally:
        setattr(switch, name, before)


def _random_state_kept() -> AbstractContextManager[None]:
    """Inside, what a new network draws, to be overwritten, is taken from nobody's sequence."""
    return torch.random.fork_rng(devices=[])


def _norm_layer(channels: int, config: ModelConfig) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm2d(channels, eps=config.norm_eps, momentum=config.norm_momentum)
    if config.norm == "group":
        return nn.GroupNorm(math.gcd(config.norm_groups, channels), channels, eps=config.norm_eps)
    if config.norm == "none":
        return nn.Identity()
    raise ValueError(f"norm={config.norm!r} is not known; choose 'none', 'batch' or 'group'")


def _folded_convolution(block: ConvBlock) -> tuple[Tensor, Tensor]:
    weight, bias = block.conv.weight.detach(), _bias(block.conv).detach()
    norm = block.norm
    if not isinstance(norm, nn.BatchNorm2d):
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    # In double, so that a variance near eps loses nothing to the fold.
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = (bias.double() - norm.running_mean.double()) * scale + norm.bias.detach().double()
    return (weight.double() * scale[:, None, None, None]).to(weight), shifted.to(bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``x`` rounded to ``dtype``, and what is missing, rounded likewise."""
    rounded = x.to(dtype)
    return rounded, (x - rounded).to(dtype)


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 1:
        raise ValueError(
            f"the network needs grayscale images of shape (B, 1, H, W), got {shape}; "
            "extract() takes other forms"
        )
    if shape[2] % CELL_SIZE or shape[3] % CELL_SIZE or not (shape[2] and shape[3]):
        raise ValueError(
            f"height and width must be multiples of {CELL_SIZE}, got {shape}; extract() pads"
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _matching_state(model: nn.Module, weights: Weights, where: str) -> Mapping[str, Tensor]:
    """Return the tensors ``model`` needs, after naming every one that does not fit."""
    expected = model.state_dict()
    given = weights.state_dict
    if not any(key.startswith("descriptor.") for key in given) and hasattr(model, "descriptor"):
        raise ValueError(
            f"{where}: holds no descriptor head ({weights.layout} layout); "
            "read it with MagicPoint.from_pretrained"
        )
    if not hasattr(model, "descriptor"):
        given = {key: value for key, value in given.items() if not key.startswith("descriptor.")}
    # Counts batches for a momentum we never leave to PyTorch; public files often lack it.
    given = {
        **{key: value for key, value in expected.items() if key.endswith("num_batches_tracked")},
        **given,
    }
    problems = [f"missing key {key!r}" for key in expected if key not in given]
    problems += [f"unknown key {key!r}" for key in given if key not in expected]
    problems += [
        f"key {key!r} has shape {tuple(value.shape)}, the configuration needs "
        f"{tuple(expected[key].shape)}"
        for key, value in given.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        raise ValueError(f"{where}: does not fit its configuration: {'; '.join(problems)}")
    return given
