import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from superpoint_lib.evaluation.detection import (
    Detections,
    _curve,
    average_precision,
    evaluate_detectors_on_shapes,
    localization_error,
    match_detections,
    match_images,
    precision_recall,
    shapes_test_set,
)
from superpoint_lib.shapes import PRIMITIVES, ShapesConfig, draw_sample, draw_shape

NONE = np.zeros((0, 2)), np.zeros(0)


def _detections(scores, correct, corners):
    errors = np.where(correct, 1.0, np.nan)
    return Detections(np.asarray(scores, float), errors, corners, 1)


def test_the_most_confident_detection_takes_the_corner():
    corners = np.array([[10.0, 10.0]])
    keypoints = np.array([[10.0, 11.0], [13.0, 10.0], [30.0, 30.0]])
    errors = match_detections(keypoints, np.array([0.2, 0.9, 0.5]), corners, 4.0)
    assert np.isnan(errors[[0, 2]]).all() and errors[1] == 3.0


def test_a_second_detection_takes_the_next_nearest_corner():
    corners = np.array([[0.0, 0.0], [3.0, 0.0]])
    keypoints = np.array([[0.5, 0.0], [1.0, 0.0]])
    errors = match_detections(keypoints, np.array([0.9, 0.8]), corners, 4.0)
    assert errors.tolist() == [0.5, 2.0]
    assert np.isnan(match_detections(keypoints, np.array([0.9, 0.8]), corners, 1.5)[1])


def test_the_distance_is_inclusive():
    corners, keypoints = np.array([[0.0, 0.0]]), np.array([[0.0, 4.0]])
    assert match_detections(keypoints, np.ones(1), corners, 4.0)[0] == 4.0
    assert np.isnan(match_detections(keypoints, np.ones(1), corners, 3.99)[0])


def _match_one_by_one(keypoints, scores, corners, distance):
    errors, free = np.full(len(keypoints), np.nan), np.ones(len(corners), bool)
    for i in np.argsort(-scores, kind="stable"):
        gaps = np.where(free, np.linalg.norm(keypoints[i] - corners, axis=1), np.inf)
        if len(gaps) and gaps.min() <= distance:
            errors[i], free[gaps.argmin()] = gaps.min(), False
    return errors


@pytest.mark.parametrize("seed", range(20))
def test_rounds_give_the_greedy_matching(seed):
    rng = np.random.default_rng(seed)
    corners, keypoints = rng.uniform(0, 30, (25, 2)), rng.uniform(0, 30, (40, 2))
    scores = np.round(rng.random(40), 1)  # many ties
    expected = _match_one_by_one(keypoints, scores, corners, 6.0)
    assert np.isfinite(expected).sum() > 10
    assert np.array_equal(match_detections(keypoints, scores, corners, 6.0), expected, True)


def test_nothing_to_match_is_no_match():
    assert match_detections(*NONE, np.ones((3, 2)), 4.0).shape == (0,)
    assert np.isnan(match_detections(np.ones((2, 2)), np.ones(2), np.zeros((0, 2)), 4.0)).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores \(N,\)"):
        match_detections(np.ones((2, 2)), np.ones(3), np.ones((1, 2)), 4.0)
    with pytest.raises(ValueError):
        match_images([NONE], [], 4.0)


def test_precision_recall_by_hand():
    # Ranked: hit, miss, hit, miss; 4 corners.
    detections = _detections([0.9, 0.8, 0.7, 0.6], [True, False, True, False], 4)
    precision, recall, thresholds = precision_recall(detections)
    assert np.allclose(precision, [1, 1 / 2, 2 / 3, 2 / 4])
    assert np.allclose(recall, [1 / 4, 1 / 4, 2 / 4, 2 / 4])
    assert np.allclose(thresholds, [0.9, 0.8, 0.7, 0.6])
    # 1/4 * 1 + 1/4 * 2/3; the two corners never found add nothing.
    assert average_precision(detections) == pytest.approx(5 / 12)


def test_equal_scores_come_in_together():
    detections = _detections([0.5, 0.5, 0.5, 0.2], [False, True, True, True], 3)
    precision, recall, thresholds = precision_recall(detections)
    assert np.allclose(precision, [2 / 3, 3 / 4]) and np.allclose(recall, [2 / 3, 1])
    assert thresholds.tolist() == [0.5, 0.2]


@pytest.mark.parametrize("digits", [1, 6])
def test_average_precision_is_that_of_scikit_learn_without_misses(digits):
    rng = np.random.default_rng(0)
    correct = rng.random(300) < 0.4
    scores = np.round(rng.random(300) + 0.3 * correct, digits)
    ours = average_precision(_detections(scores, correct, int(correct.sum())))
    assert ours == pytest.approx(average_precision_score(correct, scores), abs=1e-12)
    missed = average_precision(_detections(scores, correct, 2 * int(correct.sum())))
    assert missed == pytest.approx(ours / 2)


def test_perfect_and_useless_detections():
    corners = np.array([[5.0, 5.0], [20.0, 8.0]])
    perfect = match_images([(corners, np.array([0.9, 0.8]))], [corners], 4.0)
    assert average_precision(perfect) == 1.0 and localization_error(perfect) == 0.0
    useless = match_images([(corners + 50, np.array([0.9, 0.8]))], [corners], 4.0)
    assert average_precision(useless) == 0.0 and np.isnan(localization_error(useless))
    silent = match_images([NONE], [corners], 4.0)
    assert average_precision(silent) == 0.0
    nothing = match_images([(corners, np.ones(2))], [np.zeros((0, 2))], 4.0)
    assert np.isnan(average_precision(nothing)) and nothing.corners == 0


def test_the_unit_of_scores_does_not_matter():
    rng = np.random.default_rng(0)
    corners, keypoints = 100 * rng.random((20, 2)), 100 * rng.random((60, 2))
    scores = rng.random(60)
    figures = [
        average_precision(match_images([(keypoints, unit * scores)], [corners], 8.0))
        for unit in (1.0, 1e-9)
    ]
    assert figures[0] == figures[1] > 0


def test_figures_in_proportion_have_fewer_pictures_of_what_trainings_see_less():
    few = ShapesConfig(primitives=("polygon", "ellipses"), primitive_weights=(1.0, 0.5))
    all_corners = {}
    for primitive in few.primitives:
        for image, corners in shapes_test_set(primitive, 4, False, config=few):
            all_corners[image.tobytes()] = corners

    def oracle(image):
        corners = all_corners[image.tobytes()]
        found = corners if len(corners) else np.array([[9.0, 9.0]])  # one wrong on each ellipse
        return found, np.full(len(found), 0.5)

    result = evaluate_detectors_on_shapes({"it": oracle}, 4, config=few)["detectors"]["it"]["4"]
    corners = sum(map(len, all_corners.values()))
    assert result["average_precision"] == pytest.approx(corners / (corners + 4))
    assert result["in_proportion"]["average_precision"] == pytest.approx(corners / (corners + 2))


def test_pictures_are_pooled():
    corners = np.array([[5.0, 5.0]])
    predictions = [(np.array([[6.0, 5.0]]), np.array([0.5])), (corners + 40, np.array([0.9]))]
    both = match_images(predictions, [corners, corners], 4.0)
    assert both.corners == 2 and both.images == 2
    assert average_precision(both) == pytest.approx(0.25)  # one of two corners, at precision 1/2
    assert localization_error(both) == 1.0


def test_the_test_set_is_repeatable_and_noise_keeps_the_drawing():
    clean = list(shapes_test_set("star", 3, noise=False))
    again = list(shapes_test_set("star", 3, noise=False))
    noisy = list(shapes_test_set("star", 3, noise=True))
    for (image, corners), (same, _), (changed, labels) in zip(clean, again, noisy, strict=True):
        assert np.array_equal(image, same)
        assert np.array_equal(corners, labels) and not np.array_equal(image, changed)
    assert not np.array_equal(clean[0][0], clean[1][0])
    other = next(shapes_test_set("star", 1, noise=False, seed=1))
    assert not np.array_equal(other[0], clean[0][0])


def _oracle_and_silent():
    """A detector that knows the labels of the test set, and one that says nothing."""
    labels = {
        image.tobytes(): corners
        for primitive in PRIMITIVES
        for image, corners in shapes_test_set(primitive, 4, noise=False)
    }
    return {
        "oracle": lambda im: (labels[im.tobytes()], np.ones(len(labels[im.tobytes()]))),
        "silent": lambda im: NONE,
    }


def test_evaluation_of_known_detectors():
    results = evaluate_detectors_on_shapes(_oracle_and_silent(), 4)
    assert json.loads(json.dumps(results)) == results
    assert results["images_per_primitive"] == 4 and results["noise"] is False
    oracle, silent = results["detectors"]["oracle"], results["detectors"]["silent"]
    assert set(oracle) == {"4", "2"}
    for distance in ("4", "2"):
        assert oracle[distance]["average_precision"] == 1.0
        assert oracle[distance]["localization_error"] == 0.0
        assert oracle[distance]["curve"] == {"precision": [1.0], "recall": [1.0]}
        assert silent[distance]["average_precision"] == 0.0
        assert silent[distance]["localization_error"] is None
        assert set(oracle[distance]["primitives"]) == set(PRIMITIVES)
    blank = oracle["4"]["primitives"]["ellipses"]
    assert blank["average_precision"] is None and blank["detections_per_image"] == 0


def test_detections_on_pictures_without_corners_cost_precision():
    def eager(image):
        known, scores = oracle(image)
        extra = np.stack(np.meshgrid(np.arange(2.0, 8), np.arange(2.0, 8)), -1).reshape(-1, 2)
        return (known, scores) if len(known) else (extra, 2 * np.ones(len(extra)))

    oracle = _oracle_and_silent()["oracle"]
    results = evaluate_detectors_on_shapes({"eager": eager}, 4)["detectors"]["eager"]["4"]
    assert results["primitives"]["gaussian_noise"]["detections_per_image"] == 36
    assert results["primitives"]["star"]["average_precision"] == 1.0
    assert results["average_precision"] < 0.9 and results["recall"] == 1.0


def test_training_never_draws_a_test_picture():
    test = {image.tobytes() for image, _ in shapes_test_set("polygon", 30, noise=False)}
    config = ShapesConfig(primitives=("polygon",), primitive_weights=(1.0,))
    assert not any(draw_sample(i, config, seed=0)[0].tobytes() in test for i in range(30))
    image, _ = draw_shape("polygon", config, np.random.default_rng(0))
    assert image.tobytes() not in test


def _ranked(correct, corners):
    errors = np.where(correct, 1.0, np.nan)
    return Detections(np.linspace(1, 0.1, len(correct)), errors, corners, 1)


def test_a_curve_begins_with_the_best_detection_and_ends_with_the_last_found():
    curve = _curve(_ranked([True, False, True, True, False], 4))
    assert curve == {"precision": [1.0, 0.6667, 0.75], "recall": [0.25, 0.5, 0.75]}


def test_a_long_curve_is_thinned_evenly_to_a_hundred_and_one_points():
    curve = _curve(_ranked([True] * 1000, 1000))
    assert len(curve["recall"]) == 101 and set(curve["precision"]) == {1.0}
    assert (curve["recall"][0], curve["recall"][-1]) == (0.001, 1.0)
    assert np.ptp(np.diff(curve["recall"])) < 0.002


def test_the_localisation_error_is_the_mean_of_the_matched():
    errors = np.array([0.0, np.nan, 0.0, 3.0])
    assert localization_error(Detections(np.ones(4), errors, 5, 1)) == 1.0
