"""Weight files: ours, and the public layouts against forward passes written from their sources.

Each public network is written out below as plain functional calls on the keys of its file, with
the order of layers and the eps of its repository, and nothing of the library.
"""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from superpoint_lib.checkpoints import BUNDLED_NAMES, load_weights, save_weights
from superpoint_lib.config import ConfigError, replace, to_dict
from superpoint_lib.model import MagicPoint, ModelConfig, SuperPoint, fold_batch_norm
from superpoint_lib.paths import bundled_weights_dir

SMALL = ModelConfig(descriptor_dim=16, channels=(8, 8, 16, 16), head_channels=24)

# Input and output widths of the eight 3x3 convolutions of the encoder.
ENCODER = [(1, 64), (64, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
# Input and output widths and kernel size of Pa, Pb, Da, Db.
HEADS = [(128, 256, 3), (256, 65, 1), (128, 256, 3), (256, 256, 1)]
SHAPES = [(i, o, 3) for i, o in ENCODER] + HEADS


# ------------------------------------------------------------------ key names of the public files


def magicleap_names():
    convs = ["conv1a", "conv1b", "conv2a", "conv2b", "conv3a", "conv3b", "conv4a", "conv4b"]
    return [*convs, "convPa", "convPb", "convDa", "convDb"], None


def rpautrat_names():
    blocks = [f"backbone.{i}.{j}" for i in range(4) for j in range(2)]
    blocks += ["detector.0", "detector.1", "descriptor.0", "descriptor.1"]
    return [f"{b}.conv" for b in blocks], [f"{b}.bn" for b in blocks]


def zeng_names():
    blocks = [f"backbone.block{i}_{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    heads = ["detector_head", "detector_head", "descriptor_head", "descriptor_head"]
    tails = [f"{head}.%s{x}" for head, x in zip(heads, ("Pa", "Pb", "Da", "Db"), strict=True)]
    convs = [f"{b}.0" for b in blocks] + [t % "conv" for t in tails]
    norms = [f"{b}.2" for b in blocks] + [t % "bn" for t in tails]
    return convs, norms


def eric_names():
    stages = ["inc.conv.conv", "down1.mpconv.1.conv", "down2.mpconv.1.conv", "down3.mpconv.1.conv"]
    tails = ["Pa", "Pb", "Da", "Db"]
    convs = [f"{s}.{i}" for s in stages for i in (0, 3)] + [f"conv{t}" for t in tails]
    norms = [f"{s}.{i}" for s in stages for i in (1, 4)] + [f"bn{t}" for t in tails]
    return convs, norms


NAMES = {
    "magicleap": magicleap_names(),
    "rpautrat-v6": rpautrat_names(),
    "zeng-tf-bn": zeng_names(),
    "eric": eric_names(),
}
EPS = {"magicleap": None, "rpautrat-v6": 1e-3, "zeng-tf-bn": 1e-3, "eric": 1e-5}
NORM_AFTER_RELU = {"rpautrat-v6": True, "zeng-tf-bn": True, "eric": False}


def public_state(layout, counters=True, seed=0):
    """A state dict with the names and shapes of the public file.

    Half of the running variances are near 1e-3, where an eps of 1e-3 changes the output by a
    factor; the others are far from 1. Running means are far from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    convs, norms = NAMES[layout]
    state = {}
    for k, (conv, (wide_in, wide_out, size)) in enumerate(zip(convs, SHAPES, strict=True)):
        spread = (2 / (wide_in * size * size)) ** 0.5
        shape = (wide_out, wide_in, size, size)
        state[f"{conv}.weight"] = spread * torch.randn(shape, generator=generator)
        state[f"{conv}.bias"] = 0.1 * torch.randn(wide_out, generator=generator)
        if norms is None:
            continue
        small = torch.arange(wide_out) % 2 == 0
        uniform = torch.rand(wide_out, generator=generator)
        gain = torch.randn(wide_out, generator=generator)
        state[f"{norms[k]}.weight"] = torch.where(small, 0.02 * gain, gain)
        state[f"{norms[k]}.bias"] = 0.3 * torch.randn(wide_out, generator=generator)
        state[f"{norms[k]}.running_mean"] = 1 + uniform
        state[f"{norms[k]}.running_var"] = torch.where(
            small, 1e-3 * (0.5 + uniform), 5 + 5 * uniform
        )
        if counters:
            state[f"{norms[k]}.num_batches_tracked"] = torch.tensor(100)
    return state


# ------------------------------------------------------------------ independent forward passes


def plain_forward(layout, state, x, eps=None, norm_after_relu=None):
    """The published network as functional calls; returns logits and unit descriptors."""
    convs, norms = NAMES[layout]
    eps = EPS[layout] if eps is None else eps
    after = NORM_AFTER_RELU.get(layout) if norm_after_relu is None else norm_after_relu

    def conv(k, y):
        weight = state[f"{convs[k]}.weight"]
        return F.conv2d(y, weight, state[f"{convs[k]}.bias"], padding=weight.shape[-1] // 2)

    def norm(k, y):
        if norms is None:
            return y
        mean, var = state[f"{norms[k]}.running_mean"], state[f"{norms[k]}.running_var"]
        gain, shift = state[f"{norms[k]}.weight"], state[f"{norms[k]}.bias"]
        factor = gain / torch.sqrt(var + eps)
        return y * factor[:, None, None] + (shift - mean * factor)[:, None, None]

    def hidden(k, y):
        y = conv(k, y)
        return norm(k, F.relu(y)) if after else F.relu(norm(k, y))

    for k in range(8):
        x = hidden(k, x)
        if k in (1, 3, 5):
            x = F.max_pool2d(x, 2)
    logits = norm(9, conv(9, hidden(8, x)))
    descriptors = norm(11, conv(11, hidden(10, x)))
    return logits, descriptors / descriptors.square().sum(1, keepdim=True).sqrt()


def image():
    return torch.rand(1, 1, 32, 40, generator=torch.Generator().manual_seed(3))


def largest_difference(found, expected):
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("layout", NAMES)
def test_public_layout_gives_its_own_forward_pass(layout, tmp_path):
    state = public_state(layout)
    path = tmp_path / "public.pth"
    torch.save({"model_state_dict": state, "n_iter": 7} if layout == "eric" else state, path)
    weights = load_weights(path)
    assert weights.layout == layout
    assert weights.metadata == {}
    model = SuperPoint.from_pretrained(path)
    assert not model.training
    with torch.no_grad():
        maps = model(image())
    found = maps["logits"], maps["descriptors"]
    assert largest_difference(found, plain_forward(layout, state, image())) < 1e-4
    if layout != "magicleap":
        # The statistics are such that a wrong eps or order of layers could not pass.
        other = 1e-5 if EPS[layout] == 1e-3 else 1e-3
        assert largest_difference(found, plain_forward(layout, state, image(), eps=other)) > 1e-2
        swapped = plain_forward(layout, state, image(), norm_after_relu=not NORM_AFTER_RELU[layout])
        assert largest_difference(found, swapped) > 1e-2
        assert model.config.norm_eps == EPS[layout]
        assert model.config.norm_outputs
    detector = MagicPoint.from_pretrained(path)
    with torch.no_grad():
        assert torch.equal(detector(image())["logits"], maps["logits"])


def test_folding_a_public_network_with_norm_before_relu(tmp_path):
    state = public_state("eric")
    torch.save(state, tmp_path / "net.pth.tar")
    folded = fold_batch_norm(SuperPoint.from_pretrained(tmp_path / "net.pth.tar"))
    with torch.no_grad():
        maps = folded(image())
    expected = plain_forward("eric", state, image())
    assert largest_difference((maps["logits"], maps["descriptors"]), expected) < 1e-4


@pytest.mark.parametrize("layout", NAMES)
def test_public_layout_without_counters_and_with_dataparallel_prefix(layout, tmp_path):
    state = {f"module.{k}": v for k, v in public_state(layout, counters=False).items()}
    torch.save(state, tmp_path / "net.pth")
    assert load_weights(tmp_path / "net.pth").layout == layout
    SuperPoint.from_pretrained(tmp_path / "net.pth")


def test_public_state_stored_as_safetensors_is_recognised_too(tmp_path):
    save_file(public_state("rpautrat-v6"), tmp_path / "net.safetensors")
    assert load_weights(tmp_path / "net.safetensors").layout == "rpautrat-v6"


@pytest.mark.parametrize("layout", NAMES)
def test_missing_and_unknown_keys_are_named(layout, tmp_path):
    state = public_state(layout)
    gone = f"{NAMES[layout][0][3]}.weight"
    del state[gone]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError) as error:
        load_weights(tmp_path / "net.pth")
    for word in (str(tmp_path / "net.pth"), layout, gone, "extra.weight"):
        assert word in str(error.value)


def test_misshapen_tensor_is_named(tmp_path):
    state = public_state("magicleap")
    state["convPb.weight"] = torch.zeros(64, 256, 1, 1)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"detector\.output\.conv\.weight.*64.*65"):
        SuperPoint.from_pretrained(tmp_path / "net.pth")


def test_unknown_layout_names_the_known_ones(tmp_path):
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth.*layer1\.weight.*magicleap"):
        load_weights(tmp_path / "resnet.pth")


# ------------------------------------------------------------------ files that are no weights


class RunsCode:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(plain_pickle, tmp_path):
    path, target = tmp_path / "evil.pth", tmp_path / "made-by-the-pickle"
    content = {"conv1a.weight": RunsCode(target)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"evil\.pth: refused.*run code"):
        load_weights(path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights at all",
        b"\x80\x02}q\x00",
        b"hello world, this is text\n",
        b"epoch,loss\n1,2\n",
    ],
)
def test_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_weights(tmp_path / name)


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(public_state("magicleap"), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"net\.pth"):
        load_weights(path)


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_wrappers_around_a_public_file_are_seen_through(wrapper, prefix, tmp_path):
    state = public_state("magicleap")
    wrapped = {prefix + key: value for key, value in state.items()}
    torch.save({wrapper: wrapped, "epoch": 3}, tmp_path / "net.pth")
    torch.save(state, tmp_path / "plain.pth")
    found, plain = (load_weights(tmp_path / f"{name}.pth") for name in ("net", "plain"))
    assert found.layout == "magicleap"
    assert all(
        torch.equal(found.state_dict[key], plain.state_dict[key]) for key in plain.state_dict
    )


@pytest.mark.parametrize("kind", [MagicPoint, SuperPoint])
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_a_plain_state_dict_of_ours_is_read_by_its_shapes(kind, name, tmp_path):
    config = replace(SMALL, norm="none", channels=(8, 12, 16, 20), head_channels=24)
    model = kind(config).eval()
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    again = kind.from_pretrained(path)
    assert again.config == (config if kind is SuperPoint else replace(config, descriptor_dim=256))
    images = torch.rand(1, 1, 32, 40)
    torch.testing.assert_close(again(images), model(images))


def test_a_plain_state_dict_of_ours_does_not_tell_how_it_normalises(tmp_path):
    torch.save(SuperPoint(SMALL).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth.*normalisation.*save_weights"):
        load_weights(tmp_path / "net.pth")
    torch.save({"encoder.block1a.conv.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth.*without 'encoder\.block1a\.conv\.bias'"):
        load_weights(tmp_path / "part.pth")


def test_the_folder_of_a_training_stands_for_its_weights(tmp_path):
    save_weights(
        tmp_path / "weights.safetensors", SuperPoint(SMALL).state_dict(), to_dict(SMALL), {}
    )
    assert load_weights(tmp_path).config == load_weights(tmp_path / "weights.safetensors").config
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no weights\.safetensors"):
        load_weights(tmp_path / "empty")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = SuperPoint(SMALL).state_dict()
    state["detector.output.conv.bias"][3] = torch.nan
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"1 tensors.*'detector\.output\.conv\.bias'"):
        load_weights(tmp_path / "net.pth")


def test_the_weights_of_a_compiled_network_are_its_own(tmp_path):
    model = SuperPoint(SMALL)
    compiled = {f"_orig_mod.{key}": value for key, value in model.state_dict().items()}
    save_weights(tmp_path / "net.safetensors", compiled, to_dict(SMALL), {}, torch.float32)
    again = SuperPoint.from_pretrained(tmp_path / "net.safetensors")
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_safetensors_are_known_under_any_name(tmp_path):
    path = tmp_path / "NET.SAFETENSORS"
    save_weights(path, SuperPoint(SMALL).state_dict(), to_dict(SMALL), {})
    for name in ("NET.SAFETENSORS", "net.pth", "net"):
        path = path.rename(tmp_path / name)
        assert load_weights(path).config["channels"] == list(SMALL.channels)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {"model_state_dict": 3}])
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth: holds no state dict"):
        load_weights(tmp_path / "net.pth")


def test_missing_file_names_the_bundled_ones(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.pth.*superpoint, superpoint-open, magicpoint"
    ):
        load_weights(tmp_path / "nowhere.pth")


# ------------------------------------------------------------------ our own files


def test_own_file_round_trip(tmp_path):
    config = replace(SMALL, norm_order="conv-relu-norm", norm_outputs=True, norm_eps=1e-3)
    model = SuperPoint(config).to(memory_format=torch.channels_last)
    model.train()(torch.rand(2, 1, 16, 16))
    metadata = {"data": ["a", "b"], "steps": 3, "note": "größer"}
    path = save_weights(
        tmp_path / "new" / "net.safetensors",
        model.state_dict(),
        to_dict(config),
        metadata,
        dtype=torch.float32,
    )
    weights = load_weights(path)
    assert (weights.layout, weights.metadata) == ("superpoint-lib", metadata)
    for key, value in model.state_dict().items():
        assert weights.state_dict[key].dtype == value.dtype
        assert torch.equal(weights.state_dict[key], value)
    read = SuperPoint.from_pretrained(str(path))
    assert read.config == config
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(read(image()), model(image()))
    assert os.listdir(path.parent) == ["net.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_half_precision_file_is_read_as_float32(tmp_path):
    model = MagicPoint(SMALL)
    path = save_weights(tmp_path / "net.safetensors", model.state_dict(), to_dict(SMALL), {})
    stored = load_file(path)["encoder.block1a.conv.weight"]
    assert stored.dtype == torch.float16
    assert path.stat().st_size < 3 * sum(v.numel() for v in model.state_dict().values()) + 8000
    read = load_weights(path).state_dict["encoder.block1a.conv.weight"]
    assert read.dtype == torch.float32
    assert torch.equal(read, stored.float())


def test_int8_kernels_are_multiples_of_their_channels_steps(tmp_path):
    kernel = torch.tensor([[1.27, -0.014], [0.0, 0.0], [0.5, 254.0]])[:, :, None, None]
    state = {"a.weight": kernel, "a.bias": torch.tensor([0.3, -7.0]), "n": torch.tensor(5)}
    path = save_weights(tmp_path / "net.safetensors", state, {}, {}, torch.int8)
    stored = load_file(path)
    assert stored["a.weight"].dtype == torch.int8
    assert stored["a.weight"].flatten().tolist() == [127, -1, 0, 0, 0, 127]
    assert stored["a.weight.step"].tolist() == pytest.approx([0.01, 1, 2])
    read = load_weights(path).state_dict
    assert set(read) == set(state)
    assert read["a.weight"].flatten().tolist() == pytest.approx([1.27, -0.01, 0, 0, 0, 254])
    assert torch.equal(read["a.bias"], state["a.bias"].half().float())
    assert torch.equal(read["n"], state["n"])


def test_kernels_of_less_than_a_fiftieth_of_all_numbers_stay_float16(tmp_path):
    shapes = {"first": (2, 1, 3, 3), "other": (7, 7, 3, 3), "large": (9, 52, 1, 1)}  # 18, 441, 468
    state = {name: torch.rand(shape) for name, shape in shapes.items()}
    stored = load_file(save_weights(tmp_path / "net.safetensors", state, {}, {}, torch.int8))
    dtypes = {name: stored[name].dtype for name in shapes}
    assert dtypes == {"first": torch.float16, "other": torch.int8, "large": torch.int8}
    assert "first.step" not in stored
    read = load_weights(tmp_path / "net.safetensors").state_dict
    assert torch.equal(read["first"], state["first"].half().float())


def test_an_int8_network_is_half_as_large_and_nearly_the_same(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(norm="none")
    model = SuperPoint(config).eval()
    half, small = (
        save_weights(tmp_path / f"{name}.safetensors", model.state_dict(), to_dict(config), {}, t)
        for name, t in (("half", torch.float16), ("small", torch.int8))
    )
    bytes_of = [sum(v.nbytes for v in load_file(path).values()) for path in (half, small)]
    assert bytes_of[1] < 0.52 * bytes_of[0]
    read = SuperPoint.from_pretrained(str(small)).eval()
    with torch.no_grad():
        for name, exact in model(image()).items():
            error = read(image())[name] - exact
            assert 0 < error.norm() < 0.03 * exact.norm()


def test_superpoint_file_as_magicpoint_and_the_other_way(tmp_path):
    model = SuperPoint(SMALL).eval()
    path = save_weights(
        tmp_path / "sp.safetensors", model.state_dict(), to_dict(SMALL), {}, torch.float32
    )
    detector = MagicPoint.from_pretrained(path)
    assert not any("descriptor" in key for key in detector.state_dict())
    with torch.no_grad():
        found, expected = detector(image())["logits"], model(image())["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    path = save_weights(
        tmp_path / "mp.safetensors", MagicPoint(SMALL).state_dict(), to_dict(SMALL), {}
    )
    with pytest.raises(ValueError, match=r"mp\.safetensors: holds no descriptor head.*MagicPoint"):
        SuperPoint.from_pretrained(path)


def test_own_file_with_wrong_contents(tmp_path):
    state = MagicPoint(SMALL).state_dict()
    path = tmp_path / "net.safetensors"
    save_weights(path, {**state, "more.weight": torch.zeros(1)}, to_dict(SMALL), {})
    with pytest.raises(ValueError, match=r"net\.safetensors.*unknown key 'more\.weight'"):
        MagicPoint.from_pretrained(path)
    del state["encoder.block2a.conv.bias"]
    save_weights(path, state, to_dict(SMALL), {})
    with pytest.raises(ValueError, match=r"missing key 'encoder\.block2a\.conv\.bias'"):
        MagicPoint.from_pretrained(path)
    save_weights(path, state, {**to_dict(SMALL), "depth": 3}, {})
    with pytest.raises(ConfigError, match=r"net\.safetensors.*'depth'"):
        MagicPoint.from_pretrained(path)


def test_file_of_another_version_or_with_a_broken_header(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = {"x": torch.zeros(1)}
    save_file(tensors, path, {"layout": "superpoint-lib", "version": "99"})
    with pytest.raises(ValueError, match="file version 99"):
        load_weights(path)
    save_file(tensors, path, {"layout": "superpoint-lib", "version": "1", "config": "{"})
    with pytest.raises(ValueError, match="stored configuration"):
        load_weights(path)


def test_save_refuses_what_could_not_be_read_back(tmp_path):
    with pytest.raises(ValueError, match=r"net\.pth.*\.safetensors"):
        save_weights(tmp_path / "net.pth", {}, {}, {})
    for value, dtype in ((1e6, torch.float16), (float("nan"), torch.float32)):
        with pytest.raises(ValueError, match=r"'a\.weight' is not finite"):
            save_weights(
                tmp_path / "n.safetensors", {"a.weight": torch.tensor([value])}, {}, {}, dtype
            )
    with pytest.raises(TypeError):
        save_weights(tmp_path / "n.safetensors", {}, {"a": np.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ bundled weights


def test_missing_bundled_weights_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr("superpoint_lib.checkpoints.bundled_weights_dir", lambda: tmp_path)
    for name in BUNDLED_NAMES:
        with pytest.raises(FileNotFoundError, match=f"bundled weights '{name}'.*superpoint train"):
            MagicPoint.from_pretrained(name)


def test_bundled_name_wins_over_a_file_of_that_name(monkeypatch, tmp_path):
    weights = tmp_path / "weights"
    model = MagicPoint(SMALL)
    save_weights(
        weights / "magicpoint.safetensors", model.state_dict(), to_dict(SMALL), {"bundled": True}
    )
    monkeypatch.setattr("superpoint_lib.checkpoints.bundled_weights_dir", lambda: weights)
    monkeypatch.chdir(tmp_path)
    torch.save(public_state("magicleap"), "magicpoint")
    assert load_weights("magicpoint").metadata == {"bundled": True}
    assert load_weights("./magicpoint").layout == "magicleap"


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_file(name):
    """Reads the real file as soon as it is in the package."""
    path = bundled_weights_dir() / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the package")
    kernels = {v.dtype for v in load_file(path).values() if v.ndim == 4}
    halves = name == "magicpoint"
    assert kernels == ({torch.float16} if halves else {torch.int8, torch.float16})
    weights = load_weights(name)
    assert weights.layout == "superpoint-lib"
    assert weights.metadata
    has_descriptors = any(key.startswith("descriptor.") for key in weights.state_dict)
    assert has_descriptors == name.startswith("superpoint")
    (SuperPoint if has_descriptors else MagicPoint).from_pretrained(name)
