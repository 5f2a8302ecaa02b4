"""What ``superpoint_lib`` promises to those who import it."""

import inspect
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

import superpoint_lib
from superpoint_lib import Features, MagicPoint, SuperPoint, extract, match
from superpoint_lib.checkpoints import BUNDLED_NAMES
from superpoint_lib.model import ModelConfig

SMALL = ModelConfig(descriptor_dim=16, channels=(8, 8, 16, 16), head_channels=24, norm="none")


def test_names():
    assert sorted(superpoint_lib.__all__) == sorted(
        ["SuperPoint", "MagicPoint", "extract", "match", "Features", "__version__"]
    )
    assert superpoint_lib.__version__ == version("superpoint-lib")


def test_signatures_are_stable():
    names = list(inspect.signature(extract).parameters)
    assert names[:6] == ["model", "image", "max_keypoints", "threshold", "nms_radius", "subpixel"]
    defaults = {k: p.default for k, p in inspect.signature(extract).parameters.items()}
    assert defaults["max_keypoints"] == 1000
    assert defaults["threshold"] == 0.005
    assert defaults["nms_radius"] == 4
    assert defaults["subpixel"] is True
    assert list(inspect.signature(match).parameters) == [
        "features0",
        "features1",
        "ratio",
        "min_similarity",
    ]


def test_conventions_are_stated_in_the_package_docstring():
    text = superpoint_lib.__doc__
    for word in ("(x, y)", "RGB", "H_0to1", "dy * 8 + dx", "dustbin", "8 i + 3.5", "Chebyshev"):
        assert word in text


def test_import_is_quick_and_light():
    code = (
        "import time, sys, torch\n"
        "start = time.process_time()\n"
        "from superpoint_lib import MagicPoint, SuperPoint, extract, match\n"
        "print(time.process_time() - start)\n"
        "print(*sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, modules = result.stdout.splitlines()
    assert float(seconds) < 1
    heavy = {"kornia", "matplotlib", "lightning", "lightning_fabric", "skimage", "sklearn"}
    assert not heavy & set(modules.split())


def test_three_lines_from_two_images_to_matches(tmp_path):
    from superpoint_lib.checkpoints import save_weights
    from superpoint_lib.config import to_dict

    torch.manual_seed(0)
    path = save_weights(
        tmp_path / "net.safetensors", SuperPoint(SMALL).state_dict(), to_dict(SMALL), {}
    )
    model = SuperPoint.from_pretrained(path)
    image = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    features = extract(model, image, max_keypoints=100, threshold=0.0)
    assert isinstance(features, Features)
    matches, similarity = match(features, features)
    assert matches.tolist() == [[i, i] for i in range(len(features))]
    torch.testing.assert_close(similarity, torch.ones(len(features)))


# The tests below read the bundled weights themselves, as soon as they are in the package.


def bundled(name):
    kind = SuperPoint if name == "superpoint" else MagicPoint
    try:
        return kind.from_pretrained(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_weights_agree_in_train_and_eval_mode(name):
    model = bundled(name)
    assert not model.training
    images = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        evaluated, trained = model(images), model.train()(images)
    for key in evaluated:
        torch.testing.assert_close(trained[key], evaluated[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_weights_find_the_corners_of_a_square(name):
    model = bundled(name)
    image = np.full((120, 160), 60, np.uint8)
    image[40:80, 50:110] = 200
    features = extract(model, image, max_keypoints=4)
    assert isinstance(features, Features)
    corners = torch.tensor([[50.0, 40.0], [109.0, 40.0], [50.0, 79.0], [109.0, 79.0]])
    assert float(torch.cdist(corners, features.keypoints).min(dim=1).values.max()) < 4


def test_bundled_superpoint_matches_shifted_images():
    model = bundled("superpoint")
    rng = np.random.default_rng(0)
    right = []
    for _ in range(8):
        scene = np.kron(rng.integers(0, 256, (12, 16)), np.ones((16, 16))).astype(np.uint8)
        views = (scene[dy : dy + 160, dx : dx + 224] for dx, dy in ((0, 0), (12, 5)))
        # The best so many: how many exceed the threshold differs between trainings.
        features = [extract(model, view, max_keypoints=100) for view in views]
        matches, _ = match(*features)
        assert len(matches) >= 50
        moved = (
            features[0].keypoints[matches[:, 0]]
            - features[1].keypoints[matches[:, 1]]
            - torch.tensor([12.0, 5.0])
        )
        right.append(moved.norm(dim=1) < 3)
    assert float(torch.cat(right).float().mean()) > 0.9
