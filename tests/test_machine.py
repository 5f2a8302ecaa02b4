"""What the machine is called, and which numbers it multiplies faster."""

from __future__ import annotations

import pytest
import torch

from superpoint_lib import machine
from superpoint_lib.machine import bfloat16_is_faster, machine_name, processor_name

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
