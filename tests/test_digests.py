"""Names for contents: the same for the same, others for others."""

import subprocess

import torch

from superpoint_lib import digests
from superpoint_lib.digests import code_digest, digest, weights_digest
from superpoint_lib.model import MagicPoint


def test_parts_are_told_apart_however_they_are_divided():
    assert digest([b"ab", b"c"]) == digest(iter([b"ab", b"c"]))
    assert len({digest(parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [])}) == 4


def test_weights_are_named_by_names_and_numbers():
    torch.manual_seed(0)
    state = MagicPoint().half().state_dict()
    before = weights_digest(state)
    assert before == weights_digest({name: tensor.float() for name, tensor in state.items()})
    assert before == weights_digest(dict(reversed(state.items())))
    name = next(iter(state))
    assert before != weights_digest({f"x.{key}": tensor for key, tensor in state.items()})
    state[name][0, 0, 0, 0] += 0.01
    assert before != weights_digest(state)


def test_code_is_named_by_its_lines_but_those_left_out(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    for name in ("model.py", "cli.py", "inner/loss.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(digests, "_PACKAGE", tmp_path)
    everything, some = code_digest(), code_digest(("cli", "inner"))
    assert everything != some
    (tmp_path / "inner" / "loss.py").write_text("x = 2\n")
    assert (code_digest() != everything, code_digest(("cli", "inner")) != some) == (True, False)
    (tmp_path / "model.py").write_text("x = 2\n")
    assert code_digest(("cli", "inner")) != some


def test_the_commit_of_somebody_elses_checkout_is_not_told(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(digests, "_PACKAGE", tmp_path)
    (tmp_path / "digests.py").touch()
    assert digests.commit_name() == "unknown"
