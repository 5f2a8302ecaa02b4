"""The networks: shapes, normalisation, precision, and folding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from superpoint_lib.config import replace
from superpoint_lib.model import (
    ImageConv2d,
    MagicPoint,
    ModelConfig,
    SuperPoint,
    fold_batch_norm,
)

SMALL = ModelConfig(descriptor_dim=16, channels=(8, 8, 16, 16), head_channels=24)


def images(batch=2, height=32, width=48, seed=0):
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))


def disturb_statistics(model, seed=0):
    """Running statistics and affine parameters that no network starts from."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator))
            module.running_var.copy_(0.05 + 2 * torch.rand(shape, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator))
    return model


def test_paper_architecture():
    model = SuperPoint(ModelConfig(norm="none"))
    kernels = {name: tuple(p.shape) for name, p in model.named_parameters() if "weight" in name}
    assert list(kernels.values()) == [
        (64, 1, 3, 3),
        (64, 64, 3, 3),
        (64, 64, 3, 3),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
        (128, 128, 3, 3),
        (128, 128, 3, 3),
        (128, 128, 3, 3),
        (256, 128, 3, 3),
        (65, 256, 1, 1),
        (256, 128, 3, 3),
        (256, 256, 1, 1),
    ]
    assert sum(p.numel() for p in model.parameters()) == 1_300_865


def test_output_shapes_and_unit_descriptors():
    maps = SuperPoint(SMALL).eval()(images(height=32, width=48))
    assert maps["logits"].shape == (2, 65, 4, 6)
    assert maps["descriptors"].shape == (2, 16, 4, 6)
    torch.testing.assert_close(maps["descriptors"].norm(dim=1), torch.ones(2, 4, 6))
    assert set(MagicPoint(SMALL)(images())) == {"logits"}


def test_receptive_cell_order():
    """The change a bright pixel makes is centred at its cell: rows of cells are image rows."""
    torch.manual_seed(0)
    model = MagicPoint(replace(SMALL, norm="none"))
    blank = torch.zeros(1, 1, 64, 96)
    spot = blank.clone()
    spot[0, 0, 8 * 5 + 4, 8 * 2 + 4] = 1
    change = (model(spot)["logits"] - model(blank)["logits"]).abs().sum(1)[0]
    share = change / change.sum()
    row, column = share.sum(1) @ torch.arange(8.0), share.sum(0) @ torch.arange(12.0)
    assert abs(row.item() - 5) < 1 and abs(column.item() - 2) < 1


@pytest.mark.parametrize(
    "shape", [(1, 32, 32), (1, 3, 32, 32), (1, 1, 30, 32), (1, 1, 32, 33), (1, 1, 0, 32)]
)
def test_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        SuperPoint(SMALL)(torch.zeros(shape))


def test_every_normalisation_has_its_layers():
    def layers(**changes):
        model = SuperPoint(replace(SMALL, **changes))
        return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]

    assert layers(norm="none", norm_outputs=True) == []
    assert len(layers(norm="batch")) == 10
    assert len(layers(norm="batch", norm_outputs=True)) == 12
    batch = layers(norm="batch", norm_eps=1e-3, norm_momentum=0.01)[0]
    assert (batch.eps, batch.momentum) == (1e-3, 0.01)
    groups = [m.num_groups for m in layers(norm="group", norm_groups=8, norm_outputs=True)]
    assert groups[:4] == [8] * 4
    assert groups[9] == 1  # 65 logits: no divisor in common with 8


@pytest.mark.parametrize("order", ["conv-norm-relu", "conv-relu-norm"])
def test_order_of_normalisation_and_relu(order):
    model = disturb_statistics(MagicPoint(replace(SMALL, norm_order=order))).eval()
    block, x = model.encoder.block1a, images()
    y = F.conv2d(x, block.conv.weight, block.conv.bias, padding=1)
    expected = block.norm(y).relu() if order == "conv-norm-relu" else block.norm(y.relu())
    torch.testing.assert_close(block(x), expected)
    assert (expected < 0).any() == (order == "conv-relu-norm")


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="layer"):
        MagicPoint(ModelConfig(norm="layer"))


def test_group_and_no_norm_agree_in_train_and_eval_mode():
    for norm in ("none", "group"):
        model = SuperPoint(replace(SMALL, norm=norm))
        train, evaluated = model.train()(images()), model.eval()(images())
        for key in train:
            assert torch.equal(train[key], evaluated[key])


def test_initial_signal_neither_vanishes_nor_explodes():
    torch.manual_seed(0)
    logits = MagicPoint(ModelConfig(norm="none"))(images(height=64, width=64))["logits"]
    assert 0.05 < logits.std().item() < 5


def test_autocast_in_channels_last_gives_plain_float32_maps_and_unit_descriptors():
    model = SuperPoint(SMALL).eval().to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model(x)
    for value in maps.values():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
    # bfloat16 itself would leave errors of some 1e-3.
    torch.testing.assert_close(
        maps["descriptors"].norm(dim=1), torch.ones(2, 4, 6), rtol=0, atol=1e-6
    )
    sum(value.square().sum() for value in maps.values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_double_precision_is_kept_and_gradients_are_finite():
    model = SuperPoint(SMALL).double()
    maps = model(images().double())
    assert {value.dtype for value in maps.values()} == {torch.float64}
    (maps["logits"].square().mean() + maps["descriptors"][:, 0].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_zero_descriptor_has_finite_gradient():
    model = SuperPoint(replace(SMALL, norm="none"))
    nn.init.zeros_(model.descriptor.output.conv.weight)
    descriptors = model(images())["descriptors"]
    assert torch.equal(descriptors, torch.zeros_like(descriptors))
    descriptors.sum().backward()
    assert model.descriptor.output.conv.weight.grad.isfinite().all()


def test_a_few_steps_learn():
    torch.manual_seed(0)
    model = MagicPoint(SMALL).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = torch.randint(0, 65, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(images())["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("norm_outputs", [False, True])
@pytest.mark.parametrize("kind", [SuperPoint, MagicPoint])
def test_folded_batch_norm_equals_eval_mode(kind, norm_outputs):
    torch.manual_seed(1)
    config = replace(SMALL, norm_outputs=norm_outputs, norm_eps=1e-3)
    model = disturb_statistics(kind(config)).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    assert model.training and not folded.training
    assert type(folded) is kind
    assert folded.config == replace(config, norm="none", norm_outputs=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    model.eval()
    with torch.no_grad():
        expected, found = model(images()), folded(images())
        in_train_mode = folded.train()(images())
    for key in expected:
        # Activations reach the hundreds here: compare relative to the size of the map.
        scale = float(expected[key].abs().max())
        assert float((found[key] - expected[key]).abs().max()) <= 1e-5 * max(scale, 1)
        assert torch.equal(in_train_mode[key], found[key])


def test_folding_a_freshly_trained_full_size_model_to_1e_5():
    torch.manual_seed(0)
    model = SuperPoint().train()
    with torch.no_grad():
        for seed in range(3):
            model(images(height=48, width=64, seed=seed))
        model.eval()
        expected, found = model(images()), fold_batch_norm(model)(images())
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)


def test_folding_copies_a_model_without_norm_and_refuses_the_rest():
    plain = MagicPoint(replace(SMALL, norm="none"))
    folded = fold_batch_norm(plain)
    assert folded is not plain
    assert torch.equal(folded(images())["logits"], plain(images())["logits"])
    with pytest.raises(ValueError, match="conv-relu-norm"):
        fold_batch_norm(MagicPoint(replace(SMALL, norm_order="conv-relu-norm")))
    with pytest.raises(ValueError, match="group"):
        fold_batch_norm(MagicPoint(replace(SMALL, norm="group")))


def test_under_autocast_the_first_layer_rounds_nothing_but_its_result():
    torch.manual_seed(0)
    conv = ImageConv2d(1, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight -= conv.weight.mean(dim=(2, 3), keepdim=True)  # edges: sums of zero
        conv.bias.zero_()
    # A bright picture of weak contrast, where rounded gray levels and weights show most.
    image = 0.9 + 0.01 * torch.rand(2, 1, 24, 40)
    inside = (..., slice(1, -1), slice(1, -1))
    with torch.no_grad():
        exact = conv.double()(image.double())[inside]
        conv.float()
        with torch.autocast("cpu", torch.bfloat16):
            found = conv(image)
            plain = F.conv2d(image, conv.weight, conv.bias, padding=1)[inside]
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    rounding = exact.abs() * 2**-8 + 1e-4
    assert ((found[inside].double() - exact).abs() <= rounding).all()
    assert not ((plain.double() - exact).abs() <= rounding).all()


def test_first_layer_learns_the_same_under_autocast():
    torch.manual_seed(0)
    conv, image = ImageConv2d(1, 4, 3, padding=1), torch.rand(2, 1, 16, 16)
    conv(image).square().sum().backward()
    expected = conv.weight.grad.clone()
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(image)
    out.float().square().sum().backward()
    torch.testing.assert_close(
        conv.weight.grad, expected, rtol=0.02, atol=0.02 * expected.abs().max().item()
    )


def test_logits_are_not_rounded_under_autocast():
    torch.manual_seed(0)
    model = SuperPoint().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(1, 1, 32, 32))["logits"]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_the_network_is_exported_as_it_is():
    model = SuperPoint().eval()
    images, others = torch.rand(2, 1, 48, 64), torch.rand(3, 1, 64, 80)
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    exported = torch.export.export(
        model, (images,), dynamic_shapes=({0: batch, 2: 8 * height, 3: 8 * width},)
    )
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(others), model(others))
