"""Targets and losses: numbers by hand, the definition spelled out, gradients, other libraries."""

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from superpoint_lib.extraction import extract_from_maps, sample_descriptors
from superpoint_lib.geometry import adjugate, turn_and_zoom, warp_points
from superpoint_lib.geometry.cells import DUSTBIN
from superpoint_lib.losses import (
    HINGE_LAMBDAS,
    HINGE_PRESETS,
    HingeConfig,
    agreement_loss,
    cell_centers,
    cell_validity,
    descriptor_hinge_loss,
    descriptor_hinge_loss_broadcast,
    descriptor_infonce_loss,
    descriptor_sparse_loss,
    detector_loss,
    keypoint_places,
    keypoints_to_labels,
    keypoints_to_targets,
    label_offsets,
    position_loss,
    positive_pairs,
    repeatability_loss,
    sharpen_probabilities,
)
from superpoint_lib.losses.contrast import _bagged_rows, _gathered_rows, _sample
from superpoint_lib.losses.detector import _magnification
from superpoint_lib.losses.pairs import labelled_pixels, nearby_cells


def rng(seed=0):
    return np.random.default_rng(seed)


def descriptors_of(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=1)


def homographies(batch, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    H = torch.eye(3, dtype=dtype).repeat(batch, 1, 1)
    H[:, :2, :2] += 0.2 * torch.randn(batch, 2, 2, generator=generator, dtype=dtype)
    H[:, :2, 2] = 5 * torch.randn(batch, 2, generator=generator, dtype=dtype)
    H[:, 2, :2] = 1e-3 * torch.randn(batch, 2, generator=generator, dtype=dtype)
    return H


def translation(dx, dy, batch=1):
    return torch.tensor([[[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]]).repeat(batch, 1, 1)


def random_pair(batch=2, rows=4, columns=5, dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    shape = (batch, dim, rows, columns)
    valid0, valid1 = torch.rand(2, batch, rows, columns, generator=generator) > 0.3
    return (
        descriptors_of(*shape, seed=1, dtype=dtype),
        descriptors_of(*shape, seed=2, dtype=dtype),
        homographies(batch, dtype=dtype),
        valid0,
        valid1,
    )


# ---------------------------------------------------------------------------------- labels


def test_labels_are_pixel_indices_within_the_cell():
    keypoints = np.array([[0, 0], [15, 7], [3, 10], [18, 15]])
    labels = keypoints_to_labels(keypoints, 16, 24, rng())
    assert labels.dtype == np.int64
    assert labels.tolist() == [[0, 7 * 8 + 7, 64], [2 * 8 + 3, 64, 7 * 8 + 2]]


def test_labels_round_to_the_nearest_pixel_and_drop_what_is_outside():
    keypoints = np.array([[7.49, 0.0], [7.5, 8.0], [-0.6, 3.0], [15.5, 3.0], [3.0, 15.51]])
    labels = keypoints_to_labels(keypoints, 16, 16, rng())
    assert labels.tolist() == [[7, 64], [64, 0]]


def test_labels_without_keypoints_are_all_dustbin():
    assert (keypoints_to_labels(np.zeros((0, 2)), 16, 24, rng()) == 64).all()


def test_labels_draw_the_winner_of_a_cell_evenly_whatever_the_order():
    keypoints = np.array([[1, 0], [2, 0], [2.2, 0], [3, 0]])  # two share pixel (2, 0)
    generator = rng()
    drawn = [keypoints_to_labels(keypoints, 8, 8, generator)[0, 0] for _ in range(3000)]
    counts = np.bincount(drawn, minlength=64)
    assert counts[[1, 2, 3]].sum() == 3000
    assert np.abs(counts[[1, 2, 3]] - 1000).max() < 120
    forth = keypoints_to_labels(keypoints, 8, 8, rng(5))
    assert (forth == keypoints_to_labels(keypoints[::-1], 8, 8, rng(5))).all()


@pytest.mark.parametrize(
    ("keypoints", "size", "message"),
    [(np.zeros((3, 2)), (17, 16), "17 x 16"), (np.zeros((3, 3)), (16, 16), r"\(3, 3\)")],
)
def test_labels_refuse_other_shapes(keypoints, size, message):
    with pytest.raises(ValueError, match=message):
        keypoints_to_labels(keypoints, *size, rng())


def test_a_cell_is_valid_when_all_its_pixels_are():
    valid = np.ones((2, 16, 24), bool)
    valid[0, 8, 23] = False
    expected = [[True, True, True], [True, True, False]]
    assert cell_validity(valid)[0].tolist() == expected
    assert cell_validity(valid)[1].all()
    assert torch.equal(cell_validity(torch.from_numpy(valid))[0], torch.tensor(expected))
    with pytest.raises(ValueError, match="12 x 16"):
        cell_validity(np.ones((12, 16), bool))


# -------------------------------------------------------------------------------- detector


def test_detector_loss_of_uniform_logits_is_log_65():
    loss = detector_loss(torch.zeros(2, 65, 3, 4), torch.full((2, 3, 4), 64))
    assert loss.item() == pytest.approx(math.log(65), abs=1e-6)


def test_detector_loss_averages_valid_cells_within_images_then_images():
    logits = torch.zeros(2, 65, 1, 2)
    logits[0, 5, 0, 0] = 3.0
    labels = torch.full((2, 1, 2), 5)
    valid = torch.tensor([[[True, False]], [[True, True]]])
    confident = -math.log(math.exp(3) / (math.exp(3) + 64))
    by_image = detector_loss(logits, labels, valid)
    by_batch = detector_loss(logits, labels, valid, normalisation="batch")
    assert by_image.item() == pytest.approx((confident + math.log(65)) / 2, abs=1e-5)
    assert by_batch.item() == pytest.approx((confident + 2 * math.log(65)) / 3, abs=1e-5)


def test_detector_loss_agrees_with_scikit_learn_and_with_ignored_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 65, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(65, (3, 4, 5), generator=generator)
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, 65).numpy()
    expected = log_loss(labels.flatten().numpy(), probabilities, labels=np.arange(65))
    assert detector_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    valid = torch.rand(3, 4, 5, generator=generator) > 0.4
    ignored = F.cross_entropy(logits, labels.masked_fill(~valid, -100))
    ours = detector_loss(logits, labels, valid, normalisation="batch")
    assert ours.item() == pytest.approx(ignored.item(), rel=1e-12)


def test_detector_loss_gradient_is_right_and_zero_where_not_valid():
    logits = descriptors_of(2, 65, 2, 2).requires_grad_()
    labels = torch.randint(65, (2, 2, 2), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    assert torch.autograd.gradcheck(lambda x: detector_loss(x, labels, valid), logits)
    (gradient,) = torch.autograd.grad(detector_loss(logits, labels, valid), logits)
    touched = gradient.abs().sum(1) > 0
    assert torch.equal(touched, valid)


# -------------------------------------------------------------------------------- geometry


def test_offsets_are_those_of_the_winning_keypoints():
    keypoints = np.array([[2.25, 3.5 - 1e-6], [9.5, 0.0], [-0.6, 7.0], [99.0, 3.0]])
    labels = keypoints_to_labels(keypoints[:2], 8, 16, rng())
    offsets = label_offsets(labels, keypoints)
    assert offsets.shape == (2, 1, 2) and offsets.dtype == np.float32
    # (2.25, 3.5-) lies in pixel (2, 3); halves round up, so 9.5 is in pixel 10.
    np.testing.assert_allclose(offsets[:, 0].T, [[0.25, 0.5], [-0.5, 0.0]], atol=1e-5)


def test_offsets_without_keypoints_are_zero():
    assert not label_offsets(np.full((2, 3), DUSTBIN), np.zeros((0, 2))).any()


def test_offsets_and_labels_give_the_keypoints_back():
    # One a cell, up to the very edge of the picture.
    cells = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 8
    keypoints = cells + rng(1).uniform(-0.5, 7.499, cells.shape)
    labels = keypoints_to_labels(keypoints, 32, 40, rng())
    pixels = labelled_pixels(torch.from_numpy(labels)[None])[0].numpy()
    recovered = pixels + label_offsets(labels, keypoints).reshape(2, -1)
    np.testing.assert_allclose(recovered.T, keypoints, atol=1e-5)


def test_targets_by_hand():
    # Half certain, a quarter of a pixel right of (7, 2): three quarters stay in the first cell. A
    # certain one at (12, 5.5) has two pixels; the last lies outside by more than a pixel.
    keypoints = np.array([[7.25, 2.0], [12.0, 5.5], [17.5, 3.0]])
    targets = keypoints_to_targets(keypoints, np.array([0.5, 1.0, 1.0]), 8, 16)
    expected = np.zeros((65, 1, 2))
    expected[2 * 8 + 7, 0, 0], expected[DUSTBIN, 0, 0] = 0.375, 0.625
    expected[2 * 8 + 0, 0, 1] = 0.125
    expected[[5 * 8 + 4, 6 * 8 + 4], 0, 1] = 0.5
    expected[:, 0, 1] /= 1.125  # more than 1 in all
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_targets_keep_position_and_probability():
    # One keypoint in the middle of each of 20 cells: its cell's mean position and mass are its own.
    cells = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2)
    inside = rng(1).uniform(1, 6, cells.shape)
    probabilities = rng(2).uniform(0, 1, len(cells))
    targets = keypoints_to_targets(8 * cells + inside, probabilities, 32, 40)
    pixels = targets[:DUSTBIN].reshape(64, -1)
    np.testing.assert_allclose(pixels.sum(0), probabilities, atol=1e-6)
    places = np.stack([np.arange(64) % 8, np.arange(64) // 8])
    np.testing.assert_allclose((places @ pixels / pixels.sum(0)).T, inside, atol=1e-5)


def test_targets_of_certain_whole_pixels_cost_what_labels_cost():
    keypoints = np.array([[3.0, 4.0], [20.0, 9.0]])
    labels = torch.from_numpy(keypoints_to_labels(keypoints, 16, 24, rng()))[None]
    targets = torch.from_numpy(keypoints_to_targets(keypoints, np.ones(2), 16, 24))[None]
    logits = torch.randn(1, 65, 2, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[[True, True, False], [True, True, True]]])
    torch.testing.assert_close(
        detector_loss(logits, targets, valid), detector_loss(logits, labels, valid)
    )


def test_targets_without_keypoints_are_dustbins_and_wrong_shapes_refused():
    assert (keypoints_to_targets(np.zeros((0, 2)), np.zeros(0), 16, 8)[DUSTBIN] == 1).all()
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2,\)"):
        keypoints_to_targets(np.zeros((3, 2)), np.ones(2), 16, 8)
    with pytest.raises(ValueError, match="multiple of 8"):
        keypoints_to_targets(np.zeros((1, 2)), np.ones(1), 20, 8)


def test_sharpening_by_hand():
    p = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32)
    sharper = sharpen_probabilities(p, 2.0)
    assert sharper.dtype == np.float32
    np.testing.assert_allclose(sharper, [0, 0.04 / 0.68, 0.5, 0.81 / 0.82, 1], atol=1e-7)
    np.testing.assert_array_equal(sharpen_probabilities(p, 1.0), p)
    # The log-odds are multiplied.
    logit = np.log(sharper[1:4] / (1 - sharper[1:4]))
    np.testing.assert_allclose(logit, 2 * np.log(p[1:4] / (1 - p[1:4])), rtol=1e-5, atol=1e-6)
    hard = sharpen_probabilities(np.float32([0, 0.4, 0.5, 0.6, 1]), 1000)
    assert hard.tolist() == [0, 0, 0.5, 1, 1]
    with pytest.raises(ValueError, match="exponent is 0"):
        sharpen_probabilities(p, 0)


def test_position_loss_by_hand():
    # Pixels 3 and 4 of the cell's first row share the mass: 3.5, half a pixel right of the label.
    logits = torch.full((1, 65, 1, 1), -100.0)
    logits[0, [3, 4]] = 5.0
    labels = torch.full((1, 1, 1), 3)
    offsets = torch.tensor([0.25, -0.1]).view(1, 2, 1, 1)
    expected = 0.25**2 / 2 + 0.1**2 / 2
    assert position_loss(logits, labels, offsets).item() == pytest.approx(expected, abs=1e-6)
    # The peak 3 px off in x: Huber's loss is linear there.
    logits = torch.full((1, 65, 1, 1), -100.0)
    logits[0, 6] = 5.0
    offsets = torch.zeros(1, 2, 1, 1)
    assert position_loss(logits, labels, offsets).item() == pytest.approx(2.5, abs=1e-6)
    # Of two, the higher one within reach counts: pixel 2, not 7.
    logits[0, [2, 7]] = torch.tensor([[[4.0]], [[8.0]]])
    logits[0, 6] = -100.0
    assert position_loss(logits, labels, offsets).item() == pytest.approx(0.5, abs=1e-6)


def test_position_loss_measures_what_extraction_finds():
    # One keypoint in the middle of each 24 x 24 pixels, its peak a pixel or two off the label.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 65, 6, 9, generator=generator, dtype=torch.float64)
    logits[:, 64] = 6
    labels = torch.full((2, 6, 9), DUSTBIN)
    y, x = (torch.randint(a, 8 - a, (2, 2, 3), generator=generator) for a in (0, 2))
    labels[:, 1::3, 1::3] = 8 * y + x
    peaks = (labels + torch.randint(-2, 3, labels.shape, generator=generator)).clamp(0, 63)
    logits.scatter_add_(1, peaks[:, None], 9.0 * (labels < DUSTBIN)[:, None].double())
    offsets = torch.rand(2, 2, 6, 9, generator=generator, dtype=torch.float64) - 0.5
    found = extract_from_maps({"logits": logits}, [(48, 72)] * 2, max_keypoints=6)
    expected = []
    for image, features in enumerate(found):
        true = (labelled_pixels(labels)[image] + offsets[image].flatten(1)).T
        true = true[(labels[image] < DUSTBIN).flatten()]
        nearest = torch.cdist(true, features.keypoints.double()).argmin(1)
        assert sorted(nearest.tolist()) == list(range(6))
        error = features.keypoints[nearest].double() - true
        expected.append(F.huber_loss(error, torch.zeros_like(error), reduction="none").sum(1))
    loss = position_loss(logits, labels, offsets)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-6, rtol=0)


def test_position_loss_counts_labelled_valid_cells_only():
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(2, 65, 1, 2, generator=generator)).requires_grad_()
    labels = torch.tensor([[[7, 64]], [[64, 64]]])
    valid = torch.tensor([[[True, True]], [[True, True]]])
    loss = position_loss(logits, labels, torch.zeros(2, 2, 1, 2), valid)
    loss.backward()
    # The second image has no labelled cell and counts as zero; windows reach into the dustbin cell.
    alone = position_loss(logits[:1], labels[:1], torch.zeros(1, 2, 1, 2))
    torch.testing.assert_close(loss, alone / 2)
    assert logits.grad is not None and not logits.grad[1].any() and logits.grad[0].any()
    assert position_loss(logits, labels, torch.zeros(2, 2, 1, 2), ~valid).item() == 0
    # Near the label the highest pixel has a probability below one half.
    assert position_loss(logits, labels, torch.zeros(2, 2, 1, 2), threshold=0.5).item() == 0


def test_position_loss_has_right_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 65, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[[0, 63], [64, 20]]])
    offsets = torch.rand(1, 2, 2, 2, generator=generator, dtype=torch.float64) - 0.5
    assert torch.autograd.gradcheck(lambda x: position_loss(x, labels, offsets), logits)


SHIFT = torch.tensor([[[1.0, 0, 8], [0, 1, 0], [0, 0, 1]]])


def two_pixels(columns: int, *pixels: int) -> torch.Tensor:
    """Logits (1, 65, 1, columns): pixels of the second cell, in equal parts; else the dustbin."""
    logits = torch.full((1, 65, 1, columns), -100.0)
    logits[0, 64] = 0.0
    logits[0, list(pixels), 0, 1] = 100.0
    return logits


def test_agreement_loss_by_hand():
    # View 0: its keypoint lies between pixels 3 and 4 of the second cell's first row, at x = 11.5.
    logits0, labels0 = two_pixels(4, 3, 4), torch.tensor([[[64, 2, 64, 64]]])
    # View 1, shifted by a cell: 19.5 would agree, 20 and row 1 is (0.5, 1) off.
    same = two_pixels(4, 3, 4).roll(1, 3)
    assert agreement_loss(logits0, same, labels0, SHIFT).item() == pytest.approx(0, abs=1e-6)
    off = two_pixels(4, 8 + 4).roll(1, 3)
    expected = 0.5**2 / 2 + 1 / 2
    assert agreement_loss(logits0, off, labels0, SHIFT).item() == pytest.approx(expected, abs=1e-6)
    # The label is where to look, not what to find: a pixel further, the same.
    assert agreement_loss(logits0, off, labels0 + 1, SHIFT).item() == pytest.approx(expected)
    # Half as large again, x = 11.5 lands at 17.25.
    larger = torch.diag(torch.tensor([1.5, 1.0, 1.0]))[None]
    at_17 = two_pixels(4, 1).roll(1, 3)
    expected = 0.25**2 / 2
    assert agreement_loss(logits0, at_17, labels0, larger).item() == pytest.approx(expected)


def test_agreement_loss_leaves_out_what_lies_too_far_apart():
    logits0 = two_pixels(4, 3, 4).repeat(2, 1, 1, 1)
    labels0 = torch.tensor([[[64, 2, 64, 64]]]).repeat(2, 1, 1)
    near, far = two_pixels(4, 4).roll(1, 3), two_pixels(4, 8 + 5).roll(1, 3)
    view1 = torch.cat((near, far))  # off by (0.5, 0) and by (1.5, 1), which is 1.803 px
    shifts = SHIFT.repeat(2, 1, 1)
    of_near, of_far = 0.5**2 / 2, (1.5 - 0.5) + (1 - 0.5)
    for within, expected in (
        (math.inf, of_near + of_far),
        (1.81, of_near + of_far),
        (1.8, of_near),
    ):
        loss = agreement_loss(logits0, view1, labels0, shifts, within=within).item()
        assert loss == pytest.approx(expected / 2)


@pytest.mark.parametrize(("column", "expected"), [(5, 0.5), (6, 0.0)])
def test_agreement_loss_looks_three_pixels_far(column, expected):
    # A row further down in view 1; the label says column 2.
    logits0, view1 = two_pixels(4, column), two_pixels(4, 8 + column).roll(1, 3)
    labels0 = torch.tensor([[[64, 2, 64, 64]]])
    loss = agreement_loss(logits0, view1, labels0, SHIFT).item()
    assert loss == pytest.approx(expected, abs=1e-6)


def test_agreement_loss_counts_what_both_views_show():
    logits0, labels0 = two_pixels(4, 3, 4), torch.tensor([[[64, 2, 64, 64]]])
    off = two_pixels(4, 8 + 4).roll(1, 3)
    valid = torch.tensor([[[True, True, False, True]]])
    assert agreement_loss(logits0, off, labels0, SHIFT, ~valid).item() > 0
    assert agreement_loss(logits0, off, labels0, SHIFT, valid).item() == 0
    # Nothing likely there, no label, landing outside, and beyond the horizon.
    empty = torch.full_like(off, -100.0)
    empty[:, 64] = 5.0
    horizon = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1 / 11.5, 0, 1]]])
    for view1, labels, H in (
        (empty, labels0, SHIFT),
        (off, torch.full_like(labels0, 64), SHIFT),
        (off, labels0, torch.tensor([[[1.0, 0, 80], [0, 1, 0], [0, 0, 1]]])),
        (off, labels0, horizon),
    ):
        assert agreement_loss(logits0, view1, labels, H).item() == 0
    # The mean over the keypoints of a picture, then over the pictures.
    both = agreement_loss(
        logits0.repeat(2, 1, 1, 1), torch.cat((off, empty)), labels0.repeat(2, 1, 1), SHIFT
    )
    assert both.item() == pytest.approx(agreement_loss(logits0, off, labels0, SHIFT).item() / 2)


def test_agreement_loss_moves_both_views_and_has_right_gradients():
    generator = torch.Generator().manual_seed(0)
    shape = (1, 65, 3, 4)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "01"]
    logits = [one.requires_grad_() for one in logits]
    labels = torch.randint(0, 65, (1, 3, 4), generator=generator)
    H = torch.tensor([[[0.9, 0.1, 3], [-0.1, 1.1, 2], [1e-3, 0, 1]]], dtype=torch.float64)
    agreement_loss(*logits, labels, H).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in logits)
    assert torch.autograd.gradcheck(lambda a, b: agreement_loss(a, b, labels, H), logits)


def test_repeatability_loss_by_hand():
    # Four cells in a row; both views are sure of one keypoint, a cell further in view 1.
    logits0 = two_pixels(4, 3)
    cells, cost = 4, 0.2
    for shift, found in ((8, 1.0), (7, 1.0), (6, 0.5), (4, 0.0)):
        view1 = two_pixels(4, 3).roll(1, 3)
        loss = repeatability_loss(logits0, view1, translation(shift, 0), cost=cost)
        assert loss.item() == pytest.approx((cost - found) / cells, abs=1e-6)
    # Within one pixel, of which the outermost counts by half.
    for shift, found in ((8, 1.0), (7, 0.5), (6, 0.0)):
        view1 = two_pixels(4, 3).roll(1, 3)
        loss = repeatability_loss(logits0, view1, translation(shift, 0), cost=cost, reach=1)
        assert loss.item() == pytest.approx((cost - found) / cells, abs=1e-6)
    # Half as probable in view 1, p = 1 pays for half, p = 1/2 for one.
    half = two_pixels(4, 3, 64).roll(1, 3)
    expected = ((cost - 0.5) + 0.5 * (cost - 1)) / 2 / cells
    assert repeatability_loss(logits0, half, SHIFT, cost=cost).item() == pytest.approx(expected)


def test_repeatability_loss_counts_no_keypoint_twice():
    # Two neighbours, either side of the border of two cells: each is found again, once.
    logits = torch.full((1, 65, 1, 2), -100.0)
    logits[:, 8 * 3 + 7, 0, 0] = logits[:, 8 * 3, 0, 1] = 100.0
    loss = repeatability_loss(logits, logits, translation(0, 0), cost=0.2)
    assert loss.item() == pytest.approx((0.2 - 1) * 2 / 2)


def test_repeatability_loss_counts_what_lands_in_valid_cells():
    logits0, view1 = two_pixels(4, 3), two_pixels(4, 3).roll(1, 3)
    whole = torch.ones(1, 1, 4, dtype=torch.bool)
    without = torch.tensor([[[True, False, True, True]]])  # the cell of view 0's keypoint
    paid = -0.8 / 4
    assert repeatability_loss(logits0, view1, SHIFT, whole, whole).item() == pytest.approx(paid)
    # Neither direction counts a keypoint of which one end is not valid.
    for valid0, valid1 in ((without, whole), (whole, without.roll(1, 2))):
        loss = repeatability_loss(logits0, view1, SHIFT, valid0, valid1).item()
        assert loss == pytest.approx(0, abs=1e-12)
    # Without the cell beside it, the same is divided by 3 cells in one direction.
    beside = torch.tensor([[[True, True, True, False]]])
    expected = (-0.8 / 3 - 0.8 / 4) / 2
    loss = repeatability_loss(logits0, view1, SHIFT, beside, whole).item()
    assert loss == pytest.approx(expected)
    horizon = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1 / 11.0, 0, 1]]])
    for H in (translation(80, 0), horizon, translation(math.nan, 0)):
        assert repeatability_loss(logits0, logits0, H).item() <= 0.1
    # The mean over pictures.
    both = repeatability_loss(
        logits0.repeat(2, 1, 1, 1), torch.cat((view1, logits0)), torch.cat((SHIFT, SHIFT))
    )
    assert both.item() == pytest.approx((paid + 0.2 / 4) / 2)


def sure_of(x, y):
    logits = torch.full((1, 65, 1, 1), -100.0)
    logits[0, 8 * y + x] = 100.0
    return logits


def test_repeatability_loss_leaves_out_what_the_other_view_shows_larger():
    # View 1 shows everything twice as large, so that (2, 2) in it is (1, 1) in view 0.
    twice, cost = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None], 0.2

    def loss(x, **settings):
        views = sure_of(1, 1), sure_of(x, x)
        return repeatability_loss(*views, twice, cost=cost, reach=1, **settings).item()

    assert loss(2) == pytest.approx(cost - 1)
    assert loss(2, zoom=1.5) == pytest.approx((cost - 1) / 2)  # back alone
    assert loss(2, zoom=0.4) == 0
    # Two pixels off in view 1 are one in view 0, where the corner of the square counts a quarter.
    assert loss(4) == pytest.approx((cost + cost - 0.25) / 2)
    assert loss(4, zoom=1.5) == pytest.approx((cost - 0.25) / 2)
    assert loss(4, zoom=2.1) == loss(4)


def test_magnification_is_the_root_of_the_area():
    H = torch.tensor([[[0.9, 0.1, 3], [-0.1, 1.4, 2], [4e-3, 1e-3, 1]]], dtype=torch.float64)
    pixels = torch.tensor([[[5.0], [2.0]]], dtype=torch.float64)
    found = _magnification(torch.cat((H, -3 * H)), pixels.expand(2, -1, -1))
    expected = turn_and_zoom(H[0].numpy(), 5, 11)[1]
    assert found.flatten().tolist() == pytest.approx([expected, expected])


def test_repeatability_loss_is_least_where_both_views_are_certain_and_has_right_gradients():
    generator = torch.Generator().manual_seed(0)
    shape = (1, 65, 3, 4)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "01"]
    logits = [one.requires_grad_() for one in logits]
    H = torch.tensor([[[0.9, 0.1, 3], [-0.1, 1.1, 2], [1e-3, 0, 1]]], dtype=torch.float64)
    repeatability_loss(*logits, H).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in logits)
    assert torch.autograd.gradcheck(
        lambda a, b: repeatability_loss(a, b, H), logits, fast_mode=True
    )
    # A keypoint of chance p in both views: less than half the cost fades, more grows.
    for chance, grows in ((0.05, False), (0.2, True)):
        view = torch.full((1, 65, 1, 1), -100.0)
        view[0, 9] = math.log(chance / (1 - chance))
        view[0, 64] = 0.0
        view.requires_grad_()
        repeatability_loss(view, view, torch.eye(3)[None], cost=0.2).backward()
        assert view.grad is not None
        assert bool(view.grad[0, 9] < 0) is grows


def test_cell_centers_are_row_major_at_8i_plus_3_5():
    expected = [[3.5, 3.5], [11.5, 3.5], [19.5, 3.5], [3.5, 11.5], [11.5, 11.5], [19.5, 11.5]]
    assert cell_centers(2, 3).tolist() == expected


def test_identity_pairs_each_cell_with_itself_at_7_5_and_with_its_neighbours_at_8():
    assert torch.equal(positive_pairs(translation(0, 0), 3, 4)[0], torch.eye(12, dtype=torch.bool))
    neighbours = 2 * (3 * 3 + 4 * 2)
    assert positive_pairs(translation(0, 0), 3, 4, distance=8.0).sum() == 12 + neighbours


def test_a_shift_by_one_cell_pairs_neighbours():
    pairs = positive_pairs(translation(8, 0), 2, 3)[0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[[0, 1, 3, 4], [1, 2, 4, 5]] = True
    assert torch.equal(pairs, expected)


@pytest.mark.parametrize("distance", [0.5, 4.0, 7.5, 8.0, 12.0, 20.0])
def test_nearby_cells_are_the_true_entries_of_the_full_table(distance):
    H = torch.cat([homographies(4), translation(0, 0).double(), translation(1e7, 0).double()])
    H = torch.cat([H, torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, -3.5]]]).double()])  # infinity
    index, positive = nearby_cells(H, 5, 6, distance)
    table = torch.zeros(len(H), 30, 30, dtype=torch.int64)
    table.scatter_add_(2, index, positive.long())
    assert torch.equal(table, positive_pairs(H, 5, 6, distance).long())


def test_the_adjugate_maps_back_in_float32():
    H = homographies(20, dtype=torch.float32)
    points = cell_centers(30, 40).expand(20, -1, -1)
    back = warp_points(warp_points(points, H), adjugate(H))
    torch.testing.assert_close(back, points, atol=0.02, rtol=0)


def test_sampling_agrees_with_extraction():
    maps = descriptors_of(2, 8, 3, 4)
    points = torch.rand(2, 20, 2, generator=torch.Generator().manual_seed(0)).double() * 40 - 4
    ours = _sample(maps, points)
    for b in range(2):
        torch.testing.assert_close(ours[b].T, sample_descriptors(maps[b], points[b]))


# ----------------------------------------------------------------------------- dense hinge


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 4), (1, 1)])
def test_sampling_agrees_with_grid_sample_beyond_the_border_too(rows, columns):
    maps = descriptors_of(2, 8, rows, columns).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor((8.0 * columns, 8.0 * rows), dtype=torch.float64)
    points = (1.4 * torch.rand(2, 40, 2, generator=generator, dtype=torch.float64) - 0.2) * size
    grid = ((2 * points + 1) / size - 1)[:, :, None]
    expected = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    expected = F.normalize(expected.squeeze(-1), dim=1)
    sampled = _sample(maps, points)
    torch.testing.assert_close(sampled, expected)
    weights = torch.randn(sampled.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((one * weights).sum(), maps)[0] for one in (sampled, expected)]
    torch.testing.assert_close(*gradients)


def test_hinge_loss_of_two_cells_by_hand():
    # Similarities: 0.6 and 0.8 on the diagonal (positives), 0.5 and -0.1 off it.
    d0 = torch.eye(2).view(1, 2, 1, 2)
    similarity = torch.tensor([[0.6, 0.5], [-0.1, 0.8]])
    d1 = similarity.view(1, 2, 1, 2)
    loss = descriptor_hinge_loss(d0, d1, translation(0, 0), config=HingeConfig(lambda_d=10))
    assert loss.item() == pytest.approx((10 * 0.4 + 10 * 0.2 + 0.3 + 0) / 4, abs=1e-6)
    valid1 = torch.tensor([[[True, False]]])
    half = descriptor_hinge_loss(
        d0, d1, translation(0, 0), valid1=valid1, config=HingeConfig(lambda_d=10)
    )
    assert half.item() == pytest.approx(10 * 0.4 / 2, abs=1e-6)
    everything = HingeConfig(lambda_d=10, normalisation="all")
    spread = descriptor_hinge_loss(d0, d1, translation(0, 0), valid1=valid1, config=everything)
    assert spread.item() == pytest.approx(10 * 0.4 / 4, abs=1e-6)


def test_double_normalisation_scales_rows_then_columns():
    similarity = np.array([[0.6, 0.5], [-0.1, 0.8]])
    scaled = np.maximum(similarity, 0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled /= np.linalg.norm(scaled, axis=0, keepdims=True)
    expected = 0.05 * (2 - np.trace(scaled)) + np.maximum(scaled[[0, 1], [1, 0]] - 0.2, 0).sum()
    d0, d1 = torch.eye(2).double().view(1, 2, 1, 2), torch.tensor(similarity).view(1, 2, 1, 2)
    loss = descriptor_hinge_loss(
        d0, d1, translation(0, 0).double(), config=HINGE_PRESETS["rpautrat"]
    )
    assert loss.item() == pytest.approx(expected / 4, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("preset", HINGE_PRESETS)
def test_hinge_loss_equals_its_definition(preset, dtype):
    pair = random_pair(batch=3, dtype=dtype)
    config = HINGE_PRESETS[preset]
    for valid in ((None, None), pair[3:], (None, pair[4])):
        fast = descriptor_hinge_loss(*pair[:3], *valid, config=config)
        plain = descriptor_hinge_loss_broadcast(*pair[:3], *valid, config=config)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-6)
        assert plain > 0


@pytest.mark.parametrize("preset", ["default", "rpautrat", "zeng-stage1"])
def test_hinge_loss_gradients(preset):
    d0, d1, H, valid0, valid1 = random_pair()
    arguments = (d0.requires_grad_(), d1.requires_grad_())
    config = HINGE_PRESETS[preset]

    def loss(a, b):
        return descriptor_hinge_loss(a, b, H, valid0, valid1, config)

    assert torch.autograd.gradcheck(loss, arguments)
    plain = descriptor_hinge_loss_broadcast(d0, d1, H, valid0, valid1, config)
    for ours, theirs in zip(
        torch.autograd.grad(loss(d0, d1), arguments),
        torch.autograd.grad(plain, arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_image_and_batch_normalisations_differ_with_unequal_masks():
    d0, d1, H, _, _ = random_pair()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0, 1:] = False
    one = [
        descriptor_hinge_loss(d0[i : i + 1], d1[i : i + 1], H[i : i + 1], valid[i : i + 1])
        for i in range(2)
    ]
    by_image = descriptor_hinge_loss(d0, d1, H, valid)
    by_batch = descriptor_hinge_loss(d0, d1, H, valid, config=HingeConfig(normalisation="batch"))
    assert by_image.item() == pytest.approx(((one[0] + one[1]) / 2).item(), rel=1e-9)
    assert by_batch.item() == pytest.approx(((5 * one[0] + 20 * one[1]) / 25).item(), rel=1e-9)


def test_every_preset_has_its_published_weight():
    assert HINGE_LAMBDAS.keys() == HINGE_PRESETS.keys()


# ---------------------------------------------------------------------- InfoNCE and sparse


def test_infonce_agrees_with_cross_entropy_under_the_identity():
    d0, d1, _, _, _ = random_pair()
    H = translation(0, 0, 2).double()
    a, b = d0.flatten(2), d1.flatten(2)
    logits = a.transpose(1, 2) @ b / 0.1
    target = torch.arange(20).repeat(2, 1)
    expected = (
        F.cross_entropy(logits.transpose(1, 2), target) + F.cross_entropy(logits, target)
    ) / 2
    ours = descriptor_infonce_loss(d0, d1, H, temperature=0.1, exclusion=0)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)


def test_infonce_leaves_out_neighbours_and_cells_without_a_valid_place():
    # All descriptors equal: each cell's loss is the logarithm of the number of its candidates.
    same = torch.zeros(1, 4, 1, 5).index_fill(1, torch.tensor([0]), 1.0)
    loss = descriptor_infonce_loss(same, same, translation(0, 0))
    assert loss.item() == pytest.approx((2 * math.log(4) + 3 * math.log(3)) / 5, abs=1e-6)
    shifted = descriptor_infonce_loss(same, same, translation(8, 0), exclusion=0)
    assert shifted.item() == pytest.approx(math.log(4), abs=1e-6)
    valid1 = torch.tensor([[[True, True, False, True, True]]])
    masked = descriptor_infonce_loss(same, same, translation(8, 0), valid1=valid1, exclusion=0)
    assert masked.item() == pytest.approx(math.log(3), abs=1e-6)


def test_infonce_everywhere_counts_what_only_one_image_shows():
    # All descriptors equal: the logarithm of the number of candidates, the own place among them.
    same = torch.zeros(1, 4, 1, 5).index_fill(1, torch.tensor([0]), 1.0)
    everywhere = {"everywhere": True, "exclusion": 0.0}
    still = descriptor_infonce_loss(same, same, translation(0, 0), **everywhere)
    assert still.item() == pytest.approx(math.log(5), abs=1e-6)
    shifted = descriptor_infonce_loss(same, same, translation(8, 0), **everywhere)
    assert shifted.item() == pytest.approx(math.log(5), abs=1e-6)  # 4 land, on 5 cells
    # Forward, three land on valid cells, of which there are four; backward, four of them, on five.
    valid1 = torch.tensor([[[True, True, False, True, True]]])
    masked = descriptor_infonce_loss(same, same, translation(8, 0), None, valid1, **everywhere)
    assert masked.item() == pytest.approx((math.log(4) + math.log(5)) / 2, abs=1e-6)
    near = descriptor_infonce_loss(same, same, translation(0, 0), everywhere=True)
    assert near.item() == pytest.approx((2 * math.log(4) + 3 * math.log(3)) / 5, abs=1e-6)


@pytest.mark.parametrize(("aside", "exclusion"), [(0.0, 8.0), (3.5, 8.0), (3.5, 4.0)])
def test_infonce_everywhere_is_the_definition(aside, exclusion):
    d0, d1, H, valid0, valid1 = random_pair()
    rows, columns = d0.shape[2:]
    centers = cell_centers(rows, columns, dtype=H.dtype)
    generator = torch.Generator().manual_seed(4)
    asides = torch.rand(2, len(H), *centers.shape, generator=generator, dtype=H.dtype)
    places0, places1 = centers + aside * (2 * asides - 1)
    directions = []
    for source, target, G, valid, other, places, candidates in (
        (d0, d1, H, valid0, valid1, places0, places1),
        (d1, d0, torch.linalg.inv(H), valid1, valid0, places1, places0),
    ):
        means = []
        anchors, choices = _sample(source, places), _sample(target, candidates)
        for b in range(len(source)):
            losses = []
            for i, place in enumerate(warp_points(places[b], G[b])):
                x, y = place.tolist()
                row, column = math.floor((y + 0.5) / 8), math.floor((x + 0.5) / 8)
                on = 0 <= x <= 8 * columns - 1 and 0 <= y <= 8 * rows - 1
                if not (valid[b].flatten()[i] and on and other[b, row, column]):
                    continue
                anchor = anchors[b, :, i]
                own = anchor @ _sample(target[b : b + 1], place.view(1, 1, 2))[0, :, 0]
                far = (candidates[b] - place).norm(dim=1) > exclusion
                others = anchor @ choices[b, :, far & other[b].flatten()]
                losses.append(torch.cat((own[None], others)).div(0.05).log_softmax(0)[0].neg())
            means.append(torch.stack(losses).mean())
        directions.append(torch.stack(means).mean())
    ours = descriptor_infonce_loss(
        d0,
        d1,
        H,
        valid0,
        valid1,
        exclusion=exclusion,
        everywhere=True,
        places=(places0, places1) if aside else None,
    )
    assert ours.item() == pytest.approx((directions[0] + directions[1]).item() / 2, rel=1e-6)


def test_infonce_finds_given_places():
    d0, d1, H, valid0, valid1 = random_pair()
    centers = cell_centers(*d0.shape[2:], dtype=H.dtype).expand(len(H), -1, -1)
    at_centers = descriptor_infonce_loss(d0, d1, H, valid0, valid1, places=(centers, centers))
    plain = descriptor_infonce_loss(d0, d1, H, valid0, valid1)
    assert at_centers.item() == pytest.approx(plain.item(), rel=1e-6)
    # Moved by some pixels along with what is asked for, an image is at home between its cells.
    aside = centers + torch.tensor([3.0, 0.0], dtype=H.dtype)
    between = _sample(d0, aside).unflatten(2, d0.shape[2:])
    shift = translation(-3, 0, len(H)).to(H.dtype)
    interior = torch.zeros_like(valid0)
    interior[:, :, 1:-1] = True
    moved = descriptor_infonce_loss(
        d0, between, shift, interior, interior, exclusion=0, places=(aside, centers)
    )
    still = descriptor_infonce_loss(
        between, between, torch.eye(3, dtype=H.dtype).expand_as(H), interior, interior, exclusion=0
    )
    assert moved.item() == pytest.approx(still.item(), rel=1e-6)


def test_the_place_of_a_cell_is_its_keypoint_or_its_centre():
    keypoints = np.array([[3.25, 5.0], [17.0, 9.75]])
    labels = keypoints_to_labels(keypoints, 16, 24, rng())
    offsets = label_offsets(labels, keypoints)
    places = keypoint_places(torch.from_numpy(labels)[None], torch.from_numpy(offsets)[None])
    expected = cell_centers(2, 3)
    expected[0], expected[5] = torch.tensor([3.25, 5.0]), torch.tensor([17.0, 9.75])
    torch.testing.assert_close(places, expected[None])


def test_infonce_falls_to_zero_for_perfect_descriptors_between_cells():
    # A smooth field of unit vectors, and its copy moved by half a cell.
    x = torch.arange(12) * 8 + 3.5

    def bump(centers):
        return torch.exp(-(((x[:, None] - centers) / 6) ** 2))

    d0 = F.normalize(bump(x).view(1, 12, 1, 12), dim=1)
    d1 = F.normalize(bump(x - 4.0).view(1, 12, 1, 12), dim=1)
    right = descriptor_infonce_loss(d0, d1, translation(4, 0), exclusion=12)
    wrong = descriptor_infonce_loss(d0, d1, translation(-20, 0), exclusion=12)
    assert right < 0.01 < 1 < wrong


def test_infonce_is_the_same_with_the_images_exchanged():
    d0, d1, H, valid0, valid1 = random_pair()
    forward = descriptor_infonce_loss(d0, d1, H, valid0, valid1)
    backward = descriptor_infonce_loss(d1, d0, torch.linalg.inv(H), valid1, valid0)
    assert forward.item() == pytest.approx(backward.item(), rel=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        descriptor_infonce_loss,
        lambda *pair: descriptor_sparse_loss(
            *pair, generator=torch.Generator().manual_seed(0), matches=9, negatives=5
        ),
    ],
)
def test_other_descriptor_losses_have_right_gradients(loss):
    d0, d1, H, valid0, valid1 = random_pair()
    arguments = (d0.requires_grad_(), d1.requires_grad_())
    assert loss(d0, d1, H, valid0, valid1) > 0
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, H, valid0, valid1), arguments)


def test_sparse_loss_by_hand():
    # One image row: matches score 0.6, everything else 0.5.
    d0 = torch.eye(6).view(1, 6, 1, 6)
    similarity = torch.full((6, 6), 0.5).fill_diagonal_(0.6)
    lengths = similarity.norm(dim=0)[0]
    d1 = (similarity / lengths).view(1, 6, 1, 6)
    loss = descriptor_sparse_loss(
        d0, d1, translation(0, 0), negatives=200, lambda_d=3.0, negative_margin=0.1
    )
    expected = 3 * (1 - 0.6 / lengths) + (0.5 / lengths - 0.1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_sparse_loss_depends_on_its_generator_alone():
    pair = random_pair(rows=8, columns=8)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return descriptor_sparse_loss(*pair, generator=generator, matches=10, negatives=4).item()

    assert loss(1) == loss(1) != loss(2)


# ---------------------------------------------------------------------------- all of them


DESCRIPTOR_LOSSES = [descriptor_hinge_loss, descriptor_infonce_loss, descriptor_sparse_loss]


@pytest.mark.parametrize("loss", DESCRIPTOR_LOSSES)
def test_an_image_without_valid_cells_counts_as_zero_with_a_clean_gradient(loss):
    d0, d1, H, valid0, valid1 = random_pair()
    d0.requires_grad_()
    nothing = torch.zeros_like(valid0)
    value = loss(d0, d1, H, nothing, valid1)
    (gradient,) = torch.autograd.grad(value, d0)
    assert value == 0
    assert (gradient == 0).all()
    nowhere = loss(d0, d1, translation(1e6, 0, 2).double(), valid0, valid1)
    assert nowhere.isfinite()


@pytest.mark.parametrize("loss", [descriptor_hinge_loss, descriptor_sparse_loss])
def test_losses_are_computed_in_float32_under_autocast(loss):
    d0, d1, H, valid0, valid1 = random_pair(rows=6, columns=8, dim=64, dtype=torch.float32)
    torch.manual_seed(0)
    plain = loss(d0, d1, H, valid0, valid1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        cast = loss(d0, d1, H, valid0, valid1)
        half = loss(d0.bfloat16(), d1.bfloat16(), H, valid0, valid1)
    assert cast.dtype == half.dtype == torch.float32
    assert cast.item() == plain.item()


def test_under_autocast_only_the_product_of_infonce_is_in_bfloat16():
    d0, d1, H, valid0, valid1 = random_pair(rows=6, columns=8, dim=64, dtype=torch.float32)
    d0, d1 = d0.requires_grad_(), d1.requires_grad_()

    def loss_and_gradient(first, second):
        value = descriptor_infonce_loss(first, second, H, valid0, valid1)
        gradients = torch.autograd.grad(value, (d0, d1))
        return value, torch.cat([gradient.flatten() for gradient in gradients])

    plain, gradient = loss_and_gradient(d0, d1)
    with torch.autocast("cpu", torch.bfloat16):
        for cast, coarse in (
            loss_and_gradient(d0, d1),
            loss_and_gradient(d0.bfloat16(), d1.bfloat16()),
        ):
            assert cast.dtype == torch.float32
            assert 0 < abs(cast.item() - plain.item()) < 0.005 * plain.item()
            assert F.cosine_similarity(gradient, coarse, dim=0) > 0.999


@pytest.mark.parametrize("loss", DESCRIPTOR_LOSSES)
def test_descriptor_losses_name_shapes_that_do_not_fit(loss):
    maps = torch.zeros(2, 8, 3, 4)
    with pytest.raises(ValueError, match=r"\(2, 8, 3, 4\) and \(2, 8, 4, 3\)"):
        loss(maps, maps.transpose(2, 3), translation(0, 0, 2))
    with pytest.raises(ValueError, match=r"\(1, 3, 3\)"):
        loss(maps, maps, translation(0, 0))


def test_infonce_refuses_a_temperature_of_zero():
    maps = torch.zeros(1, 8, 3, 4)
    with pytest.raises(ValueError, match="temperature is 0"):
        descriptor_infonce_loss(maps, maps, translation(0, 0), temperature=0)


def test_any_threshold_and_no_reach_below_one():
    logits = torch.zeros(1, 65, 2, 2)
    labels = torch.full((1, 2, 2), 64)
    labels[0, 0, 0] = 9
    offsets = torch.full((1, 2, 2, 2), 0.3)
    # Of flat logits the highest pixel is not above 1/65, but above 0.
    assert position_loss(logits, labels, offsets, threshold=1 / 65) == 0
    assert position_loss(logits, labels, offsets, threshold=0) > 0
    H = torch.eye(3)[None]
    assert agreement_loss(logits, logits, labels, H, threshold=0) == 0
    with pytest.raises(ValueError, match="reach must be 1"):
        repeatability_loss(logits, logits, H, reach=0)


def test_both_ways_to_sum_rows_agree():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(20, (30, 4), generator=generator)
    weights = torch.rand(30, 4, generator=generator)
    rows_of_table = torch.rand(20, 8, generator=generator)
    answers = []
    for sums in (_bagged_rows, _gathered_rows):
        table = rows_of_table.clone().requires_grad_()
        rows = sums(table, index, weights)
        (rows**2).sum().backward()
        answers.append((rows.detach(), table.grad))
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[0][0][0], weights[0] @ rows_of_table[index[0]])


def test_sparse_loss_draws_usable_cells():
    eye, valid0 = torch.eye(12).view(1, 12, 1, 12), torch.zeros(1, 1, 12, dtype=torch.bool)
    valid0[0, 0, :2] = True
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        loss = descriptor_sparse_loss(
            eye, -eye, torch.eye(3)[None], valid0, None, generator, matches=2, negatives=1
        )
        assert loss.item() == pytest.approx(2.0)  # both of them: each misses by 1 - (-1)


def test_sparse_loss_counts_no_invalid_and_no_near_negative():
    alike = torch.zeros(1, 4, 1, 6)
    alike[:, 0] = 1.0  # partners cost nothing, each negative would
    H, first = torch.eye(3)[None], torch.tensor([[[True] + 5 * [False]]])
    assert descriptor_sparse_loss(alike, alike, H, None, first, negatives=50).item() == 0
    pair = alike[..., :2].contiguous()  # eight pixels apart
    assert descriptor_sparse_loss(pair, pair, H, negatives=50).item() == 0
    assert descriptor_sparse_loss(alike, alike, H, negatives=50).item() > 0


def test_repeatability_divides_each_direction_by_its_own_valid_cells():
    def sure(*cells):
        logits = torch.full((1, 65, 1, 4), -100.0)
        logits[:, DUSTBIN] = 100.0
        for cell in cells:
            logits[0, 27, 0, cell], logits[0, DUSTBIN, 0, cell] = 100.0, -100.0
        return logits

    valid0 = torch.tensor([[[True, True, True, False]]])
    valid1 = torch.ones_like(valid0)
    loss = repeatability_loss(sure(0, 2), sure(0), torch.eye(3)[None], valid0, valid1)
    # Of picture 0, one is found again and one is not; of picture 1, one is.
    assert loss.item() == pytest.approx(((-0.8 + 0.2) / 3 - 0.8 / 4) / 2)


def test_agreement_loss_needs_a_keypoint_in_view_0_too():
    labels0 = torch.tensor([[[64, 2, 64, 64]]])
    view1 = two_pixels(4, 0).roll(1, 3)
    faint = torch.full_like(view1, -100.0)
    faint[:, 64] = 5.0
    assert agreement_loss(two_pixels(4, 2), view1, labels0, SHIFT).item() > 0
    assert agreement_loss(faint, view1, labels0, SHIFT).item() == 0


@pytest.mark.parametrize("pixels", [((3, 5), (4,)), ((4,), (3, 5))])
def test_agreement_loss_refines_both_views_over_five_pixels(pixels):
    # Pixels 3 and 5 in equal parts lie at 4: two pixels from the highest, the first of them.
    labels0 = torch.tensor([[[64, 2, 64, 64]]])
    view0, view1 = (two_pixels(4, *some) for some in pixels)
    loss = agreement_loss(view0, view1.roll(1, 3), labels0, SHIFT).item()
    assert loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("view1", "expected"), [((7, 1), 2.5), ((0, 2), 0.0)])
def test_agreement_loss_looks_three_pixels_far_in_view_1(view1, expected):
    # View 0's keypoint lands at x = 20; view 1 has one at 23, or at 24, which is too far.
    pixel, cells = view1
    labels0 = torch.tensor([[[64, 4, 64, 64]]])
    other = two_pixels(4, pixel).roll(cells, 3)
    loss = agreement_loss(two_pixels(4, 4), other, labels0, SHIFT).item()
    assert loss == pytest.approx(expected, abs=1e-6)


def test_hinge_presets_and_weights_are_the_published_ones():
    batch = {"relu": True, "normalisation": "batch", "lambda_d": 0.05}
    expected = {
        "default": {},
        "paper": {"positive_distance": 8.0, "normalisation": "all"},
        "rpautrat": batch | {"double_normalisation": True},
        "eric": {"positive_distance": 4.0},
        "zeng": batch | {"double_normalisation": True},
        "zeng-stage1": batch,
    }
    assert {name: HingeConfig(**changes) for name, changes in expected.items()} == HINGE_PRESETS
    default = HingeConfig()
    margins = (default.lambda_d, default.positive_margin, default.negative_margin)
    assert margins == (250, 1, 0.2) and default.positive_distance == 7.5
    weights = {"paper": 1e-4, "rpautrat": 1e4, "zeng": 1e4, "zeng-stage1": 1e4}
    assert {"default": 1.0, "eric": 1.0} | weights == HINGE_LAMBDAS


def test_defaults_of_the_losses_that_choose_their_pairs():
    def numbers(loss):
        given = {p.name: p.default for p in inspect.signature(loss).parameters.values()}
        return {name: value for name, value in given.items() if isinstance(value, float | int)}

    sparse = {"matches": 1000, "negatives": 100, "positive_margin": 1.0, "negative_margin": 0.2}
    assert numbers(descriptor_sparse_loss) == sparse | {"lambda_d": 1.0, "exclusion": 8.0}
    infonce = {"temperature": 0.05, "exclusion": 8.0, "everywhere": False}
    assert numbers(descriptor_infonce_loss) == infonce


@pytest.mark.parametrize(("chance", "counts"), [(0.0151, True), (0.0149, False)])
def test_what_is_no_likelier_than_0_015_has_no_place(chance, counts):
    logits = torch.full((1, 65, 1, 1), -100.0)
    logits[0, DUSTBIN], logits[0, 5] = 0.0, math.log(chance / (1 - chance))
    labels, offsets = torch.full((1, 1, 1), 4), torch.zeros(1, 2, 1, 1)
    assert bool(position_loss(logits, labels, offsets) > 0) is counts
    aside = translation(1, 0)  # lands a pixel beside what view 1 has
    assert bool(agreement_loss(logits, logits, labels, aside) > 0) is counts


def test_of_keypoints_on_one_pixel_the_last_gives_the_offset():
    keypoints = np.array([[3.2, 1.0], [2.9, 1.25]])
    labels = keypoints_to_labels(keypoints, 8, 8, rng())
    np.testing.assert_allclose(label_offsets(labels, keypoints)[:, 0, 0], [-0.1, 0.25], atol=1e-6)


def test_repeatability_is_interpolated_between_the_pixels_of_an_oblong_picture():
    def sure(x, y):
        logits = torch.full((1, 65, 2, 3), -100.0)
        logits[:, DUSTBIN] = 100.0
        cell = y // 8, x // 8
        logits[0, 8 * (y % 8) + x % 8, *cell], logits[0, DUSTBIN, *cell] = 100.0, -100.0
        return logits

    # It lands a pixel above and one and a half beside the other: three quarters are found again.
    loss = repeatability_loss(sure(12, 10), sure(14, 12), translation(0.5, 1), cost=0.2)
    assert loss.item() == pytest.approx((0.2 - 0.75) / 6, abs=1e-6)
