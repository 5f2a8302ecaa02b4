import cv2
import numpy as np
import pytest
import torch

from superpoint_lib.evaluation.classical import (
    DETECTORS,
    EXTRACTORS,
    as_extractor,
    fast,
    fast_response,
    harris,
    harris_response,
    orb,
    rootsift,
    shi_tomasi,
    shi_tomasi_response,
    sift,
)
from superpoint_lib.evaluation.detection import evaluate_detectors_on_shapes
from superpoint_lib.extraction import Features
from superpoint_lib.shapes import ShapesConfig, draw_shape, fill_polygons

# Published average precision at 4 px on synthetic shapes, clean and with noise.
PUBLISHED = {"harris": (0.695, 0.254), "shi_tomasi": (0.585, 0.123), "fast": (0.755, 0.082)}


def _square():
    corners = np.array([[30.0, 20.0], [56.0, 24.0], [53.0, 47.0], [26.0, 43.0]])
    large = np.full((256, 320), 50, np.uint8)
    fill_polygons(large, 4 * corners[None] + 1.5, np.array([230.0]))
    small = cv2.resize(cv2.GaussianBlur(large, (5, 5), 0), (80, 64), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255, corners


def _textured():
    shapes = ShapesConfig(320, 400, 160, 200)
    return draw_shape("multiple_polygons", shapes, np.random.default_rng(3))[0]


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_find_the_corners_of_a_square(name):
    image, corners = _square()
    keypoints, scores = DETECTORS[name](image)
    assert keypoints.shape == (len(scores), 2) and (np.diff(scores) <= 0).all()
    gaps = np.linalg.norm(keypoints[:4, None] - corners, axis=-1)
    assert sorted(gaps.argmin(axis=1)) == [0, 1, 2, 3]
    assert gaps.min(axis=1).max() < 3.5


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_keep_their_distance(name):
    keypoints, _ = DETECTORS[name](_textured())
    apart = np.abs(keypoints[:, None] - keypoints).max(axis=-1)
    apart[np.diag_indices(len(apart))] = 99
    assert len(keypoints) > 20 and apart.min() > 4


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_say_nothing_about_a_blank_picture(name):
    for level in (0.0, 0.5):
        keypoints, scores = DETECTORS[name](np.full((48, 64), level, np.float32))
        assert keypoints.shape == (0, 2) and scores.shape == (0,)


def test_responses_are_those_of_opencv():
    image = _textured()
    assert np.array_equal(harris_response(image), cv2.cornerHarris(image, 4, 3, 0.04))
    relative = shi_tomasi_response(image)
    assert relative.max() == 1.0 and relative.min() >= 0.0
    place = np.unravel_index(relative.argmax(), relative.shape)
    strongest = cv2.goodFeaturesToTrack(image, 1, 0.01, 5)[0, 0]
    assert np.array_equal(strongest, place[::-1])
    corners = cv2.FastFeatureDetector_create(10).detect(np.rint(image * 255).astype(np.uint8))
    response = fast_response(image)
    assert np.count_nonzero(response) == len(corners) > 0
    x, y = (int(v) for v in corners[0].pt)
    assert response[y, x] == pytest.approx(corners[0].response / 255)


def test_shi_tomasi_finds_what_good_features_to_track_finds():
    image = _textured()
    theirs = cv2.goodFeaturesToTrack(image, 0, 0.01, 0)[:, 0]
    keypoints, scores = shi_tomasi(image, nms_radius=0)
    assert len(theirs) > 20
    assert {*map(tuple, keypoints[scores > 0.01])} == {*map(tuple, theirs)}


def test_suppression_is_greedy():
    # Three dots, 4 px apart, the middle one second in strength: it falls to the first and spares
    # the third, which a single pass over squares of radius 4 would drop as well.
    image = np.zeros((40, 60), np.float32)
    image[20, [20, 24, 28]] = 1.0, 0.9, 0.8
    for detector in (shi_tomasi, fast):
        assert detector(image, nms_radius=3)[0][:, 0].tolist() == [20, 24, 28]
        assert detector(image, nms_radius=4)[0].tolist() == [[20, 20], [28, 20]]


@pytest.mark.parametrize(("name", "width"), [("sift", 128), ("rootsift", 128), ("orb", 256)])
def test_extractors_give_features_of_unit_length(name, width):
    features = EXTRACTORS[name](_textured())
    count = len(features)
    assert isinstance(features, Features) and count > 10
    assert features.keypoints.shape == (count, 2) and features.image_size == (160, 200)
    assert features.keypoints.dtype == torch.float32
    assert features.descriptors.shape == (count, width)
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(count), atol=1e-5)
    assert (features.keypoint_scores.diff() <= 0).all()
    fewer = EXTRACTORS[name](_textured(), max_keypoints=5)
    assert len(fewer) == 5


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_give_nothing_for_a_blank_picture(name):
    features = EXTRACTORS[name](np.full((64, 64), 0.5, np.float32))
    assert len(features) == 0 and features.keypoints.shape == (0, 2)
    assert features.descriptors.shape == (0, 256 if name == "orb" else 128)


def test_rootsift_is_the_root_of_sift():
    plain, root = sift(_textured()), rootsift(_textured())
    expected = torch.sqrt(plain.descriptors / plain.descriptors.sum(dim=1, keepdim=True))
    assert torch.equal(plain.keypoints, root.keypoints)
    assert torch.allclose(root.descriptors, expected, atol=1e-5)


def test_orb_dot_products_are_hamming_distances():
    image = _textured()
    features = orb(image, max_keypoints=40)
    found, bits = cv2.ORB_create(40).detectAndCompute(np.rint(image * 255).astype(np.uint8), None)
    order = np.argsort([-k.response for k in found], kind="stable")
    bits = bits[order[: len(features)]]
    hamming = np.unpackbits(bits[:, None] ^ bits[None], axis=-1).sum(axis=-1)
    dot = (features.descriptors @ features.descriptors.T).numpy()
    assert np.allclose(dot, 1 - hamming / 128, atol=1e-5)


def test_a_detector_can_stand_in_for_an_extractor():
    image, _ = _square()
    features = as_extractor(harris)(image)
    assert features.descriptors is None and features.image_size == (64, 80)
    assert np.array_equal(features.keypoints.numpy(), harris(image)[0])


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_pictures_of_another_kind_are_refused(bad):
    for function in (*DETECTORS.values(), *EXTRACTORS.values()):
        with pytest.raises(ValueError, match=r"float image \(H, W\)"):
            function(bad)


def test_the_shapes_are_as_hard_as_the_published_ones_in_noise_and_easier_without():
    for noise in (False, True):
        results = evaluate_detectors_on_shapes(DETECTORS, 12, noise=noise)["detectors"]
        for name, published in PUBLISHED.items():
            ours = results[name]["4"]["in_proportion"]["average_precision"]
            assert -0.06 < ours - published[noise] < (0.06 if noise else 0.3), (name, noise, ours)
