import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from superpoint_lib.config import replace, to_dict
from superpoint_lib.evaluation import mini
from superpoint_lib.evaluation.classical import EXTRACTORS
from superpoint_lib.evaluation.hpatches import evaluate, load_sequences, plain_extractor
from superpoint_lib.evaluation.mini import (
    MiniConfig,
    benchmark_folder,
    make_benchmark,
    mini_benchmark,
    warped_pairs,
)
from superpoint_lib.geometry import (
    HomographyConfig,
    resize_and_crop,
    turn_and_zoom,
    warp_points,
)
from superpoint_lib.paths import UnreadableImageError, read_gray

SMALL = MiniConfig(height=120, width=160, pairs=2)


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).random((200, 300)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2) * 3 - 1


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_that_of_hpatches(tmp_path, photo):
    sequences = load_sequences(make_benchmark(tmp_path / "made", {"a": photo, "b": photo}, SMALL))
    assert [s.name for s in sequences] == ["i_a", "i_b", "v_a", "v_b"]
    assert all(len(s.image_paths) == 3 for s in sequences)
    assert np.array_equal(sequences[0].homographies, [np.eye(3)] * 2)
    assert np.abs(sequences[2].homographies - np.eye(3)).max() > 0.01
    assert not np.allclose(sequences[2].homographies, sequences[3].homographies)
    assert read_gray(sequences[0].image_paths[0]).shape == (120, 160)


def test_the_homographies_are_those_of_the_pictures(tmp_path, photo):
    config = MiniConfig(height=120, width=160, pairs=4, illumination=False, noise=0)
    (sequence,) = load_sequences(make_benchmark(tmp_path / "made", {"a": photo}, config))
    reference, *views = (read_gray(path) for path in sequence.image_paths)
    for view, H in zip(views, sequence.homographies, strict=True):
        warped = cv2.warpPerspective(reference, H, (160, 120))
        # Away from the frame of the reference, so that only the warp itself is compared.
        inside = cv2.warpPerspective(np.ones((120, 160), np.float32), H, (160, 120)) == 1
        inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) == 1
        assert inside.sum() > 2000
        exact = np.abs(view - warped)[inside].mean()
        shifted = np.abs(view - np.roll(warped, 1, axis=1))[inside].mean()
        assert exact < 0.03
        assert exact < 0.5 * shifted


def test_the_seed_decides_everything(tmp_path, photo):
    first = contents(make_benchmark(tmp_path / "first", {"a": photo}, SMALL))
    again = contents(make_benchmark(tmp_path / "again", {"a": photo}, SMALL))
    assert first == again
    other = make_benchmark(tmp_path / "other", {"a": photo}, MiniConfig(120, 160, 2, seed=1))
    changed = {path for path, data in contents(other).items() if data != first[path]}
    assert {path.name for path in changed if path.parent.name == "v_a"} >= {"2.png", "H_1_2"}


def test_a_sequence_does_not_depend_on_the_other_photographs(tmp_path, photo):
    alone = make_benchmark(tmp_path / "alone", {"a": photo}, SMALL)
    together = make_benchmark(tmp_path / "together", {"b": photo[::-1], "a": photo}, SMALL)
    assert contents(alone / "v_a") == contents(together / "v_a")


def test_a_made_benchmark_is_kept_and_an_outdated_one_replaced(tmp_path, photo):
    folder = make_benchmark(tmp_path / "made", {"a": photo}, SMALL)
    stamp = (folder / "v_a" / "1.png").stat().st_mtime_ns
    make_benchmark(folder, {"a": photo}, SMALL)
    assert (folder / "v_a" / "1.png").stat().st_mtime_ns == stamp
    make_benchmark(folder, {"b": photo}, SMALL)
    assert [s.name for s in load_sequences(folder)] == ["i_b", "v_b"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_another_process_made_meanwhile_is_left_alone(tmp_path, photo, monkeypatch):
    write, inodes = mini._write_sequences, []

    def write_while_another_finishes(*arguments):
        write(*arguments)
        monkeypatch.setattr(mini, "_write_sequences", write)
        inodes.append(make_benchmark(tmp_path / "made", {"a": photo}, SMALL).stat().st_ino)

    monkeypatch.setattr(mini, "_write_sequences", write_while_another_finishes)
    assert make_benchmark(tmp_path / "made", {"a": photo}, SMALL).stat().st_ino == inodes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, photo):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine"):
        make_benchmark(tmp_path / "mine", {"a": photo}, SMALL)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_interrupted_making_leaves_nothing(tmp_path, photo):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        make_benchmark(tmp_path / "made", {"a": photo, "b": broken}, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_photographs_may_be_files_of_any_size(tmp_path, photo):
    sizes = {"big": (400, 900), "small": (60, 50)}
    files = {name: tmp_path / f"{name}.jpg" for name in sizes}
    for name, (height, width) in sizes.items():
        picture = cv2.resize((np.clip(photo, 0, 1) * 255).astype(np.uint8), (width, height))
        files[name].write_bytes(cv2.imencode(".jpg", picture)[1])
    config = MiniConfig(height=64, width=80, pairs=1, illumination=False)
    sequences = load_sequences(make_benchmark(tmp_path / "made", files, config))
    assert [read_gray(s.image_paths[1]).shape for s in sequences] == [(64, 80)] * 2


def test_nothing_to_make():
    with pytest.raises(ValueError, match="at least one photograph"):
        make_benchmark("nowhere", {})
    with pytest.raises(ValueError, match="at least one pair"):
        MiniConfig(pairs=0)
    with pytest.raises(ValueError, match="illumination or viewpoint"):
        MiniConfig(illumination=False, viewpoint=False)


def test_the_bundled_benchmark_is_neither_trivial_nor_hopeless(tmp_path):
    config = MiniConfig(height=240, width=320, pairs=1)
    sequences = load_sequences(mini_benchmark(tmp_path / "mini", config))
    assert [s.split for s in sequences] == ["illumination"] * 6 + ["viewpoint"] * 6
    extractors = {name: plain_extractor(EXTRACTORS[name]) for name in ("sift", "orb")}
    results = evaluate(extractors, sequences, "eric", progress=False)
    sift, orb = (results.select(name) for name in extractors)
    assert sift.values("homography@5").mean() > 0.9
    assert 0.5 < sift.values("repeatability").mean() < 0.95
    assert orb.values("auc@3").mean() < sift.values("auc@3").mean() < 0.99


def test_linked_sequences_come_before_the_mini_benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERPOINT_DATA", str(tmp_path))
    monkeypatch.setattr(mini, "mini_benchmark", lambda: tmp_path / "made")
    assert benchmark_folder() == tmp_path / "made"
    (tmp_path / "hpatches").mkdir()
    assert benchmark_folder() == tmp_path / "hpatches"
    assert benchmark_folder("elsewhere/here") == Path("elsewhere/here")


def test_warped_pairs_are_made_of_every_picture_and_small(tmp_path, photo):
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "a.png"), (photo * 255).clip(0, 255))
    folder = warped_pairs(tmp_path / "pairs", tmp_path)
    sequences = load_sequences(folder)
    assert [s.name for s in sequences] == ["i_p_a", "i_q_a", "v_p_a", "v_q_a"]
    assert all(s.homographies.shape == (2, 3, 3) for s in sequences)
    assert read_gray(sequences[0].image_paths[0]).shape == (240, 320)
    results = evaluate(
        {"sift": plain_extractor(EXTRACTORS["sift"])}, sequences, "warped", progress=False
    )
    assert results.values("homography@3").mean() > 0.7
    (tmp_path / "p/a.png").rename(tmp_path / "q/b.png")
    hard = load_sequences(warped_pairs(tmp_path / "hard", tmp_path / "q", kind="warped-hard"))
    assert [s.name for s in hard] == ["i_a", "i_b", "v_a", "v_b"]
    made_with = json.loads((tmp_path / "hard/benchmark.json").read_text())["config"]
    assert made_with == to_dict(mini.HARD) != to_dict(mini.WARPED)


@pytest.mark.parametrize("source", [".", "../here", "link"])
def test_warped_pairs_are_named_after_the_folder_however_it_is_written(
    tmp_path, photo, monkeypatch, source
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(".")
    assert cv2.imwrite(str(tmp_path / "here/a.png"), (photo * 255).clip(0, 255))
    monkeypatch.setattr(mini, "runs_dir", lambda: tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "here")
    name = "link" if source == "link" else "here"
    assert warped_pairs(source=source) == tmp_path / "runs/warped-pairs" / name


def test_the_longest_names_become_folders(tmp_path, photo):
    names = [120 * "Ж" + "1", 120 * "Ж" + "2"]
    folder = make_benchmark(tmp_path / "made", dict.fromkeys(names, photo), SMALL)
    made = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(made) == 4 and all(name[:3] in ("i_Ж", "v_Ж") for name in made)


def test_two_pictures_that_would_bear_one_name_are_refused(tmp_path, photo):
    gray = np.round(255 * photo.clip(0, 1)).astype(np.uint8)
    for name in ("a/b.png", "a_b.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "pictures" / name), gray)
    with pytest.raises(ValueError, match=r"b\.png and .*b\.png would both be called a_b"):
        warped_pairs(tmp_path / "made", tmp_path / "pictures")


def test_no_pairs_are_made_of_a_folder_without_pictures(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no pictures in .*: put some there, or name another"):
        warped_pairs(tmp_path / "pairs", tmp_path)
    monkeypatch.setenv("SUPERPOINT_DATA", str(tmp_path))
    (tmp_path / "coco" / "test2017").mkdir(parents=True)
    with pytest.raises(ValueError, match="test2017: put some there, or remove the folder"):
        warped_pairs(tmp_path / "pairs")


def test_zoomed_pairs_zoom_about_the_middle_and_keep_what_is_there(tmp_path, photo):
    config = replace(mini.ZOOMED, pairs=2, zooms=(1.5, 2.5))
    (sequence,) = load_sequences(make_benchmark(tmp_path / "pairs", {"a": photo}, config))
    middle = np.array([[159.5, 119.5]])
    for H, zoom in zip(sequence.homographies, config.zooms, strict=True):
        assert turn_and_zoom(H, 240, 320) == pytest.approx((0, 1 / zoom), abs=1e-6)
        assert warp_points(middle, H) == pytest.approx(middle)
    near, *far = (read_gray(path) for path in sequence.image_paths)
    for image, H, zoom in zip(far, sequence.homographies, config.zooms, strict=True):
        size = round(320 / zoom), round(240 / zoom)
        smaller = cv2.resize(near, size, interpolation=cv2.INTER_AREA)
        x, y = np.round(warp_points(np.array([[0.0, 0.0]]), H)[0]).astype(int)
        shown = image[y : y + size[1], x : x + size[0]]
        assert np.corrcoef(shown.ravel(), smaller.ravel())[0, 1] > 0.95


def test_what_is_seen_from_afar_is_averaged_and_not_picked(tmp_path):
    # Noise has no detail that one pixel in five could stand for; the mean of n x n has 1 / n of it.
    photo = np.random.default_rng(0).random((240, 320)).astype(np.float32)
    config = replace(SMALL, illumination=False, noise=0.0, pairs=1, zooms=(2.5,))
    (sequence,) = load_sequences(make_benchmark(tmp_path / "made", {"a": photo}, config))
    far = read_gray(sequence.image_paths[1])[36:84, 48:112]
    assert far.std() == pytest.approx(photo.std() / 5, rel=0.1)
    assert far.mean() == pytest.approx(photo.mean(), abs=0.01)


@pytest.mark.parametrize("zooms", [(2.0,), (1.5, 0.0)])
def test_there_is_a_zoom_for_each_pair(zooms):
    with pytest.raises(ValueError, match="one for each pair"):
        MiniConfig(pairs=2, zooms=zooms)


def test_an_unknown_kind_of_pairs_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown kind 'wraped'; known: warped, "):
        warped_pairs(tmp_path, kind="wraped")


def test_the_pixels_of_the_pictures_are_where_the_homographies_have_them(tmp_path):
    """Dots of the photograph, found again in every view to a small part of a pixel."""
    truth = np.array([[60.0, 50], [150, 60], [240, 150], [70, 140], [160, 110]])
    y, x = np.mgrid[:200, :300].astype(np.float32)
    photo = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8) for u, v in truth).astype(np.float32)
    config = MiniConfig(
        height=120, width=160, pairs=3, illumination=False, noise=0, zooms=(0.8, 1.25, 2.0)
    )
    (sequence,) = load_sequences(make_benchmark(tmp_path / "made", {"a": photo}, config))
    _, to_reference = resize_and_crop(photo, 120, 160)
    for path, H in zip(sequence.image_paths, (np.eye(3), *sequence.homographies), strict=True):
        image = read_gray(path)
        for place in warp_points(truth, H @ to_reference):
            u, v = place.round().astype(int)
            if not (6 <= u < 154 and 6 <= v < 114):
                continue
            part = image[v - 5 : v + 6, u - 5 : u + 6]
            rows, columns = np.mgrid[v - 5 : v + 6, u - 5 : u + 6]
            centre = np.array([(part * columns).sum(), (part * rows).sum()]) / part.sum()
            assert np.abs(centre - place).max() < 0.08


def test_pairs_grow_harder_evenly(monkeypatch):
    asked, sample = [], mini.sample_homographies

    def spy(count, height, width, config, rng):
        asked.append(config)
        assert (count, height, width) == (1, 120, 120)
        return sample(count, height, width, config, rng)

    monkeypatch.setattr(mini, "sample_homographies", spy)
    hardest = HomographyConfig(scale_amplitude=0.4, stretch_amplitude=0.1, max_angle=1.0)
    config = MiniConfig(height=120, width=160, pairs=4, homography=hardest)
    assert mini._viewpoints(config, np.random.default_rng(0)).shape == (4, 3, 3)
    for name in (
        "scale_amplitude",
        "stretch_amplitude",
        "perspective_amplitude_x",
        "perspective_amplitude_y",
        "max_angle",
    ):
        found = [getattr(one, name) / getattr(hardest, name) for one in asked]
        assert found == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_views_are_turned_about_their_middle():
    turned = HomographyConfig(
        perspective=False, scale=False, translation=False, max_angle=1.0, patch_ratio=0.8
    )
    config = MiniConfig(height=120, width=160, pairs=3, homography=turned)
    found = mini._viewpoints(config, np.random.default_rng(0))
    assert np.abs(found - np.eye(3)).max() > 0.1
    middle = np.array([[79.5, 59.5]])
    np.testing.assert_allclose(warp_points(middle, found), np.stack([middle] * 3), atol=0.6)


def test_the_light_of_the_reference_stays(tmp_path, photo):
    made = make_benchmark(tmp_path / "made", {"a": photo}, replace(SMALL, noise=0.0))
    first, *others = ((made / "i_a" / f"{n}.png").read_bytes() for n in (1, 2, 3))
    assert first == (made / "v_a" / "1.png").read_bytes() and first not in others


def test_kinds_of_warped_pairs_are_found_by_name(monkeypatch):
    monkeypatch.setattr(mini, "warped_pairs", lambda kind="warped": Path(kind))
    kinds = ["warped", "warped-hard", "warped-zoomed"]
    assert [benchmark_folder(kind) for kind in kinds] == [Path(kind) for kind in kinds]


def test_two_pictures_of_one_scene_make_one_sequence(tmp_path, photo):
    gray = np.round(255 * photo.clip(0, 1)).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    for name in ("motorcycle_left", "motorcycle_right"):
        cv2.imwrite(str(tmp_path / "pictures" / f"{name}.png"), gray)
    folder = warped_pairs(tmp_path / "made", tmp_path / "pictures", kind="warped-zoomed")
    assert [one.name for one in load_sequences(folder)] == ["v_motorcycle_left"]
