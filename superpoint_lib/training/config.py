"""What defines a training run, and the recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS, PhotometricConfig
from superpoint_lib.config import ConfigError, check_types, replace
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS, HomographyConfig
from superpoint_lib.losses import HINGE_LAMBDAS, HINGE_PRESETS
from superpoint_lib.model import ModelConfig, Precision

_AT_LEAST_1 = (
    "steps",
    "batch_size",
    "log_every",
    "checkpoint_every",
    "repeatability_reach",
    "head_channels",
    "descriptor_dim",
)
_NOT_NEGATIVE = (
    "detector_weight",
    "position_weight",
    "agreement_weight",
    "agreement_within",
    "label_radius",
    "repeatability_weight",
    "repeatability_zoom",
    "descriptor_weight",
    "freeze_norm_after",
    "drawn_every",
    "learning_rate",
    "weight_decay",
    "gradient_clip",
    "exclusion",
    "seed",
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run. ``RECIPES`` holds ready ones.

    Sizes are in pixels, of the pictures the network sees.

    Attributes:
        model: detector alone, or detector and descriptors.
        norm: normalisation after each convolution.
        norm_order: whether it stands before or after the ReLU.
        norm_outputs: normalise the two output layers as well, as SuperPoint-Pytorch does.
        norm_eps: added to the variance.
        norm_momentum: of the running statistics of batch normalisation.
        norm_groups: of group normalisation.
        channels: of the four blocks of the encoder.
        head_channels: of the hidden layer of both heads.
        descriptor_dim: length of a descriptor.
        init: a bundled name or a weight file to start from, "" for random weights; a file without a
            descriptor head leaves that one random.
        data: "shapes" drawn on the fly, or "photos" with labels.
        images: folders of photographs; "auto" is data/coco/train2017 if it is there, else
            "bundled", the photographs inside the dependencies.
        labels: a folder of labels (superpoint adapt) for each folder of images.
        height: of the samples, a multiple of 8.
        width: of the samples, a multiple of 8.
        photometric: changes of gray levels: none, synthetic, coco_magicpoint, coco_superpoint,
            strong or harsh (notebook 01), or several, "coco_superpoint+harsh", one of which is
            drawn for each view.
        homography: the warp: a preset of notebook 03, or several, "coco+any-scale", which samples
            take in turn.
        views: 1, or 2: a picture and its warp.
        enlarge: photographs are cropped and made smaller, or enlarged up to so many times, by
            chance.
        whole_picture: make the second view from the whole photograph, with the detail that the crop
            has lost and what lies beyond it, instead of from the first view.
        drawn_every: so many photographs, one of which is replaced by drawn shapes (by which no
            descriptor is learnt); 0 for none.
        detector_weight: of the detector loss.
        position_weight: of the loss of the refined positions (``losses.position_loss``); 0 leaves
            it out.
        agreement_weight: of the loss of their agreement between both views
            (``losses.agreement_loss``); 0 leaves it out.
        agreement_within: keypoints of both views that lie farther apart, in pixels, are not asked
            to agree; 0 asks all.
        repeatability_weight: of the loss of what the other view does not find again
            (``losses.repeatability_loss``); 0 leaves it out.
        repeatability_reach: how far away it may be found, in pixels along x and y.
        repeatability_zoom: what the other view shows more than so many times larger does not count;
            0 counts all.
        label_threshold: least score of a photograph's label.
        label_radius: of a photograph's labels nearer than so many pixels to each other in a view
            (in the second only with ``whole_picture``) the best is kept; 0 keeps all.
        soft_targets: ask the detector for the probabilities of the labels
            (``losses.keypoints_to_targets``) instead of for every keypoint with certainty.
        sharpen: exponent of those probabilities, above 1 to make the likely ones more certain and
            the others less (``losses.sharpen_probabilities``).
        descriptor_weight: lambda of the published loss; 0 trains the detector alone.
        descriptor_loss: the published hinge, InfoNCE, or a hinge on a sample of cells.
        hinge: preset of margins and weights: default, paper, rpautrat, eric, zeng or zeng-stage1
            (notebook 04).
        temperature: of InfoNCE.
        everywhere: InfoNCE chooses among all cells of the other view, not only among the places
            where cells land.
        at_keypoints: InfoNCE finds keypoints again (among keypoints, with ``everywhere``), and the
            centres of cells that have none; else the centres of all.
        exclusion: pixels around its place in the other view where InfoNCE holds nothing to be
            wrong.
        freeze_norm_after: fraction of the steps after which batch normalisation uses, and no longer
            changes, its running statistics.
        one_forward: send both views of a pair through the network together, so that batch
            normalisation sees them with the same statistics; the published implementations send one
            after the other.
        steps: of the optimiser.
        batch_size: pictures, or pairs, in a step.
        learning_rate: the highest of the schedule.
        optimizer: Adam, or with decoupled weight decay.
        weight_decay: of the kernels.
        schedule: see ``training.learning_rate_at``.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        ema_decay: of the moving average of the weights; 0 for none.
        device: cpu, cuda or mps; "auto" is the CUDA GPU where there is one, else the processor.
        precision: of the network; "auto" is bfloat16 where that is faster.
        compile: compile the network and the losses with torch.compile: a minute or so at the start,
            then a GPU needs half the time for a step. On a CPU it does not pay.
        seed: of weights, samples and their order.
        log_every: steps between two rows of the history.
        checkpoint_every: steps between checkpoints.
        workers: processes that load data; None: some on a GPU, none on a CPU, where they would
            compete for the cores.
        augment_on: "device" warps and changes whole batches where the network is (``batches``),
            "cpu" sample by sample where they are loaded; "auto" takes the GPU where there is one.

    Raises:
        ConfigError: values that contradict each other, naming the keys.
    """

    model: Literal["magicpoint", "superpoint"] = "magicpoint"
    norm: Literal["none", "batch", "group"] = "batch"
    norm_order: Literal["conv-norm-relu", "conv-relu-norm"] = "conv-norm-relu"
    norm_outputs: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    norm_groups: int = 8
    channels: tuple[int, int, int, int] = (64, 64, 128, 128)
    head_channels: int = 256
    descriptor_dim: int = 256
    init: str = ""

    data: Literal["shapes", "photos"] = "shapes"
    images: tuple[str, ...] = ("bundled",)
    labels: tuple[str, ...] = ()
    height: int = 120
    width: int = 160
    photometric: str = "synthetic"
    homography: str = "synthetic"
    views: int = 1
    enlarge: float = 1.0
    whole_picture: bool = False
    drawn_every: int = 0

    detector_weight: float = 1.0
    position_weight: float = 0.0
    agreement_weight: float = 0.0
    agreement_within: float = 0.0
    repeatability_weight: float = 0.0
    repeatability_reach: int = 2
    repeatability_zoom: float = 0.0
    label_threshold: float = 0.0
    label_radius: float = 0.0
    soft_targets: bool = False
    sharpen: float = 1.0
    descriptor_weight: float = 0.0
    descriptor_loss: Literal["hinge", "infonce", "sparse"] = "infonce"
    hinge: str = "default"
    temperature: float = 0.05
    everywhere: bool = False
    at_keypoints: bool = False
    exclusion: float = 8.0
    freeze_norm_after: float = 1.0
    one_forward: bool = True

    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 2e-3
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["one-cycle", "constant", "cosine"] = "one-cycle"
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    device: str = "auto"
    precision: Precision = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    workers: int | None = None
    augment_on: Literal["auto", "cpu", "device"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        if self.views not in (1, 2):
            raise ConfigError(f"views: must be 1 or 2, got {self.views}")
        for key, names, table in (
            ("photometric", self.photometric.split("+"), PHOTOMETRIC_PRESETS),
            ("homography", self.homography.split("+"), HOMOGRAPHY_PRESETS),
            ("hinge", [self.hinge], HINGE_PRESETS),
        ):
            for name in names:
                if name not in table:
                    raise ConfigError(f"{key}: no preset {name!r}; known: {list(table)}")
        for key in _AT_LEAST_1:
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if min(self.channels) < 1:
            raise ConfigError(f"channels: must be at least 1 each, got {self.channels}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers: must not be negative, got {self.workers}")
        for key in _NOT_NEGATIVE:
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError(
                    f"{key}: must be finite and not negative, got {getattr(self, key)}"
                )
        for key in ("enlarge", "sharpen", "temperature"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{key}: must be above 0 and finite, got {getattr(self, key)}")
        if not 0 <= self.label_threshold <= 1:
            raise ConfigError(f"label_threshold: must be in [0, 1], got {self.label_threshold}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: must be in [0, 1), got {self.ema_decay}")

    def _check_combinations(self) -> None:
        if self.descriptor_weight and (self.model != "superpoint" or self.views != 2):
            raise ConfigError(
                "descriptor_weight: a descriptor loss needs model 'superpoint' and views 2, got "
                f"model {self.model!r} and views {self.views}"
            )
        for key in ("agreement_weight", "repeatability_weight"):
            if getattr(self, key) and self.views != 2:
                raise ConfigError(f"{key}: needs views 2, got views {self.views}")
        for key in ("everywhere", "at_keypoints"):
            if getattr(self, key) and self.descriptor_loss != "infonce":
                raise ConfigError(
                    f"{key}: a setting of descriptor_loss 'infonce', got {self.descriptor_loss!r}"
                )
        if not self.detector_weight and not self.descriptor_weight:
            raise ConfigError(
                "detector_weight and descriptor_weight are both 0: the other losses only go "
                "beside one of them"
            )
        if self.soft_targets and self.data != "photos":
            raise ConfigError(
                "soft_targets: drawn shapes are certain; probabilities come with the labels of "
                f"photos, got data {self.data!r}"
            )
        if self.sharpen != 1 and not self.soft_targets:
            raise ConfigError("sharpen: only the probabilities of soft_targets can be sharpened")
        if self.whole_picture and (self.data != "photos" or self.views != 2):
            raise ConfigError(
                "whole_picture: needs data 'photos' and views 2, got "
                f"data {self.data!r} and views {self.views}"
            )
        if self.drawn_every and self.data != "photos":
            raise ConfigError("drawn_every: every sample of data 'shapes' is drawn")
        if self.data == "photos" and not self.labels:
            raise ConfigError(
                "labels: training on photos needs a folder of pseudo-labels for each folder of "
                "images (superpoint adapt, notebook 03)"
            )

    @property
    def homographies(self) -> list[HomographyConfig]:
        """The presets that ``homography`` names."""
        return [HOMOGRAPHY_PRESETS[name] for name in self.homography.split("+")]

    @property
    def photometrics(self) -> list[PhotometricConfig]:
        """The presets that ``photometric`` names."""
        return [PHOTOMETRIC_PRESETS[name] for name in self.photometric.split("+")]

    @property
    def model_config(self) -> ModelConfig:
        """The fields that describe the network."""
        names = [field.name for field in fields(ModelConfig)]
        return ModelConfig(**{name: getattr(self, name) for name in names})


_ORIGINAL = TrainConfig(
    model="superpoint",
    norm="batch",
    norm_order="conv-relu-norm",
    norm_outputs=True,
    one_forward=False,
    data="photos",
    images=("auto",),
    labels=("runs/labels",),
    height=240,
    width=320,
    photometric="coco_superpoint",
    homography="coco",
    views=2,
    descriptor_loss="hinge",
    steps=200_000,
    batch_size=2,
    optimizer="adam",
    weight_decay=0.0,
    schedule="constant",
)

_PAIRS = TrainConfig(
    model="superpoint",
    data="photos",
    images=("auto",),
    labels=("runs/labels",),
    photometric="coco_superpoint",
    homography="coco",
    views=2,
    batch_size=12,
    gradient_clip=5.0,
)

_SUPERPOINT = replace(
    _PAIRS,
    height=144,
    width=192,
    descriptor_weight=1.0,
    descriptor_loss="infonce",
    temperature=0.05,
    steps=1300,
    batch_size=10,
    learning_rate=1.5e-3,
    freeze_norm_after=0.85,
)

_FURTHER = replace(
    _SUPERPOINT,
    norm="none",
    init="runs/superpoint-first.safetensors",
    labels=("runs/labels2",),
    photometric="strong",
    homography="any-angle",
    position_weight=0.5,
    steps=3200,
    learning_rate=5e-4,
    ema_decay=0.999,
)

_SOFT = replace(
    _FURTHER,
    init="runs/superpoint-second.safetensors",
    labels=("runs/labels3",),
    photometric="coco_superpoint",
    homography="coco",
    position_weight=0.0,
    soft_targets=True,
    steps=2000,
)

_AGREEMENT = replace(_SOFT, init="runs/superpoint-third.safetensors", agreement_weight=2.0)

_TURNED = replace(
    _AGREEMENT,
    init="runs/superpoint-fourth.safetensors",
    labels=("runs/labels4",),
    homography="any-scale",
    steps=5200,
    learning_rate=8e-4,
)

_MIXED = replace(
    _TURNED,
    init="runs/superpoint-turned.safetensors",
    homography="coco+any-scale",
    steps=4600,
    learning_rate=6e-4,
)

_ENLARGED = replace(
    _MIXED,
    init="runs/superpoint-mixed.safetensors",
    enlarge=1.5,
    steps=7000,
    learning_rate=8e-4,
)

_AGREED = replace(
    _ENLARGED,
    init="runs/superpoint-repeatable.safetensors",
    labels=("runs/labels7",),
    steps=6000,
    drawn_every=9,
    repeatability_weight=8.0,
    repeatability_reach=1,
)

_STURDY = replace(
    _AGREED,
    init="runs/superpoint-agreed-blended.safetensors",
    photometric="coco_superpoint+coco_superpoint+coco_superpoint+harsh",
    whole_picture=True,
    everywhere=True,
    at_keypoints=True,
    steps=4500,
)

_DISTANT = replace(
    _STURDY,
    init="runs/superpoint-sturdy-blended.safetensors",
    homography="coco+any-distance",
    descriptor_weight=2.0,
    exclusion=4.0,
    steps=7000,
)

_WIDE = replace(
    _DISTANT,
    init="runs/superpoint-distant-blended.safetensors",
    labels=("runs/labels8",),
    height=192,
    width=256,
    photometric="+".join(5 * ["coco_superpoint"] + ["harsh"]),
    steps=4600,
    batch_size=96,
    learning_rate=1.5e-3,
    gradient_clip=20.0,
)

_NEAR = replace(
    _WIDE,
    init="runs/superpoint-wide-blended.safetensors",
    labels=("runs/labels9",),
    steps=5000,
    compile=True,
)

_FAIR = replace(
    _NEAR,
    init="runs/superpoint-near-blended.safetensors",
    labels=("runs/labels10",),
    agreement_within=2.0,
    label_radius=4.0,
    repeatability_zoom=1.5,
)

# Labels taken for certain: asked for their probabilities, a young network finds half as many
# keypoints, all of them faint, and those are the labels of the next round.
_CERTAIN = replace(
    _FAIR, repeatability_weight=0.0, soft_targets=False, label_threshold=0.015, steps=1500
)

_OPEN = replace(
    _SOFT,
    init="runs/magicpoint-synthetic-first.safetensors",
    images=("data/open", "bundled"),
    labels=("runs/labels-open/open", "runs/labels-open/training"),
    steps=2200,
    learning_rate=1e-3,
)

_OPEN_SECOND = replace(
    _DISTANT,
    init="runs/superpoint-open-first.safetensors",
    images=_OPEN.images,
    labels=("runs/labels-open2/open", "runs/labels-open2/training"),
    photometric=_WIDE.photometric,
    repeatability_weight=0.0,
    steps=1500,
    learning_rate=3e-4,
)

_OPEN_THIRD = replace(
    _OPEN_SECOND,
    init="runs/superpoint-open-second.safetensors",
    labels=("runs/labels-open3/open", "runs/labels-open3/training"),
    agreement_within=2.0,
    label_radius=4.0,
    repeatability_weight=6.0,
    repeatability_zoom=1.5,
    steps=1200,
)

_OPEN_FOURTH = replace(
    _OPEN_THIRD,
    init="runs/superpoint-open-third.safetensors",
    labels=("runs/labels-open4/open", "runs/labels-open4/training"),
    soft_targets=False,
    steps=2800,
)

_OPEN_FIFTH = replace(
    _OPEN_FOURTH,
    init="runs/superpoint-open-fourth.safetensors",
    labels=("runs/labels-open5/open", "runs/labels-open5/training"),
    label_threshold=0.01,
    learning_rate=5e-4,
    seed=5,  # the first steps of the two before saw the same views
)

# By now its labels are as sure as those of superpoint.
_OPEN_SIXTH = replace(
    _OPEN_FIFTH,
    init="runs/superpoint-open-fifth.safetensors",
    labels=("runs/labels-open6/open", "runs/labels-open6/training"),
    soft_targets=True,
    seed=6,
)

#: Ready configurations, by what they train (superpoint_lib/weights/README.md has the commands).
#:
#: * magicpoint-synthetic: the first detector, from drawn shapes; full-magicpoint, on a GPU, the
#:   bundled one. magicpoint-adapted: the bundled magicpoint, to be given the first as ``init``.
#: * The bundled superpoint, each starting from the one before or, from superpoint-repeatable on,
#:   from an average of those before: superpoint (to be given magicpoint as ``init``; the others
#:   expect theirs in runs), -further, -soft, -agreement, -turned, -mixed, -sharper, -repeatable,
#:   -agreed, -sturdy, -distant, -wide, -near and -fair. Their labels are of the first round of
#:   adaptation, a second (further), a third (soft, agreement), a fourth (turned, mixed), a fifth
#:   (sharper, repeatable), a sixth (agreed, sturdy, distant), a seventh (wide), an eighth (near)
#:   and a ninth (fair). From -further on there is no normalisation: the weights are folded. -wide,
#:   -near and -fair want a GPU.
#: * The bundled superpoint-open, from drawn shapes and pictures of open licences alone:
#:   superpoint-open, then superpoint-open-second, on labels of a second round and with what the
#:   others had learnt since, superpoint-open-third, on labels of a third, with the losses of two
#:   views counting less of what is not theirs, superpoint-open-fourth and -fifth, which take
#:   labels for certain, and superpoint-open-sixth, which asks for their probabilities again.
#: * The profile full, on a GPU: full-first, full-second and full-superpoint, the same lessons in
#:   three trainings after full-magicpoint.
#: * Tried and not shipped (results/TRIALS.md): superpoint-finer, from superpoint-mixed on, and
#:   superpoint-placed, from superpoint-wide on, on a GPU.
#: * As published: original-stage1 and -stage2 (to be given stage 1's weights) are the training
#:   steps of SuperPoint-Pytorch's README, one-stage its loss with both heads from scratch. Gray
#:   levels change as in the other recipes, where the original leaves the first view as it is and
#:   changes the second before the warp, with fewer and smaller shades.
RECIPES: dict[str, TrainConfig] = {
    "magicpoint-synthetic": TrainConfig(steps=1500, freeze_norm_after=0.85, gradient_clip=5.0),
    "magicpoint-adapted": replace(
        _PAIRS, height=120, width=160, steps=500, learning_rate=1e-3, freeze_norm_after=0.8
    ),
    "superpoint": _SUPERPOINT,
    "superpoint-further": _FURTHER,
    "superpoint-soft": _SOFT,
    "superpoint-agreement": _AGREEMENT,
    "superpoint-turned": _TURNED,
    "superpoint-mixed": _MIXED,
    "superpoint-finer": replace(_ENLARGED, labels=("runs/labels5",), agreement_weight=3.0),
    "superpoint-sharper": replace(_ENLARGED, labels=("runs/labels6",), drawn_every=9, sharpen=2.0),
    "superpoint-repeatable": replace(
        _ENLARGED,
        init="runs/superpoint-blended.safetensors",
        labels=("runs/labels6",),
        drawn_every=9,
        repeatability_weight=6.0,
    ),
    "superpoint-agreed": _AGREED,
    "superpoint-sturdy": _STURDY,
    "superpoint-distant": _DISTANT,
    "superpoint-wide": _WIDE,
    "superpoint-near": _NEAR,
    "superpoint-fair": _FAIR,
    "superpoint-placed": replace(_NEAR, position_weight=1.0),
    "full-magicpoint": TrainConfig(
        steps=4000, batch_size=128, freeze_norm_after=0.85, gradient_clip=20.0, ema_decay=0.999
    ),
    "full-first": replace(
        _CERTAIN,
        norm="batch",
        init="runs/train/full-magicpoint/weights.safetensors",
        labels=("runs/labels-full-first",),
        freeze_norm_after=1.0,  # a change there would be compiled anew
        learning_rate=2e-3,
        seed=1,  # each of these sees views of its own
    ),
    "full-second": replace(
        _CERTAIN,
        init="runs/full-first.safetensors",
        labels=("runs/labels-full-second",),
        seed=2,
    ),
    "full-superpoint": replace(
        _FAIR,
        init="runs/full-second.safetensors",
        labels=("runs/labels-full",),
        steps=12_000,
        seed=3,
    ),
    "superpoint-open": _OPEN,
    "superpoint-open-second": _OPEN_SECOND,
    "superpoint-open-third": _OPEN_THIRD,
    "superpoint-open-fourth": _OPEN_FOURTH,
    "superpoint-open-fifth": _OPEN_FIFTH,
    "superpoint-open-sixth": _OPEN_SIXTH,
    "original-stage1": replace(_ORIGINAL, learning_rate=0.01),
    "original-stage2": replace(
        _ORIGINAL,
        learning_rate=1e-4,
        hinge="zeng-stage1",
        descriptor_weight=HINGE_LAMBDAS["zeng-stage1"],
    ),
    "one-stage": replace(
        _ORIGINAL,
        learning_rate=1e-4,
        hinge="zeng",
        descriptor_weight=HINGE_LAMBDAS["zeng"],
    ),
}
