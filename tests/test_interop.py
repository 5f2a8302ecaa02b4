"""Conversions to and from OpenCV and kornia, the ONNX file against the network, and video."""

from __future__ import annotations

import inspect

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from superpoint_lib import interop
from superpoint_lib.exported import suppress
from superpoint_lib.extraction import Features, extract, match, network_maps, nms
from superpoint_lib.model import MagicPoint, ModelConfig, SuperPoint

SMALL = ModelConfig(channels=(4, 4, 8, 8), head_channels=8, descriptor_dim=16)


def features_of(count: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    keypoints = 50 * torch.rand((count, 2), generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    descriptors = torch.randn((count, 16), generator=generator)
    return Features(keypoints, scores, nn.functional.normalize(descriptors, dim=1), (60, 80))


def test_opencv_keypoints_there_and_back():
    features = features_of(5)
    keypoints = interop.to_opencv_keypoints(features)
    assert keypoints[2].pt == pytest.approx(features.keypoints[2].tolist())
    assert keypoints[2].response == pytest.approx(float(features.keypoint_scores[2]))
    assert (keypoints[0].size, keypoints[0].angle) == (8.0, -1.0)
    back = interop.from_opencv_keypoints(keypoints, features.descriptors.numpy(), (60, 80))
    torch.testing.assert_close(back.keypoints, features.keypoints)
    torch.testing.assert_close(back.keypoint_scores, features.keypoint_scores)
    torch.testing.assert_close(back.descriptors, features.descriptors)
    assert back.image_size == (60, 80)


def test_from_opencv_keypoints_sorts_and_normalises():
    keypoints = [cv2.KeyPoint(x, 2 * x, 8, -1, r) for x, r in ((1.0, 0.2), (2.0, 0.9), (3.0, 0.2))]
    descriptors = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    features = interop.from_opencv_keypoints(keypoints, descriptors)
    assert features.keypoints.tolist() == [[2, 4], [1, 2], [3, 6]]
    np.testing.assert_allclose(features.descriptors, [[0, 1], [0.6, 0.8], [0, 0]])
    bits = np.array([[0b11110000], [0b11110001], [0b00001111]], np.uint8)
    binary = interop.from_opencv_keypoints(keypoints, bits)
    # Sorted: 0b11110001, 0b11110000, 0b00001111. Of 8 bits 1 and 7 differ from the first's.
    np.testing.assert_allclose(
        binary.descriptors @ binary.descriptors[0], [1, 6 / 8, -6 / 8], atol=1e-6
    )
    assert match(binary, binary)[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="3 keypoints but 2 descriptors"):
        interop.from_opencv_keypoints(keypoints, descriptors[:2])


def test_a_blank_picture_matches_nothing():
    blank = np.zeros((64, 64), np.uint8)
    nothing = interop.from_opencv_keypoints(*cv2.SIFT.create().detectAndCompute(blank, None))
    assert len(match(nothing, features_of(5))[0]) == len(match(features_of(5), nothing)[0]) == 0


def test_nothing_stays_nothing():
    empty = features_of(0)
    assert interop.to_opencv_keypoints(empty) == []
    assert len(interop.from_opencv_keypoints([], np.zeros((0, 16), np.float32))) == 0
    assert interop.to_opencv_matches(torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0)) == []
    pairs, similarity = interop.from_opencv_matches(())
    assert pairs.shape == (0, 2) and similarity.shape == (0,)
    assert interop.to_kornia_lafs(empty).shape == (1, 0, 2, 3)
    matches, distances = interop.match_kornia(empty, features_of(4))
    assert matches.shape == (0, 2) and distances.shape == (0,)


def test_opencv_matches_there_and_back():
    pairs, similarity = torch.tensor([[0, 3], [2, 1]]), torch.tensor([1.0, 0.5])
    converted = interop.to_opencv_matches(pairs, similarity)
    assert [(m.queryIdx, m.trainIdx) for m in converted] == [(0, 3), (2, 1)]
    assert [m.distance for m in converted] == pytest.approx([0.0, 1.0])
    back, again = interop.from_opencv_matches(converted)
    assert back.tolist() == pairs.tolist() and torch.allclose(again, similarity)


def test_opencv_and_kornia_find_the_matches_of_this_library():
    features0, features1 = features_of(30, 1), features_of(40, 2)
    matches, similarity = match(features0, features1)
    expected = {(i, j): s for (i, j), s in zip(matches.tolist(), similarity.tolist(), strict=True)}
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    found = matcher.match(features0.descriptors.numpy(), features1.descriptors.numpy())
    pairs, values = interop.from_opencv_matches(found)
    opencv = {(i, j): s for (i, j), s in zip(pairs.tolist(), values.tolist(), strict=True)}
    assert opencv == pytest.approx(expected, abs=1e-5)
    pairs, distances = interop.match_kornia(features0, features1, "mnn")
    assert {tuple(p) for p in pairs.tolist()} == set(expected)
    assert distances.shape == (len(expected),)
    strict, _ = interop.match_kornia(features0, features1, "smnn", 0.8)
    assert {tuple(p) for p in strict.tolist()} < set(expected)


def test_match_kornia_needs_descriptors():
    bare = Features(torch.zeros((1, 2)), torch.ones(1), None, (8, 8))
    with pytest.raises(ValueError, match="MagicPoint has none"):
        interop.match_kornia(bare, bare)


def test_kornia_lafs_keep_centres_and_scale():
    from kornia.feature import get_laf_center, get_laf_scale

    features = features_of(7)
    lafs = interop.to_kornia_lafs(features, scale=5.0, orientation=30.0)
    torch.testing.assert_close(get_laf_center(lafs)[0], features.keypoints)
    torch.testing.assert_close(get_laf_scale(lafs).flatten(), torch.full((7,), 5.0))


def _moved_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


@pytest.mark.parametrize(
    ("kind", "size", "allowed"),
    [
        (SuperPoint, (None, None), [(1, 48, 64), (3, 80, 40), (2, 49, 63), (1, 16, 17)]),
        (MagicPoint, (50, None), [(2, 50, 64), (1, 50, 41)]),
    ],
)
def test_onnx_file_computes_what_the_network_does(tmp_path, kind, size, allowed):
    torch.manual_seed(0)
    model = kind(SMALL)
    _moved_statistics(model)
    model.train()
    path = interop.export_onnx(
        model, tmp_path / "folder" / "net.onnx", *size, metadata={"weights": "drawn"}
    )
    assert model.training
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"weights": "drawn"}
    free = [given or name for given, name in zip(size, ("height", "width"), strict=True)]
    assert session.get_inputs()[0].shape == ["batch", 1, *free]
    model.eval()
    for batch, height, width in allowed:
        images = torch.rand((batch, 1, height, width))
        maps, _ = network_maps(model, images, "float32")
        outputs = session.run(None, {"images": images.numpy()})
        assert [output.name for output in session.get_outputs()] == list(maps)
        for output, expected in zip(outputs, maps.values(), strict=True):
            np.testing.assert_allclose(output, expected.numpy(), atol=1e-4)
    if size[0]:
        with pytest.raises(Exception, match="images"):
            session.run(None, {"images": np.zeros((1, 1, 56, 64), np.float32)})


@pytest.mark.parametrize("kind", [SuperPoint, MagicPoint])
def test_onnx_file_of_keypoints_gives_what_extract_does(tmp_path, kind):
    torch.manual_seed(0)
    model = kind(SMALL).eval()
    with torch.no_grad():
        model.detector.output.conv.weight *= 30  # or else all scores would be nearly the same
    settings = {"max_keypoints": 400, "threshold": 0.02, "nms_radius": 2}
    path = interop.export_onnx(model, tmp_path / "keypoints.onnx", **settings)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["keypoints", "keypoint_scores", "descriptors"][: len(names)]
    assert len(names) == (3 if kind is SuperPoint else 2)
    counts = []
    for batch, height, width in [(2, 64, 80), (1, 61, 83), (1, 16, 17), (1, 200, 300)]:
        images = torch.rand((batch, 1, height, width))
        outputs = session.run(None, {"images": images.numpy()})
        assert [len(output) for output in outputs] == [batch] * len(names)
        found = extract(model, images, **settings, precision="float32")
        for i, expected in enumerate(found):
            count = len(expected)
            counts.append(count)
            assert outputs[1].shape[1] == 400
            assert (outputs[1][i] > 0).sum() == count
            # In which order scores come that differ by rounding alone does not matter.
            distances = np.abs(outputs[0][i, :count, None] - expected.keypoints.numpy()).max(-1)
            partner = distances.argmin(1)
            assert sorted(partner) == list(range(count))
            for name, output in zip(names, outputs, strict=True):
                values = getattr(expected, name).numpy()
                np.testing.assert_allclose(output[i, :count], values[partner], atol=1e-3)
            np.testing.assert_allclose(outputs[1][i, :count], expected.keypoint_scores, atol=1e-5)
    assert min(counts) < 20
    assert max(counts) == 400  # neither always full, nor never
    empty = session.run(None, {"images": np.zeros((0, 1, 32, 40), np.float32)})
    assert [len(output) for output in empty] == [0] * len(names)


def test_onnx_file_of_keypoints_finds_none_in_a_flat_picture(tmp_path):
    model = SuperPoint(SMALL).bfloat16()  # which ONNX Runtime does not compute in
    path = interop.export_onnx(model, tmp_path / "a.onnx", max_keypoints=5, threshold=1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"images": np.zeros((1, 1, 24, 32), np.float32)})
    assert [output.shape for output in outputs] == [(1, 5, 2), (1, 5), (1, 5, 16)]
    assert not outputs[1].any()
    assert all(np.isfinite(output).all() for output in outputs)


def test_suppression_in_a_graph_keeps_what_nms_keeps():
    torch.manual_seed(0)
    for radius in (0, 1, 4):
        heatmap = torch.rand(2, 40, 56) ** 4
        torch.testing.assert_close(
            suppress(heatmap, radius, 0.3), nms(heatmap, radius, 0.3), rtol=0, atol=0
        )
    row = torch.tensor([[[0.5, 0.6, 0.7, 0.6, 0.5, 0.4]]])  # the third suppresses two on each side
    assert suppress(row, 2, 0.1).nonzero()[:, 2].tolist() == [2, 5]
    assert suppress(torch.full((1, 1, 2), 0.5), 1, 0.1).count_nonzero() == 2  # nms keeps one


def test_export_onnx_refuses_settings_and_says_what_is_missing(tmp_path, monkeypatch):
    model = MagicPoint(SMALL)
    path = tmp_path / "a.onnx"
    for settings, told in (
        ({"height": 15}, "height must be at least 16 px, got 15"),
        ({"max_keypoints": 0}, "max_keypoints must be at least 1"),
        ({"max_keypoints": 5, "threshold": 1.5}, "threshold 1.5"),
        ({"max_keypoints": 5, "nms_radius": -1}, "nms_radius -1"),
        ({"max_keypoints": 5, "nms_radius": 1.5}, "nms_radius must be a whole number"),
        ({"max_keypoints": 5.0}, "max_keypoints must be a whole number"),
        ({"width": 64.0}, "width must be a whole number"),
    ):
        with pytest.raises(ValueError, match=told):
            interop.export_onnx(model, path, **settings)
    with pytest.raises(ValueError, match="is a folder"):
        interop.export_onnx(model, tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(ImportError, match=r"PyTorch 2\.11 or newer.* this is 2\.10\.1"):
        interop.export_onnx(model, path, max_keypoints=5)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        interop.export_onnx(model, path)
    assert not path.exists()


def _write_video(path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for index in range(frames):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2] = 40 * index  # red, in OpenCV's order
        writer.write(frame)
    writer.release()


def test_read_video_gives_rgb_frames(tmp_path):
    path = tmp_path / "clip.avi"
    _write_video(path, 6)
    frames = list(interop.read_video(path))
    assert len(frames) == 6 and frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    assert [round(float(f[..., 0].mean()) / 40) for f in frames] == [0, 1, 2, 3, 4, 5]
    assert all(f[..., 2].mean() < 8 for f in frames)
    some = list(interop.read_video(path, step=2, max_frames=2))
    assert [round(float(f[..., 0].mean()) / 40) for f in some] == [0, 2]
    assert list(interop.read_video(path, max_frames=0)) == []


def test_read_video_errors_come_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.avi"):
        interop.read_video(tmp_path / "none.avi")
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"broken\.avi.*decode"):
        interop.read_video(broken)
    _write_video(tmp_path / "clip.avi", 1)
    with pytest.raises(ValueError, match="step"):
        interop.read_video(tmp_path / "clip.avi", step=0)


def test_kornia_lafs_are_turned_as_asked_for():
    from kornia.feature import get_laf_orientation, get_laf_scale

    turned = interop.to_kornia_lafs(features_of(3), orientation=30.0)
    torch.testing.assert_close(get_laf_orientation(turned).flatten(), torch.full((3,), 30.0))
    plain = interop.to_kornia_lafs(features_of(3))
    torch.testing.assert_close(get_laf_scale(plain).flatten(), torch.full((3,), 8.0))
    torch.testing.assert_close(get_laf_orientation(plain).flatten(), torch.zeros(3))


def test_opencv_keypoints_have_the_size_asked_for():
    assert [k.size for k in interop.to_opencv_keypoints(features_of(2), size=3.0)] == [3.0, 3.0]


def test_kornia_matches_by_ratio_both_ways_unless_told_otherwise():
    features0, features1 = features_of(200, 1), features_of(200, 2)
    matches, ratios = interop.match_kornia(features0, features1)
    told, again = interop.match_kornia(features0, features1, "smnn", 0.95)
    assert torch.equal(matches, told) and torch.equal(ratios, again)
    assert 0.9 < ratios.max() <= 0.95


def test_an_onnx_file_finds_what_extract_finds_unless_told_otherwise():
    ours, theirs = (inspect.signature(f).parameters for f in (interop.export_onnx, extract))
    for name in ("threshold", "nms_radius"):
        assert ours[name].default == theirs[name].default
