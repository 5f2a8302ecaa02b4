import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from superpoint_lib.evaluation import metrics

IDENTITY = np.eye(3)
SIZE = (100, 200)
NONE = np.zeros((0, 2))


def shift(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def test_visible_mask_includes_the_frame_and_nothing_beyond():
    points = np.array([[0, 0], [199, 99], [-0.5, 50], [199.5, 50], [50, 99.1]], float)
    assert metrics.visible_mask(points, IDENTITY, SIZE).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert metrics.visible_mask(np.array([[10.0, 10]]), shift(-11, 0), SIZE).tolist() == [False]


def test_visible_mask_refuses_points_at_infinity():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 0]])
    assert metrics.visible_mask(np.array([[0.0, 5.0], [10.0, 5.0]]), H, SIZE).tolist() == [
        False,
        True,
    ]


def test_repeatability_of_identical_points_is_one_without_error():
    points = np.array([[10.0, 20], [30, 40], [50, 60]])
    result = metrics.repeatability(points, points, IDENTITY, SIZE, SIZE)
    assert result == (1.0, 0.0, 3, 3)


def test_repeatability_counts_both_images_and_averages_the_distances():
    # Image 0: one point 2 px off, one lost. Image 1: the repeated one, and one 5 px off.
    points0 = np.array([[10.0, 10], [100, 50]])
    points1 = np.array([[12.0, 10], [100, 55], [150, 10]])
    result = metrics.repeatability(points0, points1, IDENTITY, SIZE, SIZE, distance=3)
    assert result.repeatability == pytest.approx(2 / 5)
    assert result.localization_error == pytest.approx(2.0)
    wider = metrics.repeatability(points0, points1, IDENTITY, SIZE, SIZE, distance=5)
    assert wider.repeatability == pytest.approx(4 / 5)
    assert wider.localization_error == pytest.approx((2 + 5 + 2 + 5) / 4)


def test_repeatability_lets_several_points_share_one():
    crowd = np.array([[10.0, 10], [11, 10], [12, 10]])
    one_way = metrics.repeatability(crowd[:1], crowd, IDENTITY, SIZE, SIZE)
    assert one_way == (1.0, pytest.approx((0 + 0 + 1 + 2) / 4), 1, 3)
    assert metrics.repeatability(crowd, crowd[:1], IDENTITY, SIZE, SIZE) == (*one_way[:2], 3, 1)


def test_repeatability_leaves_out_points_the_other_image_cannot_see():
    # Everything moves right by 50: of image 0 the first is lost, of image 1 the second.
    points0 = np.array([[160.0, 10], [20, 20]])
    points1 = np.array([[70.0, 20], [30, 20]])
    result = metrics.repeatability(points0, points1, shift(50, 0), SIZE, SIZE)
    assert result == (1.0, 0.0, 1, 1)


def test_repeatability_measures_distances_in_image_1():
    H = np.diag([2.0, 2.0, 1.0])
    result = metrics.repeatability(
        np.array([[10.0, 10]]), np.array([[24.0, 20]]), H, (50, 50), SIZE, distance=4
    )
    assert result.localization_error == pytest.approx(4.0)
    assert result.repeatability == 1.0


@pytest.mark.parametrize(("points0", "points1"), [(NONE, NONE), (NONE, np.ones((1, 2)))])
def test_repeatability_without_points_is_zero(points0, points1):
    result = metrics.repeatability(points0, points1, IDENTITY, SIZE, SIZE)
    assert result.repeatability == 0.0
    assert np.isnan(result.localization_error)
    assert (result.n_visible0, result.n_visible1) == (len(points0), len(points1))


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        metrics.visible_mask(np.ones((4, 3)), IDENTITY, SIZE)


def test_reprojection_errors():
    errors = metrics.reprojection_errors(
        np.array([[0.0, 0], [10, 10]]), np.array([[8.0, 4], [15, 10]]), shift(5, 0)
    )
    assert errors == pytest.approx([5.0, 0.0])
    assert metrics.reprojection_errors(NONE, NONE, IDENTITY).shape == (0,)


def test_estimate_homography_recovers_a_known_one_despite_an_outlier():
    rng = np.random.default_rng(0)
    H = np.array([[1.1, 0.05, 4], [-0.03, 0.95, -7], [1e-4, -2e-4, 1]])
    points0 = rng.uniform(0, 200, (30, 2))
    points1 = cv2.perspectiveTransform(points0[None], H)[0]
    points1[7] += 50
    estimate, inliers = metrics.estimate_homography(points0, points1)
    assert np.allclose(estimate, H, atol=1e-4)
    assert inliers.sum() == 29
    assert not inliers[7]


@pytest.mark.parametrize(
    "points",
    [NONE, np.arange(6.0).reshape(3, 2), np.zeros((10, 2)), np.repeat(np.arange(9.0), 2)],
    ids=["none", "three", "one place", "on a line"],
)
def test_estimate_homography_fails_quietly(points):
    points = points.reshape(-1, 2)
    estimate, inliers = metrics.estimate_homography(points, points)
    assert estimate is None
    assert inliers.shape == (len(points),)
    assert not inliers.any()


def test_a_homography_without_an_inverse_is_none():
    line = np.array([[0.0, 0], [10, 10], [20, 20], [30, 30]])
    estimate, inliers = metrics.estimate_homography(line, line * [1, 2])
    assert estimate is None
    assert not inliers.any()


def test_estimate_homography_uses_the_threshold():
    corners = np.array([[0, 0], [100, 0], [0, 100], [100, 100], [50, 50], [20, 80]], float)
    moved = corners.copy()
    moved[4] += 2
    strict = metrics.estimate_homography(corners, moved, metrics.RansacConfig(threshold=0.5))[1]
    loose = metrics.estimate_homography(corners, moved, metrics.RansacConfig(threshold=5))[1]
    assert (strict.sum(), loose.sum()) == (5, 6)


def test_homography_accuracy_and_auc_by_hand():
    errors = [0.0, 1.5, 3.0, np.inf]
    assert metrics.homography_accuracy(errors, 3) == 0.75
    assert metrics.homography_accuracy(errors, 1) == 0.25
    # The curve is 1/4 up to 1.5, 1/2 up to 3: area 0.375 + 0.75 of 3.
    assert metrics.homography_auc(errors, 3) == pytest.approx((0.375 + 0.75) / 3)
    assert metrics.homography_auc([0.0, 0.0], 1) == 1.0
    assert metrics.homography_auc([np.inf], 5) == 0.0
    assert np.isnan(metrics.homography_auc([], 5))
    assert np.isnan(metrics.homography_accuracy([], 5))


def test_homography_auc_is_the_area_under_the_accuracy_curve():
    errors = np.random.default_rng(1).exponential(3, 200)
    steps = np.linspace(0, 5, 20001)
    curve = [metrics.homography_accuracy(errors, t) for t in steps]
    assert metrics.homography_auc(errors, 5) == pytest.approx(
        np.trapezoid(curve, steps) / 5, abs=1e-4
    )


def test_matching_score():
    assert metrics.matching_score(10, 10, 10) == 1.0
    assert metrics.matching_score(3, 4, 8) == 0.5
    assert metrics.matching_score(0, 0, 0) == 0.0


def test_average_precision_by_hand():
    # Correct, wrong, correct: precision 1 at recall 1/2, 2/3 at recall 1.
    assert metrics.match_average_precision([True, False, True], [0.9, 0.8, 0.7]) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 3
    )
    assert metrics.match_average_precision([True, True], [0.1, 0.2]) == 1.0
    assert metrics.match_average_precision([False, False], [0.1, 0.2]) == 0.0
    assert metrics.match_average_precision([], []) == 0.0
    with pytest.raises(ValueError, match="2 labels but 1 confidences"):
        metrics.match_average_precision([True, False], [0.1])


@pytest.mark.parametrize("levels", [5, 1000000])
def test_average_precision_agrees_with_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    labels = rng.random(300) < 0.4
    scores = rng.integers(levels, size=300) / levels
    assert metrics.match_average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores)
    )


def test_bootstrap_of_equal_values_has_no_width():
    assert metrics.bootstrap_mean([0.5] * 10) == (0.5, 0.5, 0.5)


def test_bootstrap_agrees_with_the_normal_approximation():
    values = np.random.default_rng(3).normal(2, 1, 400)
    mean, low, high = metrics.bootstrap_mean(values, samples=5000)
    error = values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert metrics.bootstrap_mean(values, seed=0) == metrics.bootstrap_mean(values, seed=0)


def test_clusters_widen_the_interval_when_their_members_agree():
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], 5)
    names = np.repeat(list("abcdef"), 5)
    _, low, high = metrics.bootstrap_mean(values)
    mean, clustered_low, clustered_high = metrics.bootstrap_mean(values, names)
    assert mean == 0.5
    assert clustered_high - clustered_low > 1.5 * (high - low)


def test_bootstrap_without_enough_to_say():
    assert np.isnan(metrics.bootstrap_mean([])).all()
    assert np.isnan(metrics.bootstrap_mean([np.nan])).all()
    mean, low, high = metrics.bootstrap_mean([0.0, 1.0, np.nan], ["a", "a", "b"])
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_ransac_is_that_of_opencv_unless_told_otherwise(monkeypatch):
    asked = {}

    def spy(points0, points1, method=0, threshold=None, **options):
        asked.update(options, method=method, threshold=threshold)
        return find(points0, points1, method, threshold, **options)

    find = cv2.findHomography
    monkeypatch.setattr(cv2, "findHomography", spy)
    points0 = np.random.default_rng(0).uniform(0, 200, (200, 2))
    points1 = points0 + np.random.default_rng(1).normal(0, 2.0, (200, 2))
    points1[::3] += 30
    estimate, inliers = metrics.estimate_homography(points0, points1)
    expected, mask = find(points0.astype(np.float32), points1.astype(np.float32), cv2.RANSAC)
    assert np.array_equal(estimate, expected)
    assert np.array_equal(inliers, mask.ravel().astype(bool))
    metrics.estimate_homography(points0, points1, metrics.RansacConfig(0.5, 77, 0.9))
    assert asked == {"method": cv2.RANSAC, "threshold": 0.5, "maxIters": 77, "confidence": 0.9}
    assert metrics.RansacConfig() == metrics.RansacConfig(3.0, 2000, 0.995, 1)


def test_a_point_is_repeated_within_three_pixels_unless_told_otherwise():
    points = np.array([[50.0, 50.0]])
    for shift, share in ((3.0, 1.0), (3.01, 0.0)):
        result = metrics.repeatability(points, points + np.array([shift, 0]), np.eye(3), SIZE, SIZE)
        assert result.repeatability == share


def test_visibility_has_a_thousandth_of_a_pixel_of_slack():
    points = np.array([[-0.0009, 0], [-0.0011, 0], [199.0009, 99.0009], [199, 99.0011]])
    seen = metrics.visible_mask(points, np.eye(3), SIZE)
    assert seen.tolist() == [True, False, True, False]


def test_the_defaults_of_the_bootstrap_are_those_of_the_tables():
    values = np.random.default_rng(0).random(50)
    given = metrics.bootstrap_mean(values, None, samples=2000, confidence=0.95, seed=0)
    assert metrics.bootstrap_mean(values) == given


def test_bootstrap_pools_the_values_of_clusters_of_different_sizes():
    # Samples aa, ab, ba and bb have means 0, 0.2, 0.2 and 1; means of clusters would be 0.5.
    values, clusters = [0.0] * 8 + [1.0] * 2, ["a"] * 8 + ["b"] * 2
    result = metrics.bootstrap_mean(values, clusters, confidence=0.4)
    assert tuple(result) == (pytest.approx(0.2),) * 3
