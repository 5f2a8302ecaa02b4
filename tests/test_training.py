"""The training loop: what it computes, that it learns, and that interruptions change nothing."""

import csv
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import cv2
import numpy as np
import pytest
import torch
from labelled_scene import uneven_scene
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
from superpoint_lib.checkpoints import load_weights, save_weights
from superpoint_lib.config import ConfigError, replace, to_dict
from superpoint_lib.datasets import MixedDataset, save_labels
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
from superpoint_lib.locks import locked
from superpoint_lib.losses import (
    agreement_loss,
    descriptor_infonce_loss,
    detector_loss,
    keypoint_places,
    keypoints_to_labels,
    position_loss,
    repeatability_loss,
)
from superpoint_lib.model import MagicPoint, SuperPoint
from superpoint_lib.training import (
    RECIPES,
    NonFiniteLossError,
    TrainConfig,
    detector_step,
    learning_rate_at,
    loop,
    make_dataset,
    make_model,
    mode_losses,
    pair_step,
    read_history,
    reestimate_norm,
    release,
    train,
)
from superpoint_lib.training.pieces import make_fabric
from superpoint_lib.training.publish import blend_weights, sharpen_scores
from superpoint_lib.training.run import Run, write_history
from superpoint_lib.training.steps import batch_losses, losses_of_maps

TINY = TrainConfig(
    channels=(8, 8, 8, 8),
    head_channels=16,
    descriptor_dim=16,
    height=48,
    width=64,
    steps=6,
    batch_size=2,
    log_every=2,
    checkpoint_every=4,
    precision="float32",
)
TINY_PAIRS = replace(TINY, model="superpoint", views=2, descriptor_weight=1.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(config, folder, **options):
    return train(config, folder, progress=False, **options)


def batch_of(config, size=None, start=0):
    dataset = make_dataset(config)
    samples = [dataset[start + i] for i in range(size or config.batch_size)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def interrupt(config, folder, monkeypatch):
    """Ctrl-C while the third step's data are made: that step is finished first."""
    with monkeypatch.context() as patch:
        wrap_dataset(patch, 2 * config.batch_size, lambda _: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="after step 3 of 6"):
            run(config, folder)


def same_weights(a, b):
    b = b.state_dict()
    return all(torch.equal(value, b[key]) for key, value in a.state_dict().items())


def untimed(history):
    clocks = ("images_per_second", "seconds")
    return [{key: row[key] for key in row if key not in clocks} for row in history]


class Wrapped:
    """A dataset that does something when one of its samples is asked for."""

    def __init__(self, dataset, index, action):
        self.dataset, self.index, self.action = dataset, index, action

    def __getitem__(self, index):
        sample = self.dataset[index]
        return self.action(sample) or sample if index == self.index else sample

    def labelled(self, index):
        sample = self.dataset.labelled(index)
        return self.action(sample) or sample if index == self.index else sample

    def __getattr__(self, name):
        return getattr(self.dataset, name)


def wrap_dataset(monkeypatch, index, action):
    monkeypatch.setattr(
        loop, "make_dataset", lambda config: Wrapped(make_dataset(config), index, action)
    )


# ------------------------------------------------------------------------------- the pieces


def test_recipes_can_be_built_from_plain_values():
    for config in RECIPES.values():
        assert replace(config, **to_dict(config)) == config
    assert RECIPES["original-stage1"].descriptor_weight == 0
    stage2 = RECIPES["original-stage2"]
    assert (stage2.learning_rate, stage2.descriptor_weight) == (1e-4, 10000)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"views": 3}, "views"),
        ({"photometric": "rain"}, "photometric"),
        ({"homography": "coco+any"}, "homography: no preset 'any'"),
        ({"hinge": "tight"}, "hinge"),
        ({"steps": 0}, "steps"),
        ({"descriptor_weight": 1.0}, "descriptor_weight"),
        ({"detector_weight": 0.0}, "detector_weight"),
        ({"data": "photos"}, "labels"),
        ({"soft_targets": True}, "soft_targets"),
        ({"sharpen": 2.0}, "sharpen: only the probabilities"),
        ({"sharpen": 0.0}, "sharpen: must be above 0"),
        ({"drawn_every": 9}, "drawn_every"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"gradient_clip": math.nan}, "gradient_clip"),
        ({"freeze_norm_after": math.inf}, "freeze_norm_after"),
        ({"label_threshold": 5.0}, "label_threshold"),
        ({"label_threshold": math.nan}, "label_threshold"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"enlarge": 0.0}, "enlarge"),
        ({"photometric": "strong+hash"}, "photometric: no preset 'hash'"),
        ({"whole_picture": True}, "whole_picture: needs data 'photos' and views 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"detector_weight": -1.0}, "detector_weight"),
        ({"freeze_norm_after": -3.0}, "freeze_norm_after"),
        ({"channels": (0, 8, 8, 8)}, "channels"),
        ({"head_channels": 0}, "head_channels"),
        ({"workers": -1}, "workers"),
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"learning_rate": "1e-3"}, "learning_rate"),
    ],
)
def test_contradictory_settings_are_refused_by_name(change, key):
    with pytest.raises(ConfigError, match=key):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("images", "my_photos", "images: expected a list, got 'my_photos'"),
        ("images", (Path("my_photos"),), r"images\[0\]: expected a string"),
        ("learning_rate", "2e-5", "learning_rate: expected a number, got '2e-5'"),
        ("steps", 1.5, "steps: expected an integer"),
        ("norm", None, "norm: "),
    ],
)
def test_fields_of_the_wrong_type_are_named(field, value, told):
    with pytest.raises(ConfigError, match=told):
        TrainConfig(**{field: value})
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize("steps", [10, 37, 400])
def test_learning_rates_are_those_of_pytorch(steps):
    config = replace(TINY, steps=steps, learning_rate=0.3, schedule="one-cycle")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    cycle = OneCycleLR(optimizer, 0.3, steps, cycle_momentum=False)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(theirs) < steps:
            cycle.step()
    ours = [learning_rate_at(step, config) for step in range(steps)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_other_schedules():
    cosine = replace(TINY, steps=11, learning_rate=0.3, schedule="cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = CosineAnnealingLR(optimizer, 10)
    for step in range(11):
        assert learning_rate_at(step, cosine) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert learning_rate_at(7, replace(cosine, schedule="constant")) == 0.3
    assert [
        learning_rate_at(0, replace(TINY, steps=1, schedule=s)) > 0
        for s in ("one-cycle", "constant", "cosine")
    ] == [True, True, True]


def test_a_pair_goes_through_the_network_once_and_its_losses_add_up():
    config = replace(TINY_PAIRS, descriptor_weight=0.5, detector_weight=2.0)
    net, batch, calls = make_model(config), batch_of(config), []

    def model(images):
        calls.append(images.shape)
        return net(images)

    losses = pair_step(model, batch, config)
    assert calls == [(4, 1, 48, 64)]
    net.eval()
    losses = pair_step(net, batch, config)
    maps0, maps1 = net(batch["image0"]), net(batch["image1"])
    detector = sum(
        detector_loss(maps["logits"], batch[f"labels{i}"], batch[f"valid{i}"])
        for i, maps in enumerate((maps0, maps1))
    )
    descriptor = descriptor_infonce_loss(
        maps0["descriptors"],
        maps1["descriptors"],
        batch["H_0to1"],
        batch["valid0"],
        batch["valid1"],
    )
    torch.testing.assert_close(losses["detector"], detector)
    torch.testing.assert_close(losses["descriptor"], descriptor)
    torch.testing.assert_close(losses["loss"], 2 * detector + 0.5 * descriptor)


def test_the_positions_of_both_views_add_to_the_loss():
    config = replace(TINY_PAIRS, position_weight=0.5, descriptor_weight=0.0)
    net, batch = make_model(config).eval(), batch_of(config)
    losses = pair_step(net, batch, config)
    expected = sum(
        position_loss(
            net(batch[f"image{i}"])["logits"],
            batch[f"labels{i}"],
            batch[f"offsets{i}"],
            batch[f"valid{i}"],
        )
        for i in "01"
    )
    assert expected > 0
    torch.testing.assert_close(losses["position"], expected)
    torch.testing.assert_close(losses["loss"], losses["detector"] + 0.5 * losses["position"])


def test_the_agreement_of_both_views_adds_to_the_loss():
    config = replace(TINY_PAIRS, agreement_weight=0.5, descriptor_weight=0.0)
    net, batch = make_model(config).eval(), batch_of(config)
    losses = pair_step(net, batch, config)
    logits = [net(batch[f"image{i}"])["logits"] for i in "01"]
    expected = agreement_loss(*logits, batch["labels0"], batch["H_0to1"], batch["valid1"])
    assert expected > 0
    torch.testing.assert_close(losses["agreement"], expected)
    torch.testing.assert_close(losses["loss"], losses["detector"] + 0.5 * expected)
    near = pair_step(net, batch, replace(config, agreement_within=1.5))["agreement"]
    some = agreement_loss(*logits, batch["labels0"], batch["H_0to1"], batch["valid1"], within=1.5)
    assert 0 < some < expected
    torch.testing.assert_close(near, some)
    with pytest.raises(ConfigError, match="agreement_weight: needs views 2"):
        replace(TINY, agreement_weight=0.5)


def test_what_the_other_view_finds_again_adds_to_the_loss():
    config = replace(
        TINY_PAIRS, repeatability_weight=2.0, repeatability_reach=1, descriptor_weight=0.0
    )
    net, batch = make_model(config).eval(), batch_of(config)
    losses = pair_step(net, batch, config)
    logits = [net(batch[f"image{i}"])["logits"] for i in "01"]
    expected = repeatability_loss(
        *logits, batch["H_0to1"], batch["valid0"], batch["valid1"], reach=1
    )
    assert expected != 0
    torch.testing.assert_close(losses["repeatability"], expected)
    torch.testing.assert_close(losses["loss"], losses["detector"] + 2 * expected)
    none = pair_step(net, batch, replace(config, repeatability_zoom=0.01))["repeatability"]
    assert none == 0
    with pytest.raises(ConfigError, match="repeatability_weight: needs views 2"):
        replace(TINY, repeatability_weight=0.5)


def test_soft_targets_ask_for_the_probabilities_of_the_labels():
    config = replace(
        TINY_PAIRS, data="photos", labels=("labels",), descriptor_weight=0.0, soft_targets=True
    )
    net, batch = make_model(config).eval(), batch_of(TINY_PAIRS)
    generator = torch.Generator().manual_seed(0)
    for i in "01":
        shape = (len(batch["image0"]), 65, *batch[f"labels{i}"].shape[1:])
        batch[f"targets{i}"] = torch.rand(shape, generator=generator).softmax(1)
    expected = sum(
        detector_loss(net(batch[f"image{i}"])["logits"], batch[f"targets{i}"], batch[f"valid{i}"])
        for i in "01"
    )
    torch.testing.assert_close(pair_step(net, batch, config)["detector"], expected)


def test_descriptors_are_learnt_from_the_pairs_that_are_described():
    net, batch = make_model(TINY_PAIRS).eval(), batch_of(TINY_PAIRS)
    everything = pair_step(net, batch, TINY_PAIRS)
    both = pair_step(net, batch | {"described": torch.tensor([True, True])}, TINY_PAIRS)
    torch.testing.assert_close(both, everything)
    second = pair_step(net, batch | {"described": torch.tensor([False, True])}, TINY_PAIRS)
    torch.testing.assert_close(second["detector"], everything["detector"])
    alone = pair_step(net, {name: value[1:] for name, value in batch.items()}, TINY_PAIRS)
    torch.testing.assert_close(second["descriptor"], alone["descriptor"] / 2)
    assert alone["descriptor"] > 0


def test_what_descriptors_are_told_apart_from_is_a_setting():
    net, batch = make_model(TINY_PAIRS).eval(), batch_of(TINY_PAIRS)
    found = [net(batch[f"image{i}"])["descriptors"] for i in "01"]
    pair = (*found, batch["H_0to1"], batch["valid0"], batch["valid1"])
    places = tuple(keypoint_places(batch[f"labels{i}"], batch[f"offsets{i}"]) for i in "01")
    seen = set()
    for everywhere, at_keypoints, exclusion in itertools.product((0, 1), (0, 1), (8.0, 4.0)):
        rule = {"everywhere": bool(everywhere), "exclusion": exclusion}
        config = replace(TINY_PAIRS, at_keypoints=bool(at_keypoints), **rule)
        expected = descriptor_infonce_loss(*pair, **rule, places=places if at_keypoints else None)
        torch.testing.assert_close(pair_step(net, batch, config)["descriptor"], expected)
        seen.add(round(expected.item(), 4))
    assert len(seen) == 8
    with pytest.raises(ConfigError, match="everywhere: a setting of descriptor_loss 'infonce'"):
        replace(TINY_PAIRS, everywhere=True, descriptor_loss="hinge")


def test_two_passes_give_each_view_its_own_statistics():
    one, two = TINY_PAIRS, replace(TINY_PAIRS, one_forward=False)
    net, batch, calls = make_model(one), batch_of(one), []

    def model(images):
        calls.append(images.shape)
        return net(images)

    apart = pair_step(model, batch, two)
    assert calls == [(2, 1, 48, 64), (2, 1, 48, 64)]
    together = pair_step(net, batch, one)
    assert abs(apart["detector"] - together["detector"]) > 1e-3
    net.eval()
    torch.testing.assert_close(pair_step(net, batch, two), pair_step(net, batch, one))


def test_without_a_descriptor_weight_a_pair_has_a_detector_loss_only():
    config = replace(TINY_PAIRS, descriptor_weight=0.0)
    losses = pair_step(make_model(config), batch_of(config), config)
    assert losses.keys() == {"loss", "detector"}


@pytest.mark.parametrize("kind", ["hinge", "sparse"])
def test_the_other_descriptor_losses_are_chosen_by_name(kind):
    config = replace(TINY_PAIRS, descriptor_loss=kind)
    net, batch = make_model(config).eval(), batch_of(config)
    first = pair_step(net, batch, config, step=3)["descriptor"]
    assert first == pair_step(net, batch, config, step=3)["descriptor"]
    assert first > 0
    moved = pair_step(net, batch, config, step=4)["descriptor"]
    assert (first == moved) == (kind == "hinge")


def test_models_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert same_weights(make_model(TINY), make_model(TINY))
    assert not same_weights(make_model(TINY), make_model(replace(TINY, seed=1)))
    assert torch.equal(before, torch.get_rng_state())


def test_training_starts_from_given_weights(tmp_path):
    detector = make_model(replace(TINY, seed=5))
    path = tmp_path / "detector.safetensors"
    save_weights(path, detector.state_dict(), to_dict(detector.config), {}, torch.float32)
    both = make_model(replace(TINY_PAIRS, init=str(path)))
    assert same_weights(detector, both)
    fresh = make_model(TINY_PAIRS)
    assert same_weights(fresh.descriptor, both.descriptor)
    with pytest.raises(ConfigError, match=r"norm.*8 more|do not fit"):
        make_model(replace(TINY, norm="none", init=str(path)))
    save_weights(path, both.state_dict(), to_dict(both.config), {}, torch.float32)
    with pytest.raises(ConfigError, match=r"'descriptor\.output.*descriptor_dim"):
        make_model(replace(TINY_PAIRS, descriptor_dim=8, init=str(path)))


# ------------------------------------------------------------------------------ the network


class Dots:
    """Single white pixels on black, every one a keypoint: what a small detector learns at once."""

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        keypoints = rng.integers(0, (TINY.width, TINY.height), (40, 2))
        image = np.zeros((TINY.height, TINY.width), np.float32)
        image[keypoints[:, 1], keypoints[:, 0]] = 1
        labels = keypoints_to_labels(keypoints, TINY.height, TINY.width, rng)
        return {
            "image": torch.from_numpy(image)[None],
            "labels": torch.from_numpy(labels),
            "valid": torch.ones(labels.shape, dtype=torch.bool),
        }


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_detector_learns_where_the_points_are(tmp_path, monkeypatch, norm):
    monkeypatch.setattr(loop, "make_dataset", lambda config: Dots())
    config = replace(
        TINY,
        norm=norm,
        channels=(16, 16, 16, 16),
        head_channels=64,
        steps=100,
        batch_size=8,
        learning_rate=0.01,
        precision="auto",
    )
    result = run(config, tmp_path)
    assert not result.model.training
    samples = [Dots()[100_000 + i] for i in range(32)]
    held_out = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    # Knowing only how frequent each label is would give the entropy of the labels.
    frequencies = torch.bincount(held_out["labels"].flatten(), minlength=65).clamp_min(1).log()
    constant = {"logits": frequencies.view(1, 65, 1, 1).expand(32, 65, 6, 8)}
    entropy = detector_step(lambda image: constant, held_out, config)["detector"]
    with torch.no_grad():
        after = detector_step(result.model, held_out, config)["detector"]
        in_train_mode = detector_step(result.model.train(), held_out, config)["detector"]
        before = detector_step(make_model(config).eval(), held_out, config)["detector"]
    assert after < 0.9 * entropy < entropy < before
    assert (in_train_mode == after) == (norm == "none")


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_descriptors_learn_to_find_their_place(tmp_path, norm):
    config = replace(
        TINY_PAIRS,
        norm=norm,
        steps=60,
        batch_size=4,
        learning_rate=0.01,
        photometric="none",
        precision="auto",
    )
    result = run(config, tmp_path)
    held_out = batch_of(config, size=24, start=100_000)
    with torch.no_grad():
        after = pair_step(result.model, held_out, config)
        before = pair_step(make_model(config).eval(), held_out, config)
    assert after["descriptor"] < 0.75 * before["descriptor"]
    assert after["descriptor"] < 0.9 * np.log(6 * 8)  # what guessing a cell would give
    assert after["detector"] < 0.6 * before["detector"]


def test_detector_only_training_leaves_the_descriptor_head_alone(tmp_path):
    config = replace(TINY_PAIRS, descriptor_weight=0.0, norm="none", weight_decay=0.1)
    result = run(config, tmp_path)
    before = make_model(config)
    assert same_weights(before.descriptor, result.model.descriptor)
    assert not same_weights(before.detector, result.model.detector)
    assert all(parameter.requires_grad for parameter in result.model.parameters())


def test_frozen_normalisation_keeps_its_statistics_while_weights_move(tmp_path):
    before = make_model(TINY).state_dict()
    frozen = run(replace(TINY, freeze_norm_after=0.0), tmp_path / "frozen").model.state_dict()
    moving = run(TINY, tmp_path / "moving").model.state_dict()
    for key, value in before.items():
        if "running" in key:
            assert torch.equal(value, frozen[key])
            assert not torch.equal(value, moving[key])
        elif key.endswith("conv.weight"):
            assert not torch.equal(value, frozen[key])


def test_weight_decay_shrinks_kernels_only_and_clipping_bounds_the_step(tmp_path):
    config = replace(TINY, optimizer="adamw", weight_decay=0.5, norm="none")
    fabric = make_fabric(config)
    groups = Run(config, tmp_path, fabric).optimizer.param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{4}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]

    # Adam's first step has the learning rate's size unless the gradient is as small as its eps.
    config = replace(TINY, steps=1, schedule="constant", optimizer="adam", weight_decay=0.0)
    start = make_model(config).detector.output.conv.weight
    moved = []
    for clip in (0.0, 1e-9):
        result = run(replace(config, gradient_clip=clip), tmp_path / str(clip))
        moved.append((result.model.detector.output.conv.weight - start).abs().max().item())
    assert moved[0] == pytest.approx(config.learning_rate, rel=0.01)
    assert moved[1] < 0.2 * config.learning_rate


def test_the_result_is_the_moving_average(tmp_path):
    config = replace(TINY, ema_decay=0.5, checkpoint_every=1, learning_rate=0.01)
    states, save = [make_model(config).state_dict()], Run.save

    def record(self):
        states.append({key: value.clone() for key, value in self.net.state_dict().items()})
        save(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", record)
        result = run(config, tmp_path)
    name = "encoder.block1a.conv.weight"
    average = states[0][name].double()
    for step, state in enumerate(states[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state[name].double()
    torch.testing.assert_close(result.model.state_dict()[name].double(), average)
    stored = load_weights(result.weights_path).state_dict
    assert all(torch.equal(stored[key], value) for key, value in result.model.state_dict().items())


def test_bfloat16_is_close_to_float32(tmp_path):
    full = run(TINY_PAIRS, tmp_path / "float32").history
    half = run(replace(TINY_PAIRS, precision="bf16"), tmp_path / "bf16").history
    assert [row["loss"] for row in half] != [row["loss"] for row in full]
    np.testing.assert_allclose(
        [row["loss"] for row in half], [row["loss"] for row in full], rtol=0.03
    )


# ---------------------------------------------------------------- train mode against eval mode


class Shift(torch.nn.Module):
    """Batch normalisation of the mean gray level, whose output is the logit of the dustbin."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1, eps=1e-12)

    def forward(self, images):
        level = self.norm(images)[:, :, ::8, ::8]
        return {"logits": torch.cat((torch.zeros_like(level).expand(-1, 64, -1, -1), level), 1)}


def gray(*levels):
    """A batch of one cell per image, each of one gray level, all dustbin."""
    image = torch.tensor(levels, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 8, 8)
    labels = torch.full((len(levels), 1, 1), 64)
    return {"image": image, "labels": labels, "valid": labels > 0}


def dustbin_loss(logit):
    return np.log(64 + np.exp(logit)) - logit


def test_losses_in_both_modes_are_those_of_the_two_kinds_of_statistics():
    net = Shift().eval()
    net.norm.running_mean.fill_(0.5)
    net.norm.running_var.fill_(0.25)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    losses = mode_losses(net, TINY, [gray(0.0, 1.0), gray(0.5, 1.5)])
    # In train mode each batch of two becomes -1, 1; in eval mode x becomes (x - 0.5) / 0.5.
    expected = {
        "train": np.mean([dustbin_loss(x) for x in (-1, 1, -1, 1)]),
        "eval": np.mean([dustbin_loss(x) for x in (-1, 1, 0, 2)]),
    }
    for mode, value in expected.items():
        assert losses[mode] == pytest.approx({"loss": value, "detector": value})
    assert not net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_statistics_are_reestimated_as_the_plain_mean_over_batches():
    net = Shift()
    net.norm.running_mean.fill_(7.0)
    batches = [gray(0.0, 1.0), gray(1.0, 2.0), gray(2.0, 6.0)]
    precise = reestimate_norm(net, TINY, batches)
    assert precise.norm.running_mean.item() == pytest.approx((0.5 + 1.5 + 4) / 3)
    # Variances of 128 pixels, half of each level, unbiased as PyTorch keeps them.
    assert precise.norm.running_var.item() == pytest.approx((0.25 + 0.25 + 4) / 3 * 128 / 127)
    assert not precise.training
    assert net.training
    assert (precise.norm.momentum, net.norm.momentum) == (0.1, 0.1)
    assert net.norm.running_mean.item() == 7


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_only_batch_normalisation_has_two_modes(norm):
    config = replace(TINY_PAIRS, norm=norm)
    batches = [batch_of(config), batch_of(config, start=8)]
    losses = mode_losses(make_model(config), config, batches)
    assert losses["train"].keys() == {"loss", "detector", "descriptor"}
    assert (losses["train"] == losses["eval"]) == (norm != "batch")
    if norm != "batch":
        net = make_model(config)
        assert same_weights(net, reestimate_norm(net, config, batches))


@pytest.mark.parametrize("function", [mode_losses, reestimate_norm])
def test_two_modes_need_a_batch(function):
    with pytest.raises(ValueError, match="at least one batch"):
        function(make_model(TINY), TINY, [])


# ------------------------------------------------------------------------- files and resuming


def test_a_run_writes_its_history_and_facts(tmp_path):
    result = run(TINY, tmp_path)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert read_history(tmp_path / "history.csv") == result.history
    assert result.history[0]["loss"] == result.history[0]["detector"] > 0
    assert result.history[-1]["learning_rate"] == learning_rate_at(5, TINY)
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(TINY)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["steps"] == 6 and facts["earlier_commits"] == []
    assert facts["precision"] == "float32"
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2
    assert read_history(tmp_path / "none.csv") == []


def test_step_t_takes_samples_from_t_times_the_batch(tmp_path, monkeypatch):
    seen = []

    class Listening:
        def __init__(self, dataset):
            self.dataset = dataset

        def __getitem__(self, index):
            seen.append(index)
            return self.dataset[index]

    monkeypatch.setattr(loop, "make_dataset", lambda config: Listening(make_dataset(config)))
    run(TINY, tmp_path)
    assert seen == list(range(TINY.steps * TINY.batch_size))


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY_PAIRS, ema_decay=0.9, freeze_norm_after=0.5, gradient_clip=1.0),
        replace(TINY_PAIRS, descriptor_loss="sparse", optimizer="adam", precision="bf16"),
        replace(TINY_PAIRS, augment_on="device", photometric="strong+harsh"),
    ],
)
def test_an_interrupted_run_resumes_exactly(tmp_path, monkeypatch, config):
    straight = run(config, tmp_path / "straight")
    handler = signal.getsignal(signal.SIGINT)
    interrupt(config, tmp_path / "resumed", monkeypatch)
    checkpoint = tmp_path / "resumed" / "checkpoint.json"
    assert json.loads(checkpoint.read_text())["step"] == 3
    checkpoint.write_text(json.dumps({"step": 3, "seconds": 1000.0}))
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run(config, tmp_path / "resumed")
    assert same_weights(straight.model, resumed.model)
    assert untimed(straight.history) == untimed(resumed.history)
    assert resumed.history[-1]["seconds"] > 1000
    assert [row["step"] for row in read_history(tmp_path / "resumed" / "history.csv")] == [2, 4, 6]


def test_a_run_whose_checkpoint_is_gone_is_trained_again_and_replaced(tmp_path):
    first = run(TINY, tmp_path)
    (tmp_path / "checkpoint.json").unlink()
    other = load_weights(first.weights_path).state_dict
    save_weights(
        first.weights_path,
        {name: torch.zeros_like(values) for name, values in other.items()},
        to_dict(first.model.config),
        {},
        torch.float32,
    )
    again = run(TINY, tmp_path)
    assert same_weights(first.model, again.model)
    written = load_weights(again.weights_path).state_dict
    assert all(torch.equal(values, written[name]) for name, values in other.items())


def test_a_finished_run_is_returned_without_training(tmp_path, monkeypatch):
    first = run(TINY, tmp_path)
    monkeypatch.setattr(loop, "_train_steps", None)
    again = run(TINY, tmp_path)
    assert same_weights(first.model, again.model)
    assert again.history == first.history


def test_a_finished_run_needs_neither_its_data_nor_its_start(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    net = make_model(replace(TINY, seed=5))
    save_weights(start, net.state_dict(), to_dict(net.config), {}, torch.float32)
    config = replace(TINY, init=str(start))
    first = run(config, tmp_path / "run")
    start.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_dataset", None)
        again = run(config, tmp_path / "run")
        assert same_weights(first.model, again.model)
        assert again.history == first.history
        with pytest.raises(ConfigError, match="steps"):
            run(replace(config, steps=7), tmp_path / "run")
    # Starting anew needs the file, and the finished run stays where that fails.
    with pytest.raises(FileNotFoundError):
        run(config, tmp_path / "run", resume=False)
    assert same_weights(first.model, run(config, tmp_path / "run").model)


def test_a_begun_run_goes_on_without_the_weights_it_started_from(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    net = make_model(replace(TINY, seed=5))
    save_weights(start, net.state_dict(), to_dict(net.config), {}, torch.float32)
    config = replace(TINY, init=str(start), ema_decay=0.9)
    straight = run(config, tmp_path / "straight")
    interrupt(config, tmp_path / "resumed", monkeypatch)
    start.unlink()
    assert same_weights(straight.model, run(config, tmp_path / "resumed").model)


@pytest.mark.parametrize("stopped_at", ["run.json", "weights.safetensors"])
def test_a_run_stopped_while_it_finishes_can_be_released(tmp_path, monkeypatch, stopped_at):
    def stop(write):
        def stopping(path, *arguments, **options):
            if path.name == stopped_at:
                raise KeyboardInterrupt
            return write(path, *arguments, **options)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_json", stop(loop.write_json))
        patch.setattr("superpoint_lib.training.run.save_weights", stop(save_weights))
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path / "run")
    # The weights come last: whoever finds them can release them.
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    run(TINY, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()  # a run from before they did
    run(TINY, tmp_path / "run")
    assert release(tmp_path / "run", tmp_path / "small.safetensors").is_file()


def test_a_stop_while_the_last_step_is_saved_is_not_lost(tmp_path, monkeypatch):
    save = Run.save

    def saving(self):
        os.kill(os.getpid(), signal.SIGINT)
        save(self)

    config = replace(TINY, checkpoint_every=TINY.steps)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", saving)
        with pytest.raises(KeyboardInterrupt, match="after step 6 of 6"):
            run(config, tmp_path / "stopped")
    again = run(config, tmp_path / "stopped")
    assert same_weights(again.model, run(config, tmp_path / "straight").model)


@pytest.mark.parametrize("name", ["config.json", "checkpoint.json"])
def test_a_damaged_record_is_named(tmp_path, name):
    run(TINY, tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ConfigError, match=rf"{name} is damaged.*--no-resume"):
        run(TINY, tmp_path)
    run(TINY, tmp_path, resume=False)


@pytest.mark.parametrize("part", ["model.safetensors", "ema.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_checkpoint_is_named(tmp_path, part, damage):
    config = replace(TINY, ema_decay=0.9)
    run(config, tmp_path)
    path = tmp_path / "checkpoint" / f"step-{TINY.steps:08d}.{part}"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"checkpoint is damaged .*--no-resume"):
        run(config, tmp_path)


def test_records_that_are_no_records_are_named(tmp_path):
    run(TINY, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        run(TINY, tmp_path)


def test_a_checkpoint_leaves_what_is_not_its_own(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)  # of JupyterLab
    (folder / "mine.safetensors").write_bytes(b"x")
    (folder / ".0123456789ab.pt").write_bytes(b"x")  # of a run that was killed
    run(TINY, tmp_path)
    names = {"model.safetensors", "optimizer.pt"}
    left = {f"step-{TINY.steps:08d}.{name}" for name in names}
    assert {path.name for path in folder.iterdir()} == left | {
        ".ipynb_checkpoints",
        "mine.safetensors",
    }


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with locked(tmp_path / "run", ConfigError):
        with pytest.raises(ConfigError, match=r"another process is at work in .*run"):
            run(TINY, tmp_path / "run")
        assert not (tmp_path / "run" / "config.json").exists()
        run(TINY, tmp_path / "other")
    run(TINY, tmp_path / "run")
    run(TINY, tmp_path / "run")


@pytest.mark.parametrize("init", ["run", "run/weights.safetensors", "link/weights.safetensors"])
def test_a_run_is_not_dropped_for_one_that_starts_from_it(tmp_path, init):
    weights = run(TINY, tmp_path / "run").weights_path
    (tmp_path / "link").symlink_to(tmp_path / "run")
    before = weights.read_bytes()
    config = replace(TINY, init=str(tmp_path / init))
    with pytest.raises(ConfigError, match=r"init: .* belongs to the run that .*--no-resume"):
        run(config, tmp_path / "run", resume=False)
    assert weights.read_bytes() == before
    run(config, tmp_path / "next", resume=False)


@pytest.mark.parametrize(
    ("norm", "change"),
    [
        ("batch", {"norm_order": "conv-relu-norm"}),
        ("batch", {"norm_eps": 1e-3}),
        ("group", {"norm_groups": 2}),
        ("group", {"norm_order": "conv-relu-norm"}),
    ],
)
def test_weights_of_another_normalisation_are_refused(tmp_path, norm, change):
    start = tmp_path / "start.safetensors"
    config = replace(TINY, norm=norm)
    net = make_model(config)
    save_weights(start, net.state_dict(), to_dict(net.config), {}, torch.float32)
    (key,) = change
    with pytest.raises(ConfigError, match=rf"init: .* has {key}={getattr(config, key)!r}; set it"):
        make_model(replace(config, init=str(start), **change))
    assert same_weights(net, make_model(replace(config, init=str(start))))
    # Statistics that move faster, or groups where there are none, are no other network.
    free = {"norm_momentum": 0.5} | ({"norm_groups": 2} if norm == "batch" else {})
    assert same_weights(net, make_model(replace(config, init=str(start), **free)))


def test_a_folder_with_another_configuration_is_refused_by_key(tmp_path):
    run(TINY, tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate \(0.002 -> 0.1\), seed \(0 -> 1\)"):
        run(replace(TINY, learning_rate=0.1, seed=1), tmp_path)
    run(replace(TINY, log_every=1, workers=0), tmp_path)
    fresh = run(replace(TINY, seed=1), tmp_path, resume=False)
    assert same_weights(fresh.model, run(replace(TINY, seed=1), tmp_path / "other").model)


def test_a_run_from_before_a_key_existed_has_its_default(tmp_path):
    run(TINY, tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["one_forward"]
    path.write_text(json.dumps(older))
    with pytest.raises(ConfigError, match=r"one_forward \(True -> False\)"):
        run(replace(TINY, one_forward=False), tmp_path)
    run(TINY, tmp_path)


def test_a_run_from_before_a_part_existed_is_taken(tmp_path, monkeypatch):
    config = replace(TINY, log_every=4, checkpoint_every=3)
    interrupt(config, tmp_path, monkeypatch)
    history = tmp_path / "history.csv"
    history.write_text(history.read_text().replace("agreement,", "", 1))
    (state,) = (tmp_path / "checkpoint").glob("*.optimizer.pt")
    saved = torch.load(state, weights_only=True)
    torch.save(saved | {"sums": torch.ones(5)}, state)
    rows = run(config, tmp_path).history
    assert [row["step"] for row in rows] == [4, 6] and rows[-1]["loss"] > 0


def test_histories_without_a_part_or_cut_short_can_be_read(tmp_path):
    run(replace(TINY, log_every=3), tmp_path)
    path = tmp_path / "history.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    part = lines[0].index("agreement")
    shorter = [",".join(line[:part] + line[part + 1 :]) for line in lines]
    path.write_text("\n".join([*shorter, "9,0.1"]))
    rows = read_history(path)
    assert [row["step"] for row in rows] == [3, 6] and np.isnan(rows[0]["agreement"])
    write_history(path, rows)
    assert [row["loss"] for row in read_history(path)] == [row["loss"] for row in rows]


def test_a_run_tells_the_commits_its_sessions_started_with(tmp_path, monkeypatch):
    commits = iter(["first", "second", "third"])
    monkeypatch.setattr("superpoint_lib.training.run.commit_name", lambda: next(commits))
    interrupt(TINY, tmp_path, monkeypatch)
    for _ in range(2):  # the second call finds it finished
        run(TINY, tmp_path)
        facts = json.loads((tmp_path / "run.json").read_text())
        assert (facts["commit"], facts["earlier_commits"]) == ("second", ["first"])


def test_what_failed_before_its_first_checkpoint_is_in_nobodys_way(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_losses", fail)
        with pytest.raises(ValueError, match="out of memory"):
            run(TINY, tmp_path)
    smaller = replace(TINY, batch_size=1)
    run(smaller, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(smaller)


def test_a_checkpoint_cut_short_leaves_the_one_before(tmp_path, monkeypatch):
    config = replace(TINY, checkpoint_every=2)
    straight = run(config, tmp_path / "straight")
    calls = []

    def fail_at_step_4(path, *arguments, **options):
        calls.append(path)
        if "00000004" in path.name:
            raise OSError("disk full")
        return save_weights(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("superpoint_lib.training.run.save_weights", fail_at_step_4)
        with pytest.raises(OSError, match="disk full"):
            run(config, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "checkpoint.json").read_text())["step"] == 2
    assert same_weights(straight.model, run(config, tmp_path / "cut").model)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    def spoil(sample):
        return sample | {"image": torch.full_like(sample["image"], float("nan"))}

    config = replace(TINY, checkpoint_every=2)
    with monkeypatch.context() as patch:
        wrap_dataset(patch, 2 * config.batch_size, spoil)
        with pytest.raises(NonFiniteLossError, match=r"2 steps up to 4.*learning_rate.*checkpoint"):
            run(config, tmp_path)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 2
    resumed = run(config, tmp_path)
    assert same_weights(resumed.model, run(config, tmp_path / "straight").model)


def test_training_on_photographs_lists_what_it_skips(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        cv2.imwrite(str(images / f"{name}.png"), rng.integers(0, 255, (60, 80), np.uint8))
        points = rng.uniform(0, 60, (9, 2)).astype(np.float32)
        save_labels(labels / f"{name}.npz", points, np.ones(9, np.float32), (60, 80), {})
    (images / "broken.png").write_bytes(b"no picture")
    config = replace(
        TINY_PAIRS,
        data="photos",
        images=(str(images),),
        labels=(str(labels),),
        steps=2,
        photometric="coco_superpoint",
        homography="coco",
    )
    thinned = make_dataset(replace(config, label_radius=60.0))
    keypoints = [int((d[0]["labels0"] < 64).sum()) for d in (make_dataset(config), thinned)]
    assert keypoints[0] > keypoints[1] == 1
    result = run(config, tmp_path / "run")
    assert [path.name for path, _ in result.skipped] == ["broken.png"]
    assert result.history[-1]["step"] == 2


@pytest.mark.parametrize("replaced", ["labels", "init"])
def test_a_run_of_replaced_labels_or_weights_is_not_taken_for_its_own(tmp_path, replaced):
    images, labels, init = tmp_path / "images", tmp_path / "labels", tmp_path / "init.safetensors"
    (images / "sub").mkdir(parents=True)
    labels.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (labels / "sub").symlink_to(tmp_path / "elsewhere")  # links are followed

    def label(seed):
        points = np.random.default_rng(seed).uniform(0, 60, (9, 2)).astype(np.float32)
        save_labels(labels / "sub" / "a.npz", points, np.ones(9, np.float32), (60, 80), {})

    def begin(seed):
        torch.manual_seed(seed)
        net = SuperPoint(TINY_PAIRS.model_config)
        save_weights(init, net.state_dict(), to_dict(TINY_PAIRS.model_config), {})

    gray = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    cv2.imwrite(str(images / "sub" / "a.png"), gray)
    config = replace(
        TINY_PAIRS, data="photos", images=(str(images),), labels=(str(labels),), init=str(init)
    )
    label(0)
    begin(0)
    run(config, tmp_path / "run")
    begin(0)  # the same again
    run(config, tmp_path / "run")
    {"labels": label, "init": begin}[replaced](1)
    with pytest.raises(ConfigError, match=rf"other contents of [^ ]*/{replaced}[^ ]*\. Use"):
        run(config, tmp_path / "run")
    again = run(config, tmp_path / "run", resume=False)
    assert same_weights(again.model, run(config, tmp_path / "fresh").model)
    # What is gone cannot be other, and a finished run needs it no more.
    shutil.rmtree(labels)
    init.unlink()
    assert same_weights(run(config, tmp_path / "run").model, again.model)


@pytest.mark.parametrize("order", ["conv-norm-relu", "conv-relu-norm"])
def test_released_weights_are_folded_where_possible(tmp_path, order):
    config = replace(TINY_PAIRS, norm_order=order, learning_rate=0.01)
    result = run(config, tmp_path)
    output = release(tmp_path, tmp_path / "out" / "small.safetensors", {"title": "A test"})
    released = SuperPoint.from_pretrained(output)
    assert released.config.norm == ("none" if order == "conv-norm-relu" else "batch")
    images = batch_of(config)["image0"]
    with torch.no_grad():
        expected, got = result.model(images), released(images)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0.02, atol=0.02)
    metadata = load_weights(output).metadata
    assert metadata["title"] == "A test"
    assert metadata["seed"] == 0
    assert metadata["steps"] == 6
    assert metadata["training"]["descriptor_loss"] == "infonce"
    assert {"commit", "machine", "seconds"} <= metadata.keys()
    assert output.stat().st_size < 0.7 * result.weights_path.stat().st_size


def test_a_released_detector_has_no_untrained_head_and_names_no_machine_path(tmp_path):
    config = replace(TINY_PAIRS, descriptor_weight=0.0, images=("/data/pictures/train",), steps=1)
    run(config, tmp_path)
    weights = load_weights(release(tmp_path, tmp_path / "small.safetensors"))
    assert not any(key.startswith("descriptor") for key in weights.state_dict)
    assert weights.metadata["training"]["images"] == ["pictures/train"]


def test_the_blend_of_two_networks_by_hand():
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    others = {"a": torch.tensor([2.0, 2.0]), "b": torch.tensor([[0.0]])}
    blended = blend_weights(weights, others, 0.25)
    torch.testing.assert_close(blended["a"], torch.tensor([1.25, -1.0]))
    torch.testing.assert_close(blended["b"], torch.tensor([[2.25]]))
    for share, one in ((0.0, weights), (1.0, others)):
        assert all(torch.equal(blend_weights(weights, others, share)[n], one[n]) for n in one)
    counts = [{"batches": torch.tensor(n)} for n in (3, 8)]
    assert blend_weights(*counts, 0.25) == counts[0]
    with pytest.raises(ValueError, match="do not blend: b differs"):
        blend_weights(weights, others | {"b": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"must be in 0\.\.1, got 1\.5"):
        blend_weights(weights, others, 1.5)


def test_a_run_is_released_as_a_blend_with_other_weights(tmp_path):
    config = replace(TINY_PAIRS, norm="none", steps=1)
    trained = run(config, tmp_path / "run").model.state_dict()
    torch.manual_seed(1)
    other = make_model(config)
    path = tmp_path / "other.safetensors"
    save_weights(path, other.state_dict(), to_dict(other.config), {}, torch.float32)
    blend = str(path), 0.4
    output = tmp_path / "out.safetensors"
    released = load_weights(release(tmp_path / "run", output, dtype=torch.float32, blend=blend))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(released.state_dict[name], 0.6 * trained[name] + 0.4 * value)
    assert released.metadata["blend_share"] == 0.4
    assert released.metadata["blended_with"].endswith("other.safetensors")


def test_sharpened_scores_are_powers_of_the_probabilities(tmp_path):
    config = replace(TINY_PAIRS, norm="none", steps=1)
    net = run(config, tmp_path / "run").model
    output = tmp_path / "out.safetensors"
    release(tmp_path / "run", output, dtype=torch.float32, sharpen=1.5)
    assert load_weights(output).metadata["sharpened"] == 1.5
    images = batch_of(config)["image0"]
    with torch.no_grad():
        plain, sharper = net(images), SuperPoint.from_pretrained(output)(images)
    powers = plain["logits"].softmax(1) ** 1.5
    expected = powers / powers.sum(1, keepdim=True)
    torch.testing.assert_close(sharper["logits"].softmax(1), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sharper["descriptors"], plain["descriptors"])
    with pytest.raises(ValueError, match="must be above 0"):
        sharpen_scores(net, 0)
    normalised = make_model(replace(TINY_PAIRS, norm_outputs=True))
    with pytest.raises(ValueError, match="normalised outputs"):
        sharpen_scores(normalised, 2.0)


def test_an_unfinished_run_cannot_be_released(tmp_path):
    with pytest.raises(FileNotFoundError, match="finish the training"):
        release(tmp_path, tmp_path / "small.safetensors")


def test_worker_processes_change_nothing(tmp_path):
    alone = run(TINY, tmp_path / "alone")
    helped = run(replace(TINY, workers=1), tmp_path / "helped")
    assert same_weights(alone.model, helped.model)


def test_augmenting_on_the_device_trains_as_well(tmp_path):
    """Other random numbers, but the loss falls as far, and workers change nothing."""
    config = replace(TINY, steps=60, log_every=10)
    losses = {
        place: run(replace(config, augment_on=place), tmp_path / place).history[-1]["loss"]
        for place in ("cpu", "device")
    }
    assert losses["device"] == pytest.approx(losses["cpu"], rel=0.15)
    device = replace(TINY, augment_on="device")
    alone = run(device, tmp_path / "alone")
    helped = run(replace(device, workers=1), tmp_path / "helped")
    assert same_weights(alone.model, helped.model)
    assert not same_weights(alone.model, run(TINY, tmp_path / "loader").model)


def test_a_worker_has_one_thread_and_gives_way_and_the_network_keeps_its_own(tmp_path, monkeypatch):
    facts = tmp_path / "facts.json"

    class Telling:
        def __init__(self, dataset):
            self.dataset = dataset

        def __getitem__(self, index):
            threads = [torch.get_num_threads(), cv2.getNumThreads()]
            facts.write_text(json.dumps([os.getpid(), os.nice(0), *threads]))
            return self.dataset[index]

    monkeypatch.setattr(loop, "make_dataset", lambda config: Telling(make_dataset(config)))
    torch.set_num_threads(2)
    in_steps = []
    losses = loop.batch_losses
    monkeypatch.setattr(
        loop, "batch_losses", lambda *a: in_steps.append(torch.get_num_threads()) or losses(*a)
    )
    run(replace(TINY, workers=1), tmp_path / "run")
    process, niceness, *threads = json.loads(facts.read_text())
    assert process != os.getpid() and threads == [1, 1] and niceness == 19
    assert set(in_steps) == {2} and torch.get_num_threads() == 2


def test_a_compiled_network_is_asked_for_by_the_configuration(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    run(replace(TINY, compile=True, steps=1), tmp_path)
    assert [type(one) for one in compiled] == [MagicPoint, FunctionType]


@pytest.mark.parametrize("kind", ["hinge", "infonce"])
def test_the_losses_compile_in_one_piece_and_stay_as_they_are(kind):
    config = replace(
        TINY_PAIRS,
        position_weight=0.5,
        agreement_weight=0.5,
        repeatability_weight=0.5,
        descriptor_loss=kind,
        everywhere=kind == "infonce",
        at_keypoints=kind == "infonce",
    )
    batch, net = batch_of(config), make_model(config)
    compiled = torch.compile(losses_of_maps, fullgraph=True, backend="aot_eager")
    losses = batch_losses(net, batch, config, losses_of=compiled)
    torch.testing.assert_close(losses, pair_step(net, batch, config))
    assert {"agreement", "repeatability", "descriptor"} <= set(losses)


def test_fabric_is_imported_only_where_training_happens():
    code = (
        "import sys; sys.modules['lightning_fabric'] = None; "
        "import superpoint_lib.training; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def test_a_start_that_fails_leaves_nothing_to_trip_over(tmp_path):
    wrong = replace(TINY, data="photos", images=("bundled",), labels=(str(tmp_path / "missing"),))
    with pytest.raises(FileNotFoundError):
        run(wrong, tmp_path / "run")
    with pytest.raises((ConfigError, ValueError, FileNotFoundError)):
        run(replace(TINY, init=str(tmp_path / "missing.safetensors")), tmp_path / "run")
    assert run(TINY, tmp_path / "run").history


def test_each_step_is_as_long_as_the_schedule_says(tmp_path):
    used = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    try:
        run(TINY, tmp_path)
    finally:
        hook.remove()
    assert used == [[learning_rate_at(step, TINY)] * 2 for step in range(TINY.steps)]


TOGETHER = """
import atexit, os, sys, torch
# What is left of the group then can abort the process.
atexit.register(lambda: torch.distributed.is_initialized() and os._exit(1))
from test_training import TINY_PAIRS
from superpoint_lib.config import replace
from superpoint_lib.training import train
torch.set_num_threads(1)
config = replace(TINY_PAIRS, norm="none", steps=int(sys.argv[2]), batch_size=4, augment_on="cpu")
train(config, sys.argv[1], progress=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torchrun with gloo")
def test_two_processes_train_what_one_does(tmp_path):
    config = replace(TINY_PAIRS, norm="none", steps=6, batch_size=4, augment_on="cpu")
    torch.set_num_threads(1)
    alone = run(config, tmp_path / "alone")
    (tmp_path / "together.py").write_text(TOGETHER)
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*command, str(tmp_path / "together.py"), str(tmp_path / "together"), "6"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    together = load_weights(tmp_path / "together" / "weights.safetensors").state_dict
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-4)


def test_the_progress_bar_of_a_training_does_not_flood_a_notebook(tmp_path, monkeypatch):
    bars = []

    class Bar(loop.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(loop, "tqdm", Bar)
    train(TINY, tmp_path)
    assert [bar.mininterval for bar in bars] == [0.5] and bars[0].n == TINY.steps


def test_the_settings_of_photographs_reach_their_dataset(tmp_path):
    images, labels = uneven_scene(tmp_path)
    config = replace(
        TINY,
        model="superpoint",
        views=2,
        descriptor_weight=1.0,
        data="photos",
        images=(str(images[0]),),
        labels=(str(labels[0]),),
        seed=5,
        photometric="harsh",
        homography="wide",
        label_threshold=0.65,
        soft_targets=True,
        sharpen=2.0,
        enlarge=1.7,
        whole_picture=True,
        label_radius=4.0,
    )
    photos = make_dataset(config)
    mixed = make_dataset(replace(config, drawn_every=3))
    assert isinstance(mixed, MixedDataset) and mixed.every == 3
    for dataset in (photos, mixed.photos):
        assert (dataset.height, dataset.width, dataset.views, dataset.seed) == (48, 64, 2, 5)
        assert dataset.photometric == [PHOTOMETRIC_PRESETS["harsh"]]
        assert dataset.homography == [HOMOGRAPHY_PRESETS["wide"]]
        assert (dataset.threshold, dataset.enlarge, dataset.sharpen) == (0.65, 1.7, 2.0)
        assert (dataset.targets, dataset.whole_picture, dataset.label_radius) == (True, True, 4.0)
        (picture,) = dataset._cache.values()
        expected = [p**2 / (p**2 + (1 - p) ** 2) for p in (0.95, 0.15, 0.75)]
        np.testing.assert_allclose(picture.probabilities, expected, rtol=1e-5)


def test_normalisation_is_frozen_after_its_share_of_the_steps(tmp_path):
    config = replace(TINY, freeze_norm_after=0.5)
    state = train(config, tmp_path, progress=False).model.state_dict()
    counts = {int(value) for name, value in state.items() if name.endswith("batches_tracked")}
    assert counts == {3}  # of 6 steps


def test_a_blend_is_sharpened_as_a_whole(tmp_path):
    config = replace(TINY, model="superpoint", views=2, descriptor_weight=1.0, norm="none", steps=1)
    trained = train(config, tmp_path / "run", progress=False).model.state_dict()
    torch.manual_seed(1)
    other = make_model(replace(config, seed=1))
    path, output = tmp_path / "other.safetensors", tmp_path / "out.safetensors"
    save_weights(path, other.state_dict(), to_dict(other.config), {}, torch.float32)
    blend = str(path), 0.25
    release(tmp_path / "run", output, dtype=torch.float32, blend=blend, sharpen=2.0)
    name = "detector.output.conv.weight"
    expected = 2 * (0.75 * trained[name] + 0.25 * other.state_dict()[name])
    torch.testing.assert_close(load_weights(output).state_dict[name], expected)
