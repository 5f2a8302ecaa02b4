import csv
import dataclasses
import json
import math
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from toy_networks import Places

from superpoint_lib.datasets import bundled_photos
from superpoint_lib.evaluation import kept as kept_records
from superpoint_lib.evaluation.classical import (
    DETECTORS,
    EXTRACTORS,
    as_extractor,
    classical_extractor,
)
from superpoint_lib.evaluation.extractors import _suppress
from superpoint_lib.evaluation.hpatches import (
    PROTOCOLS,
    MatchedPair,
    ProtocolConfig,
    Refined,
    Results,
    TaskConfig,
    compare,
    corner_errors,
    evaluate,
    inspect_pair,
    load_sequences,
    plain_extractor,
    random_extractor,
    superpoint_extractor,
)
from superpoint_lib.evaluation.kept import KeptRecords, measuring_code
from superpoint_lib.evaluation.metrics import RansacConfig
from superpoint_lib.evaluation.pairs import View, descriptor_record, detector_record, match_pair
from superpoint_lib.evaluation.results import shortened
from superpoint_lib.extraction import Features, extract, sample_descriptors
from superpoint_lib.geometry import mean_corner_error, turn_and_zoom, warp_points
from superpoint_lib.model import MagicPoint, SuperPoint
from superpoint_lib.multiscale import extract_multiscale

torch.set_num_threads(1)

AS_IS = TaskConfig(resize="none", nms_radius=0)
TOY = ProtocolConfig(detector=AS_IS, descriptor=AS_IS)


def dots(image, task=None):
    """Every lit pixel is a keypoint; its gray level is its score and says which point it is."""
    y, x = np.nonzero(image)
    level = torch.from_numpy(np.rint(image[y, x] * 255).astype(np.int64))
    order = torch.argsort(level, descending=True)
    keypoints = torch.from_numpy(np.stack([x, y], 1).astype(np.float32))
    descriptors = torch.nn.functional.one_hot(level, 256).float()
    return Features(keypoints[order], level[order].float(), descriptors[order], image.shape)


def dot_image(points, levels, size=(60, 80)):
    image = np.zeros(size, np.uint8)
    for (x, y), level in zip(points, levels, strict=True):
        image[y, x] = level
    return image


def write_sequence(root, name, images, homographies, extension="png"):
    folder = root / name
    folder.mkdir(parents=True)
    for number, image in enumerate(images, start=1):
        (folder / f"{number}.{extension}").write_bytes(cv2.imencode(f".{extension}", image)[1])
    for number, H in enumerate(homographies, start=2):
        np.savetxt(folder / f"H_1_{number}", H)


def shift(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


POINTS = np.array([[10, 10], [30, 12], [50, 40], [20, 45], [35, 30]])
LEVELS = [50, 100, 150, 200, 250]


@pytest.fixture
def toy(tmp_path):
    """i_same: identical images. v_shift: shifted by (5, 3), and one point moved 4 px too far."""
    image = dot_image(POINTS, LEVELS)
    write_sequence(tmp_path, "i_same", [image, image], [np.eye(3)])
    moved = POINTS + np.array([5, 3])
    moved[0] += [4, 0]
    write_sequence(tmp_path, "v_shift", [image, dot_image(moved, LEVELS)], [shift(5, 3)])
    return load_sequences(tmp_path)


def only(results, part):
    (record,) = results.select(part=part).records
    return record


# --- sequences ---


def test_load_sequences_reads_any_extension_and_sorts(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    write_sequence(tmp_path, "v_b", [np.dstack([image] * 3)] * 3, [np.eye(3), shift(1, 2)], "ppm")
    write_sequence(tmp_path, "i_a", [image] * 3, [np.eye(3)] * 2, "jpg")
    (tmp_path / "notes").mkdir()
    first, second = load_sequences(tmp_path)
    assert (first.name, first.split) == ("i_a", "illumination")
    assert (second.name, second.split) == ("v_b", "viewpoint")
    assert [path.name for path in second.image_paths] == ["1.ppm", "2.ppm", "3.ppm"]
    assert np.array_equal(second.homographies, [np.eye(3), shift(1, 2)])


def test_load_sequences_follows_links(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    write_sequence(tmp_path / "real", "i_a", [image] * 2, [np.eye(3)])
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert len(load_sequences(tmp_path / "linked")) == 1


def test_missing_data_says_how_to_link_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*ln -s"):
        load_sequences(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no sequences in .*ln -s"):
        load_sequences(tmp_path)


def test_sequences_whose_kind_cannot_be_told_are_named(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    for name in ("i_a", "kitchen"):
        write_sequence(tmp_path, name, [image] * 2, [np.eye(3)])
    with pytest.raises(ValueError, match=r"kitchen: call a sequence i_\*"):
        load_sequences(tmp_path)


def test_missing_files_are_named(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    write_sequence(tmp_path, "i_a", [image] * 3, [np.eye(3)] * 2)
    write_sequence(tmp_path, "v_b", [image] * 3, [np.eye(3)] * 2)
    (tmp_path / "i_a" / "2.png").unlink()
    (tmp_path / "v_b" / "H_1_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 files.*i_a/2\.\*, v_b/H_1_3"):
        load_sequences(tmp_path)


@pytest.mark.parametrize("text", ["1 0\n0 1\n", "one two three", "0 0 0\n0 0 0\n0 0 0\n"])
def test_a_broken_homography_is_named(tmp_path, text):
    image = np.zeros((8, 8), np.uint8)
    write_sequence(tmp_path, "i_a", [image] * 2, [np.eye(3)])
    (tmp_path / "i_a" / "H_1_2").write_text(text)
    with pytest.raises(ValueError, match="H_1_2"):
        load_sequences(tmp_path)


# --- numbers by hand ---


@pytest.mark.parametrize("reference", ["ground_truth", "ransac"])
def test_identical_images_score_one_everywhere(toy, reference):
    protocol = dataclasses.replace(TOY, reference=reference)
    record = only(evaluate({"dots": dots}, toy, protocol, progress=False), "i_same")
    assert (record["turn"], record["zoom"], record["localization_error"]) == (0, 1, 0)
    assert record["corner_error"] == pytest.approx(0, abs=1e-4)
    # RANSAC leaves rounding errors of 1e-7 pixels in the area under the curve.
    assert all(
        record[name] == pytest.approx(1, abs=1e-4)
        for name in protocol.metrics
        if name != "localization_error"
    )


def test_one_outlier_gives_the_expected_numbers(toy):
    record = only(evaluate({"dots": dots}, toy, TOY, progress=False), "v_shift")
    # The stray point, the weakest of five, is 4 px from its place and far from the others.
    assert record["repeatability"] == pytest.approx(8 / 10)
    assert record["localization_error"] == 0
    assert record["n_matches"] == 5
    assert record["correct_matches@3"] == pytest.approx(4 / 5)
    assert record["matching_score"] == pytest.approx(4 / 5)
    # All similarities are 1, so that precision is 4/5 at every recall.
    assert record["average_precision"] == pytest.approx(4 / 5)


def test_the_reference_of_matching_score_is_a_switch(toy):
    loose = dataclasses.replace(
        TOY, reference="ransac", ransac=dataclasses.replace(TOY.ransac, threshold=20)
    )
    record = only(evaluate({"dots": dots}, toy, loose, progress=False), "v_shift")
    assert record["n_inliers"] == 5
    assert record["matching_score"] == 1.0
    assert record["correct_matches@3"] == pytest.approx(4 / 5)


def test_points_the_other_image_cannot_see_do_not_count(tmp_path):
    # Image 1 shows image 0 from x = 40 on: of six points three are visible in both.
    points = np.array([[5, 5], [10, 50], [20, 20], [50, 10], [60, 50], [70, 30]])
    levels = [250, 240, 230, 50, 60, 70]
    image = dot_image(points, levels)
    other = dot_image(points[3:] - [40, 0], levels[3:])
    write_sequence(tmp_path, "v_crop", [image, other], [shift(-40, 0)])
    task = dataclasses.replace(AS_IS, max_keypoints=3)
    shared = ProtocolConfig(detector=task, descriptor=task)
    best_of_all = dataclasses.replace(task, shared_first=False)
    everything = ProtocolConfig(detector=best_of_all, descriptor=best_of_all)
    sequences = load_sequences(tmp_path)
    record = only(evaluate({"dots": dots}, sequences, shared, progress=False), "v_crop")
    assert (record["n_keypoints0"], record["repeatability"]) == (3, 1.0)
    # The best three of image 0 are the ones that image 1 cannot see.
    record = only(evaluate({"dots": dots}, sequences, everything, progress=False), "v_crop")
    assert (record["n_keypoints0"], record["n_visible0"], record["repeatability"]) == (3, 0, 0.0)


def test_blank_images_fail_and_do_not_raise(tmp_path):
    blank = np.full((240, 320), 128, np.uint8)
    write_sequence(tmp_path, "i_blank", [blank, blank], [np.eye(3)])
    extractors = {name: plain_extractor(function) for name, function in EXTRACTORS.items()}
    extractors |= {n: plain_extractor(as_extractor(function)) for n, function in DETECTORS.items()}
    results = evaluate(extractors, load_sequences(tmp_path), "rpautrat", progress=False)
    for record in results.select("sift").records:
        assert record["corner_error"] == math.inf
        assert record["homography@5"] == record["auc@5"] == record["correct_matches@3"] == 0
        assert record["matching_score"] == record["average_precision"] == 0
        assert record["repeatability"] == 0
    assert np.isnan(results.select("harris").values("homography@3")).all()
    assert "| harris | 0.000 | – |" in results.table()
    assert "harris" not in results.table(columns=["homography@3"])


def test_fewer_than_four_matches_fail(tmp_path):
    image = dot_image(POINTS[:3], LEVELS[:3])
    write_sequence(tmp_path, "i_few", [image, image], [np.eye(3)])
    record = only(evaluate({"dots": dots}, load_sequences(tmp_path), TOY, progress=False), "i_few")
    assert record["n_matches"] == 3
    assert record["correct_matches@3"] == 1.0
    assert (record["homography@5"], record["corner_error"]) == (0.0, math.inf)


# --- real pictures ---


@pytest.fixture(scope="module")
def warped_photo(tmp_path_factory):
    """A photograph, and its warp stored at another size: only exact resizing finds it again."""
    folder = tmp_path_factory.mktemp("warped")
    photo = np.rint(bundled_photos("benchmark")["motorcycle_left"] * 255).astype(np.uint8)
    H = np.array([[0.9, 0.12, 30], [-0.1, 0.85, 60], [1e-4, -5e-5, 1]])
    enlarge = np.array([[1.4, 0, 0.2], [0, 1.4, 0.2], [0, 0, 1]])
    size = (round(photo.shape[1] * 1.4), round(photo.shape[0] * 1.4))
    bigger = cv2.warpPerspective(photo, enlarge @ H, size)
    write_sequence(folder, "v_photo", [photo, bigger], [enlarge @ H])
    return load_sequences(folder)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_known_homography_is_recovered_under_every_protocol(warped_photo, protocol):
    extractor = plain_extractor(EXTRACTORS["sift"])
    record = only(evaluate({"sift": extractor}, warped_photo, protocol, progress=False), "v_photo")
    assert record["corner_error"] < 0.6
    assert record["homography@1"] == 1.0
    assert record["auc@1"] == pytest.approx(1 - record["corner_error"])
    assert record["correct_matches@3"] > 0.7
    assert record["repeatability"] > 0.5


def test_inspect_pair_redoes_what_evaluate_measured(warped_photo):
    extractor = plain_extractor(EXTRACTORS["sift"])
    record = only(evaluate({"sift": extractor}, warped_photo, progress=False), "v_photo")
    pair = inspect_pair(extractor, warped_photo[0], 2)
    assert pair.image0.shape == pair.image1.shape == (480, 640)
    assert shortened(pair.corner_error) == record["corner_error"]
    assert len(pair.matches) == record["n_matches"]
    assert shortened(float((pair.errors <= 3).mean())) == record["correct_matches@3"]
    with pytest.raises(ValueError, match="v_photo has pairs 2 to 2, not 3"):
        inspect_pair(extractor, warped_photo[0], 3)
    with pytest.raises(ValueError, match="no descriptors"):
        inspect_pair(random_extractor(), warped_photo[0], 2)


def test_random_keypoints_are_the_floor(warped_photo):
    extractors = {
        "random": random_extractor(),
        "harris": plain_extractor(as_extractor(DETECTORS["harris"])),
    }
    results = evaluate(extractors, warped_photo, progress=False)
    random, harris = (results.select(name).values("repeatability")[0] for name in extractors)
    assert random < 0.3 < harris


def test_refined_matches_are_measured_where_they_lie_then(warped_photo):
    sift = plain_extractor(EXTRACTORS["sift"])
    extractors = {"sift": sift, "refined": Refined(sift)}
    results = evaluate(extractors, warped_photo, progress=False)
    plain, refined = (only(results.select(name), "v_photo") for name in extractors)
    assert refined["corner_error"] < plain["corner_error"] / 2
    assert refined["correct_matches@1"] > plain["correct_matches@1"] + 0.03
    assert 0.5 * plain["n_matches"] < refined["n_matches"] < plain["n_matches"]
    same = ("repeatability", "localization_error", "n_keypoints0", "n_keypoints1")
    assert [refined[key] for key in same] == [plain[key] for key in same]
    pair = inspect_pair(extractors["refined"], warped_photo[0], 2)
    assert len(pair.matches) == len(pair.errors) == len(pair.similarity) == refined["n_matches"]
    assert shortened(pair.corner_error) == refined["corner_error"]
    ends = pair.keypoints0[pair.matches[:, 0]], pair.keypoints1[pair.matches[:, 1]]
    off = np.linalg.norm(warp_points(ends[0], pair.H_0to1) - ends[1], axis=1)
    assert np.allclose(off, pair.errors)


def test_without_a_homography_no_match_is_confirmed(tmp_path):
    image = dot_image(POINTS[:3], LEVELS[:3])
    write_sequence(tmp_path, "i_few", [image, image], [np.eye(3)])
    sequences = load_sequences(tmp_path)
    extractors = {"dots": dots, "refined": Refined(dots)}
    results = evaluate(extractors, sequences, TOY, progress=False)
    plain, refined = (only(results.select(name), "i_few") for name in extractors)
    assert (plain["n_matches"], refined["n_matches"]) == (3, 0)
    assert refined["corner_error"] == math.inf
    assert refined["repeatability"] == plain["repeatability"]


# --- extractors ---


def test_each_image_is_extracted_once_per_size(tmp_path):
    image = dot_image(POINTS, LEVELS, (240, 320))
    write_sequence(tmp_path, "i_a", [image] * 4, [np.eye(3)] * 3)
    sizes = []

    def counting(image, task):
        sizes.append(image.shape)
        return dots(image)

    sequences = load_sequences(tmp_path)
    evaluate({"dots": counting}, sequences, "eric", progress=False)
    assert sizes == [(240, 320)] * 4
    sizes.clear()
    evaluate({"dots": counting}, sequences, "rpautrat", progress=False)
    assert sorted(sizes) == [(240, 320)] * 4 + [(480, 640)] * 4


def test_an_extractor_and_its_refined_self_look_once(tmp_path):
    write_sequence(tmp_path, "i_a", [dot_image(POINTS, LEVELS)] * 3, [np.eye(3)] * 2)
    watched = Watched()
    extractors = {"dots": watched, "refined": Refined(watched), "others": Watched()}
    results = evaluate(extractors, load_sequences(tmp_path), TOY, progress=False)
    assert (watched.looks, extractors["others"].looks) == (3, 3)
    assert len(results.records) == 6


def test_suppression_keeps_the_best_and_never_rounds():
    keypoints = torch.tensor([[10.4, 10.4], [12.3, 10.0], [30.2, 9.7], [30.3, 9.6]])
    features = Features(keypoints, torch.tensor([0.2, 0.9, 0.5, 0.4]), None, (40, 60))
    image = np.zeros((40, 60), np.float32)
    task = dataclasses.replace(AS_IS, nms_radius=4)
    suppressed = plain_extractor(lambda _: features, suppress=True)(image, task)
    assert torch.equal(suppressed.keypoints, keypoints[[1, 2]])
    boxes = plain_extractor(lambda _: features, suppress=True)(
        image, dataclasses.replace(task, nms="box")
    )
    assert torch.equal(boxes.keypoints, keypoints[[1, 2]])
    untouched = plain_extractor(lambda _: features)(image, task)
    assert torch.equal(untouched.keypoints, keypoints[[1, 2, 3, 0]])
    best = plain_extractor(lambda _: features)(
        image, dataclasses.replace(task, extract_keypoints=1)
    )
    assert torch.equal(best.keypoints, keypoints[[1]])


def test_random_extractor_depends_on_seed_and_image():
    task = TaskConfig(extract_keypoints=50)
    image = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    first = random_extractor()(image, task).keypoints
    assert torch.equal(first, random_extractor()(image, task).keypoints)
    assert not torch.equal(first, random_extractor(seed=1)(image, task).keypoints)
    assert not torch.equal(first, random_extractor()(1 - image, task).keypoints)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SuperPoint().eval()


@pytest.fixture(scope="module")
def small_photo():
    photo = bundled_photos("benchmark")["motorcycle_left"]
    return np.ascontiguousarray(photo[100:220, 200:360])


def test_superpoint_extractor_takes_its_knobs_from_the_protocol(model, small_photo):
    task = TaskConfig(threshold=0.0, nms_radius=6, extract_keypoints=40)
    features = superpoint_extractor(model)(small_photo, task)
    expected = extract(
        model, small_photo, max_keypoints=40, threshold=0.0, nms_radius=6, precision="float32"
    )
    assert torch.equal(features.keypoints, expected.keypoints)
    assert torch.equal(features.descriptors, expected.descriptors)


@pytest.mark.parametrize("nms", ["radius", "box"])
def test_a_network_finds_nothing_within_the_border_and_its_best_elsewhere(model, small_photo, nms):
    task = TaskConfig(threshold=0.0, nms=nms, extract_keypoints=10**6)
    extractor = superpoint_extractor(model, subpixel=False)
    everything = extractor(small_photo, task)
    height, width = small_photo.shape
    x, y = everything.keypoints.T
    inside = (x >= 4) & (x < width - 4) & (y >= 4) & (y < height - 4)
    assert 0 < inside.sum() < len(everything)
    count = int(inside.sum()) - 2
    without = dataclasses.replace(task, border=4, extract_keypoints=count)
    found = extractor(small_photo, without).keypoints
    assert torch.equal(found, everything.keypoints[inside][:count])
    assert not inside[:count].all()  # so that the best were taken afterwards
    corners = classical_extractor("harris")
    theirs = corners(small_photo, dataclasses.replace(without, extract_keypoints=10**6)).keypoints
    assert torch.equal(theirs, corners(small_photo, task).keypoints)


def test_superpoint_extractor_looks_at_several_scales(model, small_photo):
    task = TaskConfig(threshold=0.002, nms_radius=3, extract_keypoints=7)
    features = superpoint_extractor(model, scales=(1.0, 1.5))(small_photo, task)
    expected = extract_multiscale(
        model, small_photo, (1.0, 1.5), 7, 0.002, nms_radius=3, precision="float32"
    )
    assert len(features) == 7 and torch.equal(features.keypoints, expected.keypoints)
    turned = superpoint_extractor(model, turned=True)(small_photo, task)
    expected = extract_multiscale(
        model, small_photo, (1.0,), 7, 0.002, nms_radius=3, precision="float32", turned=True
    )
    assert torch.equal(turned.keypoints, expected.keypoints)
    levels = superpoint_extractor(model, pyramid=(0.5,))(small_photo, task)
    expected = extract_multiscale(
        model, small_photo, (1.0,), 7, 0.002, nms_radius=3, precision="float32", pyramid=(0.5,)
    )
    assert torch.equal(levels.keypoints, expected.keypoints)
    for looks in ({"scales": (1.0, 1.5)}, {"turned": True}, {"pyramid": (0.5,)}):
        with pytest.raises(ValueError, match="boxes"):
            superpoint_extractor(model, **looks)(small_photo, TaskConfig(nms="box"))


def test_superpoint_extractor_suppresses_by_boxes(model, small_photo):
    task = TaskConfig(threshold=0.0, nms="box", nms_radius=8, extract_keypoints=500)
    features = superpoint_extractor(model, subpixel=False)(small_photo, task)
    x, y = features.keypoints.T
    overlap = (8 - (x[:, None] - x).abs()).clamp(0) * (8 - (y[:, None] - y).abs()).clamp(0)
    overlap.fill_diagonal_(0)
    assert len(features) > 50
    assert (overlap / (128 - overlap)).max() <= 0.1
    assert torch.all(features.keypoint_scores.diff() <= 0)
    refined = superpoint_extractor(model)(small_photo, task)
    assert len(refined) == len(features)
    assert (refined.keypoints - features.keypoints).abs().max() <= 2.5
    assert not torch.equal(refined.keypoints, features.keypoints)
    assert torch.allclose(refined.descriptors.norm(dim=1), torch.ones(len(refined)), atol=1e-4)


def test_boxes_refine_keypoints_without_the_padding(model, small_photo):
    picture = np.ascontiguousarray(small_photo[:-3, :-5])
    task = TaskConfig(threshold=0.0, nms="box", nms_radius=8, extract_keypoints=500)
    found = superpoint_extractor(model)(picture, task).keypoints
    every_pixel = extract(
        model, picture, None, threshold=0.0, nms_radius=0, precision="float32"
    ).keypoints
    assert picture.shape[0] % 8 and picture.shape[1] % 8
    assert (found[:, None] - every_pixel).norm(dim=2).min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize("nms", ["radius", "box"])
def test_figures_are_of_float32_unless_asked_otherwise(model, small_photo, nms):
    task = TaskConfig(threshold=0.0, nms=nms, extract_keypoints=20)
    exact, rounded = (
        superpoint_extractor(model, **options)(small_photo, task)
        for options in ({}, {"precision": "bf16"})
    )
    assert (exact.computed_in, rounded.computed_in) == ("float32", "bfloat16")
    assert not torch.equal(exact.keypoint_scores, rounded.keypoint_scores)


def test_magicpoint_is_measured_as_a_detector(small_photo):
    features = superpoint_extractor(MagicPoint().eval())(small_photo, TaskConfig(threshold=0.0))
    assert features.descriptors is None
    boxes = superpoint_extractor(MagicPoint().eval())(
        small_photo, TaskConfig(threshold=0.0, nms="box")
    )
    assert boxes.descriptors is None


# --- evaluate ---


def test_wrong_arguments(toy):
    with pytest.raises(ValueError, match=r"unknown protocol 'paper'.*rpautrat"):
        evaluate({"dots": dots}, toy, "paper", progress=False)
    with pytest.raises(ValueError, match="at least one extractor"):
        evaluate({}, toy, TOY, progress=False)
    with pytest.raises(ValueError, match="at least one extractor and one sequence"):
        evaluate(
            {"dots": dots},
            toy,
            dataclasses.replace(TOY, excluded=("i_same", "v_shift")),
            progress=False,
        )
    with pytest.raises(ValueError, match=r"\(60, 80\).*\(8, 8\)"):
        evaluate({"wrong": lambda image, task: dots(np.zeros((8, 8)))}, toy, TOY, progress=False)


@pytest.mark.parametrize("suppress", [False, True])
@pytest.mark.parametrize("part", ["keypoint_scores", "descriptors"])
def test_scores_and_descriptors_of_other_keypoints_are_refused(toy, part, suppress):
    def wrong(image):
        found = dots(image)
        return dataclasses.replace(found, **{part: getattr(found, part)[1:]})

    extractors = {"wrong": plain_extractor(wrong, suppress)}
    with pytest.raises(ValueError, match="one score, and one descriptor or None, for each"):
        evaluate(extractors, toy, TOY, progress=False)


def test_an_extractor_may_return_numpy_arrays(toy):
    tensors = evaluate({"dots": plain_extractor(dots)}, toy, TOY, progress=False)
    arrays = plain_extractor(lambda image: dots(image).numpy())
    assert evaluate({"dots": arrays}, toy, TOY, progress=False).records == tensors.records


def test_a_metric_that_was_not_measured_is_named(toy):
    results = evaluate({"dots": dots}, toy, TOY, progress=False)
    with pytest.raises(KeyError, match="no metric 'homography@2' here"):
        results.values("homography@2")


def test_excluded_sequences_are_left_out(toy):
    protocol = dataclasses.replace(TOY, excluded=("v_shift", "v_elsewhere"))
    results = evaluate({"dots": dots}, toy, protocol, progress=False)
    assert results.sequences == ("i_same",)
    assert results.splits == ("all", "illumination")


def test_an_unreadable_image_costs_its_sequence_only(toy):
    toy[0].image_paths[1].write_bytes(b"no picture")
    results = evaluate({"dots": dots}, toy, TOY, progress=False)
    assert results.sequences == ("v_shift",)
    assert "2.png" in results.skipped["i_same"]
    assert "left out: i_same" in results.table()


# --- results ---


def made_up(values, name="a", metric="repeatability"):
    """Results with one metric: values (sequences, pairs)."""
    records = tuple(
        {
            "extractor": name,
            "sequence": f"v_{s}",
            "split": "viewpoint",
            "pair": k,
            metric: float(value),
        }
        for s, row in enumerate(values)
        for k, value in enumerate(row, start=2)
    )
    return Results("custom", TOY, records)


def test_results_survive_a_file(toy, tmp_path):
    results = evaluate({"dots": dots, "random": random_extractor()}, toy, TOY, progress=False)
    failed = {**results.records[0], "corner_error": math.inf, "localization_error": math.nan}
    results = dataclasses.replace(results, records=(failed, *results.records[1:]))
    json_path, csv_path = results.save(tmp_path / "out" / "toy.v1", "superpoint evaluate")
    assert (json_path.name, csv_path.name) == ("toy.v1.json", "toy.v1.csv")
    assert json.loads(json_path.read_text())["command"] == "superpoint evaluate"
    loaded = Results.load(json_path)
    assert loaded.protocol == TOY
    assert loaded.table(intervals=True) == results.table(intervals=True)
    assert loaded.records[0]["corner_error"] == math.inf
    assert math.isnan(loaded.records[0]["localization_error"])
    assert loaded.records[1:] == results.records[1:]
    # The same numbers in memory and on disk, so that no table differs by a rounding.
    numbers = [v for r in loaded.records[1:] for v in r.values() if isinstance(v, float)]
    assert all(number == float(f"{number:.8g}") for number in numbers)
    command, *rows = csv_path.read_text().splitlines()
    assert command == "# superpoint evaluate"
    table = list(csv.DictReader(rows))
    assert len(table) == 4
    assert table[1]["sequence"] == "v_shift"
    assert float(table[1]["repeatability"]) == pytest.approx(0.8)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "other.json"
    for text in ("{}", "no json", "[]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json"):
            Results.load(path)


def test_names_of_any_kind_survive_a_file(toy, tmp_path):
    results = evaluate({"dots": dots}, toy, TOY, progress=False)
    odd = ["a\nb", "c\u2028d", "e\x85f", "no text: \udcff", 'i "j", k']
    records = tuple({**results.records[0], "sequence": name} for name in odd)
    results = dataclasses.replace(results, records=records)
    json_path, csv_path = results.save(tmp_path / "toy", "superpoint evaluate --data 'l\nm\udcff'")
    loaded = Results.load(json_path)
    assert [record["sequence"] for record in loaded.records] == odd
    assert loaded.table() == results.table()
    assert csv_path.read_bytes().startswith(b"# superpoint evaluate --data 'l m\xff'\n")


def test_results_without_records_survive_a_file(tmp_path):
    empty = Results("custom", TOY, (), {"i_a": "unreadable"})
    assert Results.load(empty.save(tmp_path / "none", "superpoint evaluate")[0]) == empty


def test_a_table_that_is_missing_or_of_something_else_is_named(tmp_path):
    path, table = made_up([[0.5]]).save(tmp_path / "toy", "superpoint evaluate")
    table.write_text("# superpoint evaluate\nname,value\na,1\n")
    with pytest.raises(ValueError, match=r"toy\.csv"):
        Results.load(path)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"toy\.csv"):
        Results.load(path)


def test_summary_by_part_and_sequence():
    results = made_up([[0.0, 0.5], [1.0, 0.5]])
    rows = results.summary()
    assert [(row["part"], row["value"], row["pairs"]) for row in rows] == [
        ("all", 0.5, 4),
        ("viewpoint", 0.5, 4),
    ]
    by_sequence = results.summary(results.sequences)
    assert [row["value"] for row in by_sequence] == [0.25, 0.75]
    # Two sequences: a bootstrap sample holds either one twice, or both.
    assert (rows[0]["low"], rows[0]["high"]) == (0.25, 0.75)
    unclustered = results.summary(clustered=False)[0]
    assert unclustered["low"] < 0.25 or unclustered["high"] > 0.75


def test_select_refuses_unknown_names():
    results = made_up([[0.5]])
    with pytest.raises(KeyError, match="no extractor 'b'"):
        results.select("b")
    with pytest.raises(KeyError, match="no part 'v_9'"):
        results.select(part="v_9")


def test_worst_pairs_and_curve():
    results = made_up([[0.5, math.inf], [4.0, 2.0]], metric="corner_error")
    worst = results.worst_pairs("a", 2)
    assert [(r["sequence"], r["pair"]) for r in worst] == [("v_0", 3), ("v_1", 2)]
    assert results.curve("a", [1, 3, 5]).tolist() == [0.25, 0.5, 0.75]
    detector_alone = made_up([[math.nan, math.nan]], metric="corner_error")
    assert np.isnan(detector_alone.curve("a", [1, 3])).all()


def test_compare_pairs_cancels_their_difficulty():
    difficulty = np.random.default_rng(0).random((10, 5))
    a, b = made_up(difficulty), made_up(difficulty + 0.01, "b")
    (row,) = compare(a, b)
    assert row["difference"] == pytest.approx(0.01)
    assert row["low"] == pytest.approx(0.01)
    assert row["b"] - row["a"] == pytest.approx(0.01)
    assert row["pairs"] == 50
    alone = a.summary(["all"])[0]
    assert alone["high"] - alone["low"] > 0.05
    (same,) = compare(a, a)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)


def test_differences_are_those_of_every_other_extractor(tmp_path):
    a, b = made_up([[0.5, 0.25], [0.75, 1.0]]), made_up([[0.75, 0.5], [1.0, 1.25]], "b")
    both = dataclasses.replace(a, records=a.records + b.records)
    rows = both.differences("a")
    assert [(row["extractor"], row["part"]) for row in rows] == [("b", "all"), ("b", "viewpoint")]
    assert all(row["difference"] == row["low"] == row["high"] == 0.25 for row in rows)
    json_path, _ = both.save(tmp_path / "both", "a command", reference="a")
    assert json.loads(json_path.read_text())["differences"] == rows
    with pytest.raises(KeyError, match="no extractor 'c'"):
        both.differences("c")


def test_compare_refuses_what_cannot_be_compared():
    a, b = made_up([[0.5, 0.5]]), made_up([[0.5]], "b")
    with pytest.raises(ValueError, match=r"different pairs, such as \('v_0', 3\)"):
        compare(a, b)
    with pytest.raises(ValueError, match="different protocols"):
        compare(a, dataclasses.replace(a, protocol=PROTOCOLS["eric"]))
    with pytest.raises(ValueError, match="one extractor each"):
        compare(dataclasses.replace(a, records=a.records + b.records), b)


def test_ransac_in_several_orders_gives_an_error_for_each_and_the_same_every_time():
    rng = np.random.default_rng(0)
    points, image = rng.uniform(0, 100, (40, 2)), np.zeros((100, 100), np.float32)
    moved = points + rng.normal(0, 1, points.shape)
    pairs, ones = np.stack([np.arange(40)] * 2, axis=1), np.ones(40)
    rest = (ones, ones, ones > 0, None, 7.0)
    pair = MatchedPair(image, image, np.eye(3), points, moved, pairs, *rest)
    errors = corner_errors(pair, RansacConfig(orders=5))
    assert len(errors) == 5 and len(set(errors)) > 1
    assert errors == corner_errors(pair, RansacConfig(orders=5))
    assert corner_errors(pair, RansacConfig()) == [7.0]
    nothing = MatchedPair(image, image, np.eye(3), points, moved, pairs[:3], *rest)
    assert corner_errors(nothing, RansacConfig(orders=2)) == [math.inf, math.inf]
    with pytest.raises(ValueError, match="orders must be at least 1"):
        RansacConfig(orders=0)


def test_homographies_in_several_orders_are_means_over_them(warped_photo):
    extractor = plain_extractor(EXTRACTORS["orb"])
    protocol = dataclasses.replace(PROTOCOLS["rpautrat"], ransac=RansacConfig(orders=4))
    record = only(evaluate({"orb": extractor}, warped_photo, protocol, progress=False), "v_photo")
    pair = inspect_pair(extractor, warped_photo[0], 2, protocol)
    errors = np.array(corner_errors(pair, protocol.ransac))
    assert len(set(errors)) > 1
    assert record["homography@1"] == (errors <= 1).mean()
    assert record["auc@5"] == shortened(np.maximum(0, 1 - errors / 5).mean())
    assert record["corner_error"] == shortened(pair.corner_error)


# --- what is kept ---


class Watched:
    """``dots`` that counts its looks, and is stopped at one of them."""

    def __init__(self, stop_at=None):
        self.looks, self.stop_at = 0, stop_at

    def __call__(self, image, task):
        if self.looks == self.stop_at:
            raise KeyboardInterrupt
        self.looks += 1
        return dots(image)


def measured_again(toy, folder, identity=("dots",), name="dots"):
    """Results with what is kept in a folder, and how many looks they took."""
    extractor = Watched()
    kept = {name: KeptRecords(folder, {"extractor": identity})}
    results = evaluate({name: extractor}, toy, TOY, progress=False, kept=kept)
    return results, extractor.looks


def test_a_stopped_evaluation_goes_on_where_it_was(toy, tmp_path):
    plain = evaluate({"dots": dots}, toy, TOY, progress=False)
    kept = {"dots": KeptRecords(tmp_path / "kept", {"extractor": ["dots"]})}
    with pytest.raises(KeyboardInterrupt):
        evaluate({"dots": Watched(stop_at=3)}, toy, TOY, progress=False, kept=kept)
    results, looks = measured_again(toy, tmp_path / "kept")
    assert looks == 2  # the two images of the second sequence
    assert results == plain
    results, looks = measured_again(toy, tmp_path / "kept", name="the same by another name")
    assert looks == 0
    assert results.extractors == ("the same by another name",)
    assert measured_again(toy, tmp_path / "kept", identity=["others"])[1] == 4


def test_other_images_and_homographies_are_measured_anew(toy, tmp_path):
    measured_again(toy, tmp_path / "kept")
    same, shifted = toy
    turned = dataclasses.replace(shifted, homographies=shifted.homographies + 0.01)
    assert measured_again([same, turned], tmp_path / "kept")[1] == 2
    path = same.image_paths[1]
    path.write_bytes(cv2.imencode(".png", dot_image(POINTS[:4], LEVELS[:4]))[1].tobytes())
    results, looks = measured_again(toy, tmp_path / "kept")
    assert looks == 2
    assert only(results, "i_same")["n_visible1"] == 4
    path.write_bytes(b"no picture")
    results, looks = measured_again(toy, tmp_path / "kept")
    assert looks == 0
    assert list(results.skipped) == ["i_same"]
    assert len(results.records) == 1


def test_damaged_lines_are_left_out(toy, tmp_path):
    plain, _ = measured_again(toy, tmp_path / "kept")
    (file,) = (tmp_path / "kept" / measuring_code()).iterdir()
    file.write_text(file.read_text()[:-9])
    results, looks = measured_again(toy, tmp_path / "kept")
    assert (results, looks) == (plain, 2)
    file.write_bytes(b"3\n\xff\xfe\n" + file.read_bytes())
    assert measured_again(toy, tmp_path / "kept") == (plain, 0)


def test_other_code_measures_anew_and_old_records_go(toy, tmp_path, monkeypatch):
    measured_again(toy, tmp_path / "kept")
    mine = tmp_path / "kept" / measuring_code()
    (tmp_path / "kept" / "reports").mkdir()
    monkeypatch.setattr("superpoint_lib.evaluation.kept.measuring_code", lambda: "0123456789abcdef")
    assert measured_again(toy, tmp_path / "kept")[1] == 4
    assert mine.is_dir()  # another command may still be adding to it
    (file,) = mine.iterdir()
    os.utime(file, (0, 0))
    assert measured_again(toy, tmp_path / "kept")[1] == 0
    left = {folder.name for folder in (tmp_path / "kept").iterdir()}
    assert left == {"reports", "0123456789abcdef"}


def test_records_that_cannot_be_kept_are_measured_all_the_same(toy, tmp_path):
    plain = evaluate({"dots": dots}, toy, TOY, progress=False)
    (tmp_path / "kept").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be kept in .*kept"):
        results, looks = measured_again(toy, tmp_path / "kept")
    assert (results, looks) == (plain, 4)


def test_what_does_not_count_as_code_is_not_imported_by_an_evaluation():
    names = [f"superpoint_lib.{name}" for name in kept_records._NOT_BELOW]
    assert names
    code = (
        "import sys, superpoint_lib.evaluation.hpatches, superpoint_lib.evaluation.mini\n"
        "import superpoint_lib.evaluation.classical\n"
        f"assert not set(sys.modules) & set({names!r}), set(sys.modules) & set({names!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_distances_are_inclusive(toy):
    # The stray point is 4 px from its place.
    at = dataclasses.replace(TOY, distance=4.0, match_distances=(4.0, 3.99))
    record = only(evaluate({"dots": dots}, toy, at, progress=False), "v_shift")
    assert record["repeatability"] == record["matching_score"] == record["average_precision"] == 1
    assert record["correct_matches@4"] == 1
    assert record["correct_matches@3.99"] == pytest.approx(4 / 5)


# --- images of two sizes ---

ALL = dataclasses.replace(AS_IS, shared_first=False)
TOY_ALL = dataclasses.replace(TOY, detector=ALL, descriptor=ALL)


def view(points, size, levels):
    """A view of dots, as it comes from an extractor, unchanged in size."""
    features = dots(dot_image(points, levels, size) / 255.0)
    return View(np.zeros(size, np.float32), np.eye(3), features)


def test_an_image_and_its_double_in_size():
    H = np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    points = np.array([[10, 10], [70, 12], [50, 50], [20, 45], [75, 55]])
    small, large = view(points, (60, 80), LEVELS), view(2 * points, (120, 160), LEVELS)
    record = detector_record(small, large, H, TOY)
    assert (record["n_visible0"], record["n_visible1"], record["repeatability"]) == (5, 5, 1)
    # An error that grows to the right is measured at the corners of image 0, not of image 1.
    wider = view(np.rint(2.02 * points).astype(int), (120, 160), LEVELS)
    pair = match_pair(small, wider, H, TOY, False)
    right = mean_corner_error(pair.H_estimated, H, 60, 80)
    assert pair.corner_error == right
    assert max(corner_errors(pair, RansacConfig(orders=2))) < 1.2 * right
    assert descriptor_record(pair, TOY)["matching_score"] == 1


def test_turn_and_zoom_are_those_in_the_middle_of_image_0():
    H = np.array([[1.0, 0.1, 3], [-0.2, 1.1, 9], [2e-3, 1e-3, 1]])
    views = view([[5, 5]], (60, 80), [50]), view([[5, 5]], (120, 160), [50])
    record = detector_record(*views, H, TOY)
    turn, zoom = turn_and_zoom(H, 60, 80)
    assert (record["turn"], record["zoom"]) == (round(turn, 3), round(zoom, 5))


def test_matching_score_is_of_what_both_images_show():
    points = np.array([[10, 10], [70, 12], [50, 50], [20, 45]])
    beyond = np.concatenate([points, [[100, 30]]])  # image 0 ends at x = 79
    pair = view(points, (60, 80), LEVELS[:4]), view(beyond, (120, 160), LEVELS)
    record = descriptor_record(match_pair(*pair, np.eye(3), TOY_ALL, False), TOY_ALL)
    assert record["matching_score"] == 1
    # A right match, two pixels off, whose end in image 1 lies outside image 0, is none of them.
    moved = np.concatenate([[[8, 30]], POINTS[1:] + np.array([10, 0])])
    edge = np.concatenate([[[0, 30]], POINTS[1:]])
    pair = view(edge, (60, 80), LEVELS), view(moved, (60, 90), LEVELS)
    record = descriptor_record(match_pair(*pair, shift(10, 0), TOY_ALL, False), TOY_ALL)
    assert record["correct_matches@3"] == 1
    assert record["matching_score"] == pytest.approx(2 * 4 / 9)


def test_suppression_measures_between_nearest_pixels():
    for second, kept in ((14.9, 1), (15.4, 1), (15.6, 2)):  # beside one at 10.6, which is pixel 11
        keypoints = torch.tensor([[10.6, 5], [second, 5]])
        features = Features(keypoints, torch.tensor([2.0, 1]), None, (20, 30))
        assert len(_suppress(features, TaskConfig(nms_radius=4))) == kept


def test_boxes_have_the_descriptors_of_refined_keypoints():
    places = Places().eval()
    y, x = np.mgrid[:64, :96]
    image = (0.02 * np.exp(-((x - 40.4) ** 2 + (y - 30.3) ** 2) / 3)).astype(np.float32)
    task = TaskConfig(nms="box", nms_radius=8, extract_keypoints=1)
    features = superpoint_extractor(places)(image, task)
    assert (features.keypoints - torch.tensor([40.4, 30.3])).abs().max() < 0.1
    maps = places(torch.from_numpy(image)[None, None])
    expected = sample_descriptors(maps["descriptors"][0], features.keypoints)
    torch.testing.assert_close(features.descriptors, expected, atol=1e-6, rtol=0)
