import dataclasses
import itertools
import json
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

import superpoint_lib.paths as paths
from superpoint_lib.paths import (
    IMAGE_EXTENSIONS,
    UnreadableImageError,
    atomic_path,
    list_images,
    project_root,
    read_gray,
    write_json,
    write_text,
)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "repo" / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "repo" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "repo" / "notebooks" / "profiles")
    return tmp_path / "repo"


def test_folders_are_those_of_the_checkout_one_works_in(checkout, monkeypatch):
    monkeypatch.delenv("SUPERPOINT_DATA", raising=False)
    assert project_root() == checkout
    assert paths.data_dir() == checkout / "data"
    assert paths.runs_dir() == checkout / "runs"
    assert paths.results_dir() == checkout / "results"
    assert paths.figures_dir() == checkout / "figures"


def test_elsewhere_the_checkout_of_the_package_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_root() == Path(paths.__file__).resolve().parents[1]


def test_without_any_checkout_the_working_directory_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "site-packages" / "superpoint_lib")
    assert project_root() == tmp_path
    assert paths.bundled_weights_dir() == tmp_path / "site-packages" / "superpoint_lib" / "weights"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_list_images_is_sorted_and_takes_pictures_only(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.ppm", ".cache/d.png")
    names = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert names == ["a.JPG", "b.png", "sub/c.ppm"]
    assert [p.name for p in list_images(tmp_path, recursive=False)] == ["a.JPG", "b.png"]
    both = list_images(tmp_path / "sub", str(tmp_path))
    assert [p.name for p in both] == ["c.ppm", "a.JPG", "b.png", "c.ppm"]
    assert list_images() == []


def test_list_images_follows_links_once(tmp_path):
    touch(tmp_path, "real/x.png", "data/y.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    names = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path / "data")]
    assert names == ["data/link/x.png", "data/y.png"]
    (tmp_path / "data" / "a").symlink_to(tmp_path / "data" / "z")  # before and after what it is
    touch(tmp_path, "data/z/1.png")
    names = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path / "data")]
    assert names == ["data/a/1.png", "data/link/x.png", "data/y.png", "data/z/1.png"]


def test_list_images_is_not_lost_in_folders_that_link_to_each_other(tmp_path):
    touch(tmp_path, "c/p/1.png", "c/q/2.png", "c/r/3.png")
    for here, there in itertools.permutations("pqr", 2):
        (tmp_path / "c" / here / there).symlink_to(f"../{there}")
    names = [p.relative_to(tmp_path / "c").as_posix() for p in list_images(tmp_path / "c")]
    ways = [w for n in (1, 2, 3) for w in itertools.permutations("pqr", n)]  # none goes round
    assert names == sorted(f"{'/'.join(way)}/{'pqr'.index(way[-1]) + 1}.png" for way in ways)


def test_a_missing_folder_says_how_to_supply_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train2017.*ln -s.*superpoint data.*get the"):
        list_images(tmp_path / "train2017")
    touch(tmp_path, "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png"):
        list_images(tmp_path / "a.png")


@pytest.mark.parametrize("extension", sorted(IMAGE_EXTENSIONS))
def test_every_listed_format_is_read(tmp_path, extension):
    # Two grey levels, which a bitmap can hold too; .ppm and .gif take colour pictures only.
    gray = np.zeros((64, 96), np.uint8)
    gray[:, 48:] = 255
    colour_only = extension in (".ppm", ".gif")
    assert cv2.imwrite(
        str(tmp_path / f"a{extension}"), cv2.merge([gray] * 3) if colour_only else gray
    )
    image = read_gray(tmp_path / f"a{extension}")
    assert image.dtype == np.float32
    assert image.shape == (64, 96)
    assert np.abs(image - gray / 255).max() < 0.03
    assert list_images(tmp_path) == [tmp_path / f"a{extension}"]


def test_read_gray_weights_colours(tmp_path):
    colours = np.array([[[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]]], np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), colours)  # red, green, blue, white in OpenCV's order
    assert np.allclose(read_gray(tmp_path / "rgb.png"), [[0.299, 0.587, 0.114, 1]], atol=0.003)


def test_read_gray_reduces_sixteen_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 32768, 65535]], np.uint16))
    assert np.allclose(read_gray(tmp_path / "deep.png"), [[0, 0.5, 1]], atol=0.003)


@pytest.mark.parametrize(("maxval", "name"), [(1, "P2"), (100, "P5"), (1023, "P6"), (4095, "P5")])
def test_read_gray_heeds_the_largest_value_of_a_netpbm_file(tmp_path, maxval, name):
    values = np.linspace(0, maxval, 5).round().astype(int)
    channels = np.repeat(values, 3 if name == "P6" else 1)
    header = f"{name}\n# of a camera, 12 bits\n5 1\n# the largest\n{maxval}\n".encode()
    plain = (" ".join(map(str, channels)) + "\n").encode()
    binary = channels.astype(">u2" if maxval > 255 else "u1").tobytes()
    (tmp_path / "a.pnm").write_bytes(header + (plain if name == "P2" else binary))
    image = read_gray(tmp_path / "a.pnm")
    assert image.dtype == np.float32 and image.max() == 1
    assert np.allclose(image, [values / maxval], atol=0.003)
    assert np.allclose(image * 255, (image * 255).round(), atol=1e-4)  # eight bits


def test_read_gray_refuses_pam_which_would_end_the_process(tmp_path):
    header = b"P7\nWIDTH 4\nHEIGHT 4\nDEPTH 2\nMAXVAL 255\nTUPLTYPE GRAYSCALE_ALPHA\nENDHDR\n"
    (tmp_path / "a.png").write_bytes(header + bytes(32))
    with pytest.raises(UnreadableImageError, match=r"a\.png: PAM is not supported, save it as PNG"):
        read_gray(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_pictures_are_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        read_gray(tmp_path / "broken.png")


def test_a_colour_profile_changes_nothing_and_says_nothing(tmp_path, capfd):
    path = tmp_path / "a.png"
    image = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    plain = cv2.imencode(".png", image)[1].tobytes()
    body = b"iCCP" + b"name\0\0" + zlib.compress(b"no profile at all")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(plain[:33] + chunk + plain[33:])  # behind the header chunk
    cv2.imread(str(path))
    assert "iCCP" in capfd.readouterr().err
    assert np.array_equal(read_gray(path), image.astype(np.float32) / 255)
    assert not capfd.readouterr().err


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_gray(tmp_path / "none.png")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "new" / "labels.npz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".npz"
        temporary.write_text("first")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "first"
    assert [p.name for p in target.parent.iterdir()] == ["labels.npz"]


def test_the_longest_names_can_be_written(tmp_path):
    for name in (120 * "Ж" + "1234.json", 255 * "a"):
        assert len(os.fsencode(name)) > 240
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_write_json_takes_numpy_paths_and_dataclasses(tmp_path):
    @dataclasses.dataclass
    class Score:
        value: float

    path = write_json(
        tmp_path / "a" / "r.json",
        {
            "n": np.int64(3),
            "x": np.float32(0.5),
            "v": np.arange(2),
            "p": Path("a/b"),
            "s": Score(1.5),
        },
    )
    assert json.loads(path.read_text()) == {
        "n": 3,
        "x": 0.5,
        "v": [0, 1],
        "p": "a/b",
        "s": {"value": 1.5},
    }
    assert path.read_text().endswith("}\n")
    with pytest.raises(TypeError, match="object"):
        write_json(path, {"o": object()})
    assert json.loads(path.read_text())["n"] == 3


def test_write_text_replaces(tmp_path):
    write_text(tmp_path / "t.csv", "a\n")
    assert write_text(tmp_path / "t.csv", "é\n").read_bytes() == "é\n".encode()


def test_data_folder_can_be_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SUPERPOINT_DATA", raising=False)
    assert paths.data_dir() == project_root() / "data"
    monkeypatch.setenv("SUPERPOINT_DATA", "none")
    assert paths.data_dir() == project_root() / "none"
    monkeypatch.setenv("SUPERPOINT_DATA", str(tmp_path))
    assert paths.data_dir() == tmp_path
