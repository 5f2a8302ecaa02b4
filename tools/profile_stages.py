"""Measure where the time goes in the three heaviest stages; writes results/profile.json.

    python tools/profile_stages.py              # the code as it is, under the name "now"
    python tools/profile_stages.py 0.1.0-start  # under another name, to compare with later

What an earlier call wrote under another name is kept; tools/make_figures.py draws all beside each
other. The functions that do the parts are wrapped while they are measured, which costs a
microsecond a call.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.measuring import DEVICE, report
from benchmark.parts import REST, Part, measured
from benchmark.works import picture_batch, training_configs

from superpoint_lib import MagicPoint, SuperPoint, extract
from superpoint_lib.config import replace
from superpoint_lib.digests import commit_name
from superpoint_lib.machine import machine_name
from superpoint_lib.paths import project_root, results_dir, write_json

OUTPUT = results_dir() / "profile.json"

NETWORK = Part(
    "network forward",
    ("superpoint_lib.model:SuperPoint.forward", "superpoint_lib.model:MagicPoint.forward"),
)
TRAINING = (
    Part(REST, ("superpoint_lib.training.loop:_train_steps",)),
    Part("saving", ("superpoint_lib.training.run:Run.save",), counts=False),
    NETWORK,
    Part(
        "losses",
        (
            "superpoint_lib.losses:detector_loss",
            "superpoint_lib.losses:descriptor_infonce_loss",
        ),
    ),
    Part("backward", ("torch:Tensor.backward",)),
    Part("optimiser", ("torch.optim:AdamW.step", "torch.nn.utils:clip_grad_norm_")),
    Part("data: the rest", ("torch.utils.data.dataloader:_BaseDataLoaderIter.__next__",)),
    Part("data: crop", ("superpoint_lib.datasets:crop_and_resize",)),
    Part("data: warp", ("superpoint_lib.augmentation:augment_homographic",)),
    Part("data: photometric", ("superpoint_lib.augmentation:augment_photometric",)),
    Part("data: labels", ("superpoint_lib.losses:keypoints_to_labels",)),
)
ADAPTATION = (
    NETWORK,
    Part(
        "warp there",
        ("superpoint_lib.geometry.pictures:warp_images",),
        after={"decode": "warp back"},
    ),
    Part("masks", ("superpoint_lib.geometry.pictures:valid_mask",)),
    Part("decode", ("superpoint_lib.extraction:decode_heatmap",)),
    Part("suppression", ("superpoint_lib.extraction:nms",)),
    Part("sub-pixel", ("superpoint_lib.extraction:soft_argmax",)),
)
EXTRACT = (
    NETWORK,
    Part("decode", ("superpoint_lib.extraction:decode_heatmap",)),
    Part("suppression", ("superpoint_lib.extraction:nms",)),
    Part("sub-pixel", ("superpoint_lib.extraction:soft_argmax",)),
    Part("descriptors", ("superpoint_lib.extraction:sample_descriptors",)),
)


def training(steps: int = 6) -> dict[str, float]:
    """A step of the training of SuperPoint, 8 pairs of 144 x 192."""
    from superpoint_lib.training import train

    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            training_configs(folder)["SuperPoint"], steps=steps, log_every=steps, compile=False
        )
        runs = iter(range(100))
        return measured(
            lambda: train(config, Path(folder) / str(next(runs)), progress=False),
            TRAINING,
            turns=3,
            per=steps,
            around="",
        )


def adaptation(warps: int = 40) -> dict[str, float]:
    """Homographic adaptation of a picture of 240 x 320, 40 warps."""
    from superpoint_lib.adaptation import AdaptConfig, adaptation_homographies, adapted_keypoints

    model = MagicPoint.from_pretrained("magicpoint").to(DEVICE)
    config = AdaptConfig("magicpoint", (".",), ".", warps=warps)
    rng = np.random.default_rng(0)
    homographies = adaptation_homographies(warps, 240, 320, config.homography, rng)
    image = picture_batch(1, 240, 320)
    return measured(
        lambda: adapted_keypoints(model, image, homographies, config), ADAPTATION, turns=7
    )


def extraction() -> dict[str, float]:
    """``extract``, one picture of 480 x 640, 1000 keypoints."""
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    image = picture_batch(1, 480, 640)
    return measured(lambda: extract(model, image), EXTRACT, turns=15)


STAGES = {"training": training, "adaptation": adaptation, "extract": extraction}


def record(name: str, stages: dict[str, Any]) -> None:
    """Put a run beside the earlier ones in results/profile.json."""
    earlier = json.loads(OUTPUT.read_text(encoding="utf-8"))["runs"] if OUTPUT.is_file() else {}
    run = {
        "commit": commit_name(),
        "machine": machine_name(DEVICE),
        "torch": torch.__version__,
        "stages": stages,
    }
    write_json(OUTPUT, {"command": "python tools/profile_stages.py", "runs": earlier | {name: run}})


def main(arguments: Sequence[str]) -> None:
    """Profile all stages and record them under a name."""
    name = arguments[0] if arguments else "now"
    if name.startswith("-"):
        sys.exit(__doc__)
    stages = {}
    for key, stage in STAGES.items():
        report(key)
        what = str(stage.__doc__).splitlines()[0].rstrip(".").replace("``", "")
        seconds = stage()
        stages[key] = {"what": what, "seconds": seconds}
        print(f"{key}: {what}")
        for part, value in sorted(seconds.items(), key=lambda item: -item[1]):
            share = 100 * value / sum(seconds.values())
            print(f"  {part:20}{1000 * value:10.2f} ms{share:7.1f} %", flush=True)
    record(name, stages)
    print(OUTPUT.relative_to(project_root()))


if __name__ == "__main__":
    main(sys.argv[1:])
