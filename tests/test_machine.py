"""Which of a machine's devices computes, what it is called, and what is right and fast there."""

from __future__ import annotations

import pytest
import torch

from superpoint_lib import machine
from superpoint_lib.adaptation import AdaptConfig, export_labels
from superpoint_lib.config import ConfigError
from superpoint_lib.machine import (
    bfloat16_is_faster,
    choose_device,
    machine_name,
    processor_name,
    training_format,
)
from superpoint_lib.training import TrainConfig, pieces, train
from superpoint_lib.training.pieces import make_fabric

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "processor", "faster"),
    [
        ((), "AMD EPYC", False),
        (("avx512_bf16",), "AMD EPYC", True),
        (("avx512_bf16",), "Intel(R) Xeon(R) Processor", False),
        (("avx512_bf16", "amx_tile"), "Intel(R) Xeon(R) Processor", True),
    ],
)
def test_bfloat16_is_chosen_where_its_products_are_fast(monkeypatch, features, processor, faster):
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(
            torch.cpu, f"_is_{feature}_supported", lambda f=feature: f in features, raising=False
        )
    monkeypatch.setattr(machine, "processor_name", lambda: processor)
    assert bfloat16_is_faster(CPU) is faster


def test_bfloat16_needs_a_pytorch_that_tells_what_the_processor_has(monkeypatch):
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{feature}_supported", raising=False)
    assert not bfloat16_is_faster(CPU)
    assert not bfloat16_is_faster(torch.device("mps"))


def test_machine_is_named_with_its_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert machine_name(CPU) == f"1 thread of {processor_name()}"
        torch.set_num_threads(2)
        assert machine_name(CPU) == f"2 threads of {processor_name()}"
    finally:
        torch.set_num_threads(before)
    assert processor_name() and "\n" not in processor_name()
    assert machine_name(torch.device("mps")) == f"mps of {processor_name()}"


@pytest.fixture
def no_gpu(monkeypatch):
    for kind in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)


def test_a_device_is_chosen_by_its_name(no_gpu, monkeypatch):
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="no CUDA GPU here; choose cpu or auto"):
        choose_device("cuda")
    # Apple's has to be asked for, where the others' is taken.
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == CPU
    assert choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(
        ConfigError, match="such device here; choose cpu, cuda, cuda:0, cuda:1, mps or auto"
    ):
        choose_device("cuda:2")


def test_training_is_channels_last_but_on_apples_gpus():
    assert training_format(CPU) == training_format(torch.device("cuda")) == torch.channels_last
    assert training_format(torch.device("mps")) == torch.contiguous_format


def test_trainings_and_labels_go_where_they_are_told(no_gpu, tmp_path):
    with pytest.raises(ConfigError, match="device mps: "):
        train(TrainConfig(device="mps"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert make_fabric(TrainConfig()).device == CPU
    with pytest.raises(ConfigError, match="device cuda:3: "):
        export_labels(AdaptConfig(images=(str(tmp_path),), device="cuda:3"))


def test_several_processes_do_not_share_one_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(pieces, "choose_device", torch.device)
    with pytest.raises(ConfigError, match="device: cuda:1 is one for all 2 processes; name cuda,"):
        make_fabric(TrainConfig(device="cuda:1"))
