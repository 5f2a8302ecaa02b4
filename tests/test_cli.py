"""The command line, as a user meets it: exit statuses, one-line errors, files written."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from notebook_cells import ROOT, code_cells, read

from superpoint_lib import __version__, cli, match, paths
from superpoint_lib.checkpoints import load_weights
from superpoint_lib.cli import COMMANDS, evaluate, features, main, shared, train
from superpoint_lib.cli.shared import parse
from superpoint_lib.config import replace
from superpoint_lib.evaluation.protocols import TaskConfig
from superpoint_lib.paths import read_gray


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty checkout as the working directory."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERPOINT_DATA", raising=False)
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    """A small random SuperPoint and a MagicPoint as weight files."""
    from superpoint_lib.checkpoints import save_weights
    from superpoint_lib.config import to_dict
    from superpoint_lib.model import MagicPoint, ModelConfig, SuperPoint

    torch.manual_seed(0)
    config = ModelConfig(norm="none", channels=(8, 8, 8, 8), head_channels=8)
    paths = {}
    for network in (SuperPoint, MagicPoint):
        paths[network.__name__] = tmp_path / f"{network.__name__}.safetensors"
        model = network(config)
        save_weights(paths[network.__name__], model.state_dict(), to_dict(config), {})
    return paths


def write_picture(path, seed=0):
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.integers(0, 256, (20, 25), np.uint8), (100, 80))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), noise)
    return path


def write_sequence(folder):
    """Two pictures in the layout of HPatches."""
    for number in (1, 2):
        write_picture(folder / f"{number}.png", number)
    np.savetxt(folder / "H_1_2", np.eye(3))


def fails(arguments, capsys, status=1):
    """The single line on stderr of a command that fails."""
    assert main(list(map(str, arguments))) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("arguments", [["--help"], ["data"]])
def test_a_reader_who_has_read_enough_gets_no_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "superpoint_lib", *arguments]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_help_names_every_command_and_loads_none_of_the_heavy_libraries():
    heavy = {"papermill", "nbconvert", "lightning_fabric", "matplotlib", "kornia", "torch"}
    script = (
        f"import sys, superpoint_lib.cli as c; c.main(['-h']); print({heavy} & {{*sys.modules}})"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown
    assert shown.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: superpoint {name}" in capsys.readouterr().out


def test_evaluate_says_which_files_it_writes(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "r.txt becomes r.txt.json and r.txt.csv" in told


def test_wrong_usage_is_one_line_and_status_2(capsys):
    assert "no command 'walk'" in fails(["walk"], capsys, 2)
    assert "Unrecognized options: --zoom" in fails(["run", "--zoom"], capsys, 2)
    assert "--warps" in fails(["adapt", "--warps", "many"], capsys, 2)
    assert "PATH" in fails(["match", "a.png"], capsys, 2)
    assert "name an image" in fails(["extract"], capsys, 2)
    assert "no recipe 'soup': known are" in fails(["train", "--recipe", "soup"], capsys, 2)
    assert "go together" in fails(["train", "--profile", "quick"], capsys, 2)
    assert main([]) == 2


def test_failures_are_one_line_and_status_1(project, weights, capsys):
    assert "run this inside a clone" in fails(["run", "--profile", "quick"], capsys)
    assert "a.png" in fails(["match", "a.png", "b.png"], capsys)
    detector = ["--weights", weights["MagicPoint"]]
    assert "no folder nowhere" in fails(["adapt", "--images", "nowhere", *detector], capsys)
    assert "nowhere" in fails(["extract", "nowhere"], capsys)
    assert "nowhere" in fails(["evaluate", "sift", "--data", "nowhere"], capsys)
    assert "unwritten" in fails(["export", "--weights", "unwritten"], capsys)


def test_unexpected_failures_name_their_kind_and_show_more_on_demand(monkeypatch, capsys):
    def broken(_):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setitem(COMMANDS, "run", ("", broken))
    assert fails(["run"], capsys) == "superpoint run: ZeroDivisionError: division by zero"
    monkeypatch.setenv("SUPERPOINT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["run"])


@pytest.mark.parametrize(
    ("text", "told"), [((), "stopped"), (("stopped after step 7; saved",), "step 7; saved")]
)
def test_stopping_a_command_is_no_traceback(monkeypatch, capsys, text, told):
    def stopped(_):
        raise KeyboardInterrupt(*text)

    monkeypatch.setitem(COMMANDS, "train", ("", stopped))
    monkeypatch.setattr(cli.logging, "disable", lambda: None)  # it would last
    assert fails(["train"], capsys, 130).endswith(told)


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stopped", "arguments", "kept"),
    [
        ("paths.read_gray", ["extract", "pictures"], True),
        ("paths.read_gray", ["extract", "pictures/a.png"], False),
        ("adaptation.export_labels", ["adapt", "--images", "pictures"], True),
        ("pipeline.run_profile", ["run"], True),
        ("evaluation.hpatches.evaluate", ["evaluate", "orb", "--data", "scenes"], True),
        (
            "evaluation.hpatches.evaluate",
            ["evaluate", "orb", "--data", "scenes", "--no-resume"],
            False,
        ),
        (
            "evaluation.detection.evaluate_detectors_on_shapes",
            ["evaluate", "fast", "--data", "shapes"],
            False,
        ),
        ("paths.read_gray", ["match", "pictures/a.png", "pictures/b.png"], False),
        ("interop.export_onnx", ["export"], False),
    ],
)
def test_what_a_stopped_command_says_is_kept_is_kept(
    project, monkeypatch, capsys, stopped, arguments, kept
):
    for name in ("a.png", "b.png"):
        write_picture(project / "pictures" / name)
    write_sequence(project / "scenes" / "v_noise")
    monkeypatch.setattr(f"superpoint_lib.{stopped}", stop)
    monkeypatch.setattr(cli.logging, "disable", lambda: None)  # it would last
    told = f"superpoint {arguments[0]}: stopped"
    assert fails(arguments, capsys, 130) == (f"{told}; what was finished is kept" if kept else told)


def test_extract_writes_features_and_lists_what_it_cannot_read(project, weights, capsys):
    write_picture(project / "pictures" / "a.png")
    (project / "pictures" / "b.png").write_text("no picture")
    cv2.imwrite(str(project / "pictures" / "tiny.png"), np.zeros((8, 9), np.uint8))
    line = fails(
        ["extract", "pictures", "--output", "features", "--weights", weights["SuperPoint"]], capsys
    )
    assert "2 of 3 left out" in line
    assert "b.png" in line
    assert "tiny.png: image is too small" in line
    with np.load(project / "features" / "a.npz") as features:
        n = len(features["keypoints"])
        assert features["keypoints"].shape == (n, 2)
        assert features["keypoint_scores"].shape == (n,)
        assert features["descriptors"].shape == (n, 256)
        assert features["image_size"].tolist() == [80, 100]
        stored = SimpleNamespace(**features)
    matches, similarity = match(stored, stored)
    assert len(matches) > 0
    assert similarity.min() > 0.999


def test_a_name_that_is_no_text_does_not_end_an_extract(project, weights):
    write_picture(project / "pictures" / "z.png")
    try:
        os.link(project / "pictures" / "z.png", os.fsencode(project) + b"/pictures/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has no such names")
    command = [sys.executable, "-m", "superpoint_lib", "extract", "pictures", "--output", "out"]
    told = subprocess.run(
        [*command, "--weights", weights["SuperPoint"]],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=True,
    )
    assert b"caf\\udce9.npz: " in told.stdout
    assert (project / "out" / "z.npz").exists()


def test_an_interrupted_extract_leaves_no_half_file(project, weights, capsys, monkeypatch):
    def interrupted(path, **arrays):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    write_picture(project / "a.png")
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    fails(["extract", "a.png", "--output", "o", "--weights", weights["SuperPoint"]], capsys, 130)
    assert list((project / "o").iterdir()) == []


@pytest.mark.parametrize(("precision", "told"), [("float32", "float32"), ("bf16", "bfloat16")])
def test_extract_and_match_tell_what_they_computed_in(project, weights, capsys, precision, told):
    path = write_picture(project / "a.png")
    options = ["--weights", weights["SuperPoint"], "--precision", precision]
    assert main(list(map(str, ["extract", path, "--output", "features", *options]))) == 0
    assert f"keypoints, computed in {told}\n" in capsys.readouterr().out
    assert main(list(map(str, ["match", path, path, *options]))) == 0
    assert f"keypoints, computed in {told}, " in capsys.readouterr().out
    line = fails(["extract", path, *options[:3], "float16"], capsys, 2)
    assert "float16" in line


@pytest.mark.parametrize(
    ("options", "told"), [([], "float32"), (["--precision", "bf16"], "bfloat16")]
)
def test_evaluate_computes_in_float32_unless_asked_otherwise(weights, options, told):
    arguments = [str(weights["SuperPoint"]), *options]
    chosen = parse(evaluate.EvaluateOptions, "evaluate", arguments)
    extractor = evaluate._measured(chosen.extractors[0], chosen.precision).extractor
    assert extractor(np.zeros((32, 40), np.float32), TaskConfig()).computed_in == told


def test_extract_refuses_to_write_one_file_twice(project, weights, capsys):
    pictures = [write_picture(project / folder / "a.png") for folder in ("one", "two")]
    line = fails(["extract", *pictures, "--weights", weights["SuperPoint"]], capsys)
    assert "one/a.png" in line and "two/a.png" in line and "separate folders" in line


def test_extract_keeps_sub_folders(project, weights, capsys):
    for folder in ("v_wall", "i_door"):
        write_picture(project / "scenes" / folder / "1.png")
    assert main(["extract", "scenes", "--weights", str(weights["SuperPoint"])]) == 0
    written = sorted((project / "runs/features").rglob("*.npz"))
    assert [path.parent.name for path in written] == ["i_door", "v_wall"]


def test_extract_lists_what_it_cannot_read_and_goes_on(project, weights, capsys, monkeypatch):
    def read(path):
        if path.name == "b.png":
            raise PermissionError(f"not permitted: {path}")
        return read_gray(path)

    monkeypatch.setattr(paths, "read_gray", read)
    for name in ("a.png", "b.png", "c.png"):
        write_picture(project / "pictures" / name)
    (project / "pictures" / "c.png").write_bytes(b"no picture")
    arguments = ["extract", "pictures", "--weights", weights["SuperPoint"], "--output", "found"]
    line = fails(arguments, capsys)
    assert "2 of 3 left out" in line and "b.png" in line and "c.png" in line
    assert [path.name for path in (project / "found").iterdir()] == ["a.npz"]


def test_of_many_pictures_left_out_the_unreadable_come_first():
    unlabelled = [(Path(f"{i}.png"), "no label file") for i in range(30)]
    told = train._left_out([*unlabelled, (Path("torn.png"), "cannot be decoded")])
    assert told.startswith("left out: torn.png: cannot be decoded\nleft out: 0.png")
    assert told.endswith("left out: 21 more, the last 29.png: no label file\n")
    assert train._left_out([]) == "" and train._left_out(unlabelled[:2]).count("\n") == 2


def test_a_weight_file_may_have_an_at_in_its_name(project, weights):
    path = project / "me@lab.safetensors"
    path.write_bytes(Path(weights["SuperPoint"]).read_bytes())
    for name, scales, pyramid in (
        (str(path), (1.0,), ()),
        (f"{path}@1,1.5", (1.0, 1.5), ()),
        (f"{path}@1,1.5+0.7+0.5", (1.0, 1.5), (0.7, 0.5)),
    ):
        looks = {"scales": scales, "turned": False, "pyramid": pyramid}
        assert evaluate._model_and_looks(name)[1] == looks
    # So may the folder of a training, even if it looks like a bundled name.
    folder = project / "superpoint@2"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(path.read_bytes())
    model, settings = evaluate._model_and_looks(str(folder))
    assert settings["scales"] == (1.0,)
    state = load_weights(path).state_dict
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_match_draws_a_picture_and_needs_descriptors(project, weights, capsys):
    a, b = write_picture(project / "a.png", 0), write_picture(project / "b.png", 1)
    options = [a, b, "--output", "out/matches.png", "--weights"]
    assert main(list(map(str, ["match", *options, weights["SuperPoint"]]))) == 0
    assert "matches: out/matches.png" in capsys.readouterr().out
    assert cv2.imread("out/matches.png") is not None
    line = fails(["match", *options, weights["MagicPoint"]], capsys)
    assert "has no descriptors" in line


def test_match_refines_where_there_is_a_homography(project, capsys):
    from superpoint_lib.datasets import bundled_photos

    photo = np.rint(255 * bundled_photos("benchmark")["camera"]).astype(np.uint8)
    cv2.imwrite("a.png", photo)
    cv2.imwrite("b.png", np.roll(photo, 5, axis=1))
    arguments = ["match", "a.png", "b.png", "--refine", "--output", "out.png", "--table", "out.csv"]
    assert main(list(map(str, arguments))) == 0
    told = re.search(r"(\d+) matches, (\d+) of them confirmed and refined", capsys.readouterr().out)
    assert 50 < int(told[2]) <= int(told[1])
    assert cv2.imread("out.png") is not None
    head, *rows = (project / "out.csv").read_text().splitlines()
    assert (head, len(rows)) == ("x0,y0,x1,y1,similarity", int(told[2]))
    x0, y0, x1, y1, similarity = np.loadtxt(rows, delimiter=",").T
    assert np.median(np.hypot(x1 - x0 - 5, y1 - y0)) < 0.01
    assert all(re.fullmatch(r"-?\d+\.\d{4}", cell) for cell in rows[0].split(","))
    assert ((similarity > 0.5) & (similarity < 1.001)).all()
    assert main(list(map(str, [*arguments, "--max-keypoints", 2]))) == 0
    assert " matches, 0 of them confirmed" in capsys.readouterr().out  # two make no homography
    assert (project / "out.csv").read_text() == f"{head}\n"


def test_large_images_are_looked_at_smaller_and_told_of_in_pixels_of_the_file(project, capsys):
    from superpoint_lib.datasets import bundled_photos

    photo = np.rint(255 * bundled_photos("benchmark")["camera"]).astype(np.uint8)
    cv2.imwrite("half.png", photo)
    cv2.imwrite("whole.png", cv2.resize(photo, None, fx=2, fy=2))
    options = ["--longest", 512, "--output"]
    for name, told in (("half", ""), ("whole", ", looked at in 512 x 512 pixels")):
        arguments = ["extract", f"{name}.png", *options, "features"]
        assert main(list(map(str, arguments))) == 0
        assert capsys.readouterr().out.endswith(f"computed in float32{told}\n")
    half, whole = (np.load(f"features/{name}.npz") for name in ("half", "whole"))
    assert (half["image_size"].tolist(), whole["image_size"].tolist()) == ([512] * 2, [1024] * 2)
    offsets = whole["keypoints"][:, None] - (2 * half["keypoints"] + 0.5)
    nearest = offsets[np.linalg.norm(offsets, axis=-1).argmin(axis=0), np.arange(len(offsets[0]))]
    assert np.abs(np.median(nearest, axis=0)).max() < 0.05  # half a pixel, if forgotten
    assert np.median(np.linalg.norm(nearest, axis=-1)) < 0.5
    arguments = [
        "match",
        "half.png",
        "whole.png",
        "--refine",
        "--table",
        "m.csv",
        *options,
        "m.png",
    ]
    assert main(list(map(str, arguments))) == 0
    assert ", looked at in 512 x 512 and 512 x 512 pixels, " in capsys.readouterr().out
    x0, y0, x1, y1, _ = np.loadtxt("m.csv", delimiter=",", skiprows=1).T
    assert len(x0) > 100
    assert np.median(np.hypot(x1 - 2 * x0 - 0.5, y1 - 2 * y0 - 0.5)) < 0.05


@pytest.mark.parametrize(
    ("size", "longest", "reduced"),
    [
        ((300, 400), 400, (300, 400)),
        ((300, 400), 0, (300, 400)),
        ((300, 400), 200, (150, 200)),
        ((20, 4000), 1000, (16, 3200)),  # as small as a network takes them
        ((8, 4000), 1000, (8, 4000)),
    ],
)
def test_how_far_images_are_reduced(size, longest, reduced):
    image, to_file = features.reduce_image(np.zeros(size, np.float32), longest)
    assert image.shape == reduced
    corner = to_file @ [reduced[1] - 0.5, reduced[0] - 0.5, 1]
    assert corner / corner[2] == pytest.approx([size[1] - 0.5, size[0] - 0.5, 1])


def test_match_overwrites_nothing_of_its_own(project, weights, capsys):
    a, b = write_picture(project / "a.png", 0), write_picture(project / "b.png", 1)
    before = a.read_bytes()
    for options in (["--output", a], ["--output", "./b.png"], ["--table", a]):
        line = fails(["match", "a.png", b, *options, "--weights", weights["SuperPoint"]], capsys, 2)
        assert f"{options[0]} {options[1]} would overwrite".replace("./", "") in line
    options = ["--output", "m.png", "--table", "m.png"]
    line = fails(["match", a, b, *options], capsys, 2)
    assert "--table m.png would overwrite" in line
    assert a.read_bytes() == before and not (project / "m.png").exists()


def test_match_filters_as_the_library_does(project, weights, capsys):
    a, b = write_picture(project / "a.png", 0), write_picture(project / "b.png", 1)
    counts = []
    for options in ([], ["--ratio", 0.8], ["--min-similarity", 1]):
        arguments = ["match", a, b, *options, "--weights", weights["SuperPoint"]]
        assert main(list(map(str, arguments))) == 0
        counts.append(int(re.search(r"(\d+) matches", capsys.readouterr().out)[1]))
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize(
    "option", [["--ratio", 5], ["--ratio", 0], ["--min-similarity", 2], ["--min-similarity", "nan"]]
)
def test_match_refuses_filters_that_pass_all_or_nothing(project, capsys, option):
    assert f"{option[0]} must be" in fails(["match", "a.png", "b.png", *option], capsys, 2)


def test_the_version_is_told(capsys):
    from superpoint_lib import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"superpoint {__version__}\n"
    told = subprocess.run(
        [sys.executable, "-m", "superpoint_lib", "--version"], capture_output=True, text=True
    )
    assert told.stdout == f"superpoint {__version__}\n"


def test_labels_without_any_keypoint_are_no_success(project, weights, capsys):
    write_picture(project / "pictures" / "a.png")
    arguments = ["adapt", "--images", "pictures", "--weights", weights["SuperPoint"]]
    arguments += ["--warps", 2, "--output", "labels"]
    assert main(list(map(str, [*arguments, "--threshold", 1]))) == 1
    assert "superpoint adapt: no keypoint found in any picture" in capsys.readouterr().err
    for option, value in (("--threshold", 2), ("--threshold", "nan"), ("--sizes", "nan")):
        assert option[2:] in fails([*arguments, option, value], capsys, 2)
    assert "16 px or more" in fails([*arguments, "--sizes", 0.01], capsys, 2)


def test_export_writes_an_onnx_file(project, weights, capsys):
    arguments = ["export", "--weights", weights["SuperPoint"], "--output", "model.onnx"]
    for options, names in (
        ([], ["logits", "descriptors"]),
        (["--max-keypoints", 7], ["keypoints", "keypoint_scores", "descriptors"]),
    ):
        assert main(list(map(str, [*arguments, *options]))) == 0
        assert capsys.readouterr().out == "model.onnx\n"
        session = onnxruntime.InferenceSession(project / "model.onnx")
        assert [output.name for output in session.get_outputs()] == names
        told = session.get_modelmeta().custom_metadata_map
        assert told["weights"] == str(weights["SuperPoint"])
        assert told["made_by"] == f"superpoint_lib {__version__}"
        assert "0..1" in told["input"]
        assert told["output"].startswith(names[0])


def test_evaluate_writes_a_table_and_files_with_their_command(project, capsys, monkeypatch):
    scene = project / "sequences" / "v_noise"
    for number in (1, 2, 3, 4, 5, 6):
        write_picture(scene / f"{number}.png")
        if number > 1:
            np.savetxt(scene / f"H_1_{number}", np.eye(3))
    arguments = ["evaluate", "orb", "--data", "sequences", "--output", "table.json"]
    assert main(arguments) == 0
    assert "| orb |" in capsys.readouterr().out
    assert "superpoint evaluate orb" in (project / "table.json").read_text()
    assert (project / "table.csv").is_file()
    assert main([*arguments, "--against", "sift"]) == 2
    assert "superpoint evaluate: --against sift" in capsys.readouterr().err
    assert main(["evaluate", "sift", *arguments[1:], "--against", "orb"]) == 0
    assert "More than orb, pair by pair" in capsys.readouterr().out
    for looks in ("1,x", "0", "1+nan"):
        assert main(["evaluate", f"superpoint@{looks}", *arguments[2:]]) == 2
        told = capsys.readouterr().err
        assert f"superpoint evaluate: superpoint@{looks}: after @ come scales" in told
    assert main([*arguments, "--orders", "3"]) == 0
    kept = json.loads((project / "table.json").read_text())
    assert kept["protocol"]["ransac"]["orders"] == 3
    looks = ["superpoint@1,1.5", "superpoint@turned", "superpoint@1+0.5:refined"]
    assert main(["evaluate", *looks, *arguments[2:]]) == 0
    told = capsys.readouterr().out
    assert all(f"| {name} |" in told for name in looks)
    # Kept: each of the three, ORB, in one order and in three, and SIFT.
    kept = list((project / "runs" / "evaluated").rglob("*.jsonl"))
    assert len(kept) == 6
    table = (project / "table.csv").read_text()
    monkeypatch.setattr("superpoint_lib.evaluation.hpatches.look_at", None)
    assert main(["evaluate", *looks, *arguments[2:]]) == 0
    assert "kept in runs/evaluated: 1 for superpoint@1,1.5, 1 for" in capsys.readouterr().out
    assert (project / "table.csv").read_text() == table
    assert main(["evaluate", *looks, *arguments[2:], "--no-resume"]) == 1


def test_what_is_kept_belongs_to_a_network_and_not_to_its_weights_alone(project):
    from superpoint_lib.checkpoints import save_weights
    from superpoint_lib.config import to_dict
    from superpoint_lib.model import MagicPoint, ModelConfig

    for eps in (1e-5, 1e-3):
        config = ModelConfig(channels=(8, 8, 8, 8), head_channels=8, norm_eps=eps)
        torch.manual_seed(0)
        save_weights(f"{eps}.safetensors", MagicPoint(config).state_dict(), to_dict(config), {})
    first, second = (evaluate._measured(f"{eps}.safetensors").facts for eps in (1e-5, 1e-3))
    assert first["weights"] == second["weights"]
    assert first != second


@pytest.mark.parametrize("name", ["harris:refined", "random:refined", "magicpoint:refined"])
def test_what_has_no_matches_is_not_refined(project, capsys, name):
    scene = project / "sequences" / "v_noise"
    for number in (1, 2):
        write_picture(scene / f"{number}.png")
    np.savetxt(scene / "H_1_2", np.eye(3))
    line = fails(["evaluate", name, "--data", "sequences"], capsys, 2)
    assert f"{name}: {name.removesuffix(':refined')} has no descriptors" in line


def test_a_file_may_be_named_as_if_it_were_refined(project):
    (project / "odd:refined").touch()
    (project / "folder:refined").mkdir()
    for name in ("odd:refined", "folder:refined"):
        assert evaluate._split_refined(name) == (name, False)
    assert evaluate._split_refined("sift:refined") == ("sift", True)


@pytest.mark.parametrize("name", ["shi_tomasi", "fast"])
def test_the_protocol_suppresses_classical_detectors(name):
    image = np.zeros((40, 60), np.float32)
    image[20, [20, 24]] = 1.0
    extractor = evaluate._measured(name).extractor
    # 4 px apart: within radius 4, while boxes of side 4 do not overlap.
    for nms, radius, kept in (("radius", 4, [20]), ("radius", 3, [20, 24]), ("box", 4, [20, 24])):
        features = extractor(image, TaskConfig(nms=nms, nms_radius=radius))
        assert features.keypoints[:, 0].tolist() == kept, (nms, radius)


def test_data_says_what_is_there(project, capsys):
    assert main(["data"]) == 0
    assert "hpatches        not there" in capsys.readouterr().out
    assert main(["data", "fetch"]) == 1
    shown = capsys.readouterr()
    assert "ln -s" in shown.out
    assert "must be linked by hand" in shown.err

    write_picture(project / "data" / "coco" / "train2017" / "a.png")
    (project / "data" / "coco" / "test2017").mkdir()
    (project / "data" / "hpatches").symlink_to(project / "elsewhere")
    assert main(["data", "check"]) == 1
    shown = capsys.readouterr()
    assert "coco/train2017  1 pictures" in shown.out
    assert "leads nowhere" in shown.out
    assert "coco/test2017, hpatches" in shown.err


def test_train_starts_from_a_recipe_and_options_override_it(project, monkeypatch):
    from superpoint_lib import training

    calls = []

    def record(config, run_dir, resume):
        calls.append((config, run_dir, resume))
        return training.TrainResult(torch.nn.Identity(), [], run_dir / "weights", [])

    monkeypatch.setattr(training, "train", record)
    name, recipe = next(iter(training.RECIPES.items()))
    assert main(["train", "--recipe", name, "--steps", "7", "--no-resume"]) == 0
    ((config, run_dir, resume),) = calls
    assert config == replace(recipe, steps=7)
    assert (run_dir, resume) == (Path("runs") / "train" / name, False)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The real notebooks and profiles as the working directory, and no runs yet."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """The configurations that `train` is called with, instead of training them."""
    from superpoint_lib import training

    configs = []

    def record(config, run_dir, resume):
        configs.append(config)
        return training.TrainResult(torch.nn.Identity(), [], run_dir / "weights", [])

    monkeypatch.setattr(training, "train", record)
    return configs


def test_a_recipe_is_trained_without_the_packages_of_the_notebooks(trained, project, monkeypatch):
    for name in ("nbformat", "nbclient", "papermill", "superpoint_lib.pipeline"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train", "--recipe", "magicpoint-synthetic", "--steps", "3"]) == 0
    assert [config.steps for config in trained] == [3]


def finish(checkout, profile, *stages):
    """Make stages of a profile look as if they had been run to their end."""
    for stage in stages:
        folder = checkout / "runs" / profile / stage
        folder.mkdir(parents=True)
        (folder / "run.json").touch()


def notebook_config(stage):
    """What a notebook trains with the parameters of a stage, by its own code."""
    from types import SimpleNamespace

    from superpoint_lib import config, training
    from superpoint_lib.pipeline import notebook_defaults

    values = notebook_defaults(stage.notebook) | stage.parameters
    # As the command leaves them, which names no folder of its own making.
    folder = Path(values["output"])
    names = {**vars(config), **vars(training), **values, "folder": folder}
    if stage.notebook.stem == "02_magicpoint_training":
        wanted = ["config"]
    else:
        names["image_folder"] = values["images"]
        first = SimpleNamespace(weights_path=folder / "stage1" / "weights.safetensors")
        names["detector"] = first if values["detector_steps"] else None
        wanted = ["label_folder", "samples", "base", "both_heads", "begin", "stage2"]
    cells = code_cells(read(stage.notebook))
    statements = [one for cell in cells for one in ast.parse(cell.source).body]
    for name in wanted:
        (code,) = (
            ast.unparse(one)
            for one in statements
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name
        )
        exec(code, names)
    return names[wanted[-1]]


@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_train_trains_what_the_notebooks_of_a_profile_do(checkout, profile):
    from superpoint_lib.pipeline import plan

    stages = [stage for stage in plan(profile) if stage.notebook.stem in train.TRAININGS]
    assert len(stages) == (4 if profile == "full" else 2)
    for stage in stages:
        start = train.TrainStart(profile=profile, stage=stage.name)
        assert train._train_config(start, train._train_stage(start)[0]) == notebook_config(stage)


def test_train_takes_a_stage_of_a_profile(checkout, trained):
    finish(checkout, "standard", "02_magicpoint_training", "03_homographic_adaptation")
    own = checkout / "runs" / "standard" / "05_staged_training" / "stage1"
    own.mkdir(parents=True)
    (own / "weights.safetensors").touch()
    assert main(["train", "--profile", "standard", "--stage", "05", "--batch-size", "3"]) == 0
    (config,) = trained
    assert (config.images, config.batch_size) == (("auto",), 3)
    assert config.labels == ("runs/standard/03_homographic_adaptation/labels",)
    assert config.init == "runs/standard/05_staged_training/stage1/weights.safetensors"
    assert (config.model, config.views, config.descriptor_weight) == ("superpoint", 2, 1.0)
    # A recipe of one's own is for what the notebook does not set.
    other = ["--recipe", "superpoint-sturdy", "--profile", "standard", "--stage", "05"]
    assert main(["train", *other]) == 0
    assert (trained[1].repeatability_reach, trained[1].steps) == (1, 4500)


def test_train_names_the_stages_to_choose_from(checkout, capsys):
    first, second, third = (f"05_staged_training{end}" for end in ("", "_round2", "_round3"))
    several = fails(["train", "--profile", "full", "--stage", "05"], capsys, 2)
    assert several.endswith(
        f"--stage 05 is several trainings of the profile full: choose one of {first}, {second}, "
        f"{third}"
    )
    for stage in ("99", "06", "05_staged"):
        none = fails(["train", "--profile", "full", "--stage", stage, "--help"], capsys, 2)
        assert none.endswith(
            f"--stage {stage} is no training of the profile full: choose one of "
            f"02_magicpoint_training, {first}, {second}, {third}"
        )


def test_train_says_what_to_run_before_a_stage(checkout, trained, capsys):
    full = ["train", "--profile", "full", "--stage", "05_staged_training"]
    command = "run this first: superpoint run --profile full --only"
    line = fails(full, capsys, 2)
    assert f"{command} 02_magicpoint_training,03_homographic_adaptation (or" in line
    finish(checkout, "full", "03_homographic_adaptation")
    assert f"{command} 02_magicpoint_training (or" in fails(full, capsys, 2)
    # What is named in its place needs no stage; help needs none either.
    assert main([*full, "--init", "superpoint"]) == 0
    with pytest.raises(SystemExit) as stop:
        main([*full, "--help"])
    assert stop.value.code == 0
    assert "usage: superpoint train" in capsys.readouterr().out
    finish(checkout, "full", "02_magicpoint_training")
    assert main(full) == 0
    # Stage 2 of the notebook goes on from its stage 1.
    standard = ["train", "--profile", "standard", "--stage", "05"]
    finish(checkout, "standard", "02_magicpoint_training", "03_homographic_adaptation")
    line = fails(standard, capsys, 2)
    assert "superpoint run --profile standard --only 05_staged_training (or" in line
    # Where it has begun, it needs what it has made itself.
    begun = checkout / "runs" / "train" / "standard-05"
    begun.mkdir(parents=True)
    (begun / "checkpoint.json").touch()
    assert main(standard) == 0
    assert "--only" in fails([*standard, "--no-resume"], capsys, 2)
    assert len(trained) == 3


def test_adapt_writes_labels(project, weights, capsys):
    write_picture(project / "pictures" / "a.png")
    arguments = ["adapt", "--images", "pictures", "--output", "labels", "--warps", "2"]
    size = ["--height", "80", "--width", "96", "--weights", str(weights["MagicPoint"])]
    assert main([*arguments, *size]) == 0
    assert (project / "labels" / "a.npz").is_file()
    assert main([*arguments, *size]) == 0  # all there already


def test_adapt_fails_where_it_labels_nothing(project, weights, capsys, monkeypatch):
    folder = project / "pictures"
    folder.mkdir()
    arguments = ["adapt", "--images", "pictures", "--weights", weights["MagicPoint"]]
    assert main(list(map(str, arguments))) == 1
    assert "nothing labelled: no pictures in pictures" in capsys.readouterr().err
    (folder / "a.png").write_text("no picture")
    assert main(list(map(str, arguments))) == 1
    shown = capsys.readouterr()
    assert "a.png" in shown.out
    assert "nothing labelled: every picture was left out" in shown.err
    # Another process may have labelled its share.
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(list(map(str, arguments))) == 0


def test_evaluate_measures_detectors_on_drawn_shapes(project, capsys):
    arguments = ["evaluate", "harris", "fast", "--data", "shapes", "--images-per-primitive", "1"]
    assert main([*arguments, "--output", "shapes.json"]) == 0
    found = json.loads((project / "shapes.json").read_text())
    assert found["command"].startswith("superpoint evaluate harris fast --data shapes")
    assert list(found["clean"]["detectors"]) == list(found["noise"]["detectors"])
    assert "average precision at 4 px" in capsys.readouterr().out


def test_evaluate_on_shapes_looks_at_several_scales_too(project):
    names = ["magicpoint-synthetic", "magicpoint-synthetic@1", "magicpoint-synthetic@1,2"]
    arguments = ["evaluate", *names, "--data", "shapes", "--images-per-primitive", "1"]
    assert main([*arguments, "--output", "shapes.json"]) == 0
    found = json.loads((project / "shapes.json").read_text())["clean"]["detectors"]
    plain, same, two = (found[name] for name in names)
    assert plain == same != two


def test_evaluate_on_shapes_has_defaults_of_its_own(project):
    arguments = ["evaluate", "--data", "shapes", "--images-per-primitive", "1"]
    assert main([*arguments, "--output", "shapes.json"]) == 0
    names = ["magicpoint-synthetic", "magicpoint", "harris", "shi_tomasi", "fast"]
    assert list(json.loads((project / "shapes.json").read_text())["clean"]["detectors"]) == names


@pytest.mark.parametrize("name", ["sift", "rootsift", "orb", "random", "fast:refined"])
def test_evaluate_on_shapes_takes_detectors_only(project, capsys, name):
    line = fails(["evaluate", "harris", name, "--data", "shapes"], capsys, 2)
    assert f"shapes: {name}" in line
    assert "harris, shi_tomasi, fast" in line


@pytest.mark.parametrize(
    "option",
    [("--protocol", "rpautrat"), ("--against", "fast"), ("--orders", "2"), ("--no-resume",)],
)
def test_evaluate_on_shapes_refuses_what_it_would_ignore(project, capsys, option):
    line = fails(["evaluate", "fast", "--data", "shapes", *option], capsys, 2)
    assert option[0] in line


def test_evaluate_on_sequences_refuses_what_is_for_shapes(project, capsys):
    line = fails(["evaluate", "orb", "--data", "scenes", "--images-per-primitive", "2"], capsys, 2)
    assert "--images-per-primitive is for --data shapes" in line


def test_export_releases_a_finished_training(project, capsys):
    small = ["--channels", "8", "8", "8", "8", "--head-channels", "8", "--height", "32"]
    steps = ["--width", "32", "--steps", "1", "--batch-size", "2", "--run-dir", "run"]
    assert main(["train", *small, *steps]) == 0
    arguments = ["export", "--weights", "run", "--output", "out.safetensors"]
    assert main([*arguments, "--learnt-from", "drawn shapes"]) == 0
    released = load_weights(project / "out.safetensors")
    assert released.config["norm"] == "none"
    assert released.metadata["learnt_from"] == "drawn shapes"
    assert released.metadata["training"]["steps"] == 1
    assert main([*arguments, "--blend", "out.safetensors", "--blend-share", "0.3"]) == 0
    assert load_weights(project / "out.safetensors").metadata["blend_share"] == 0.3
    assert main([*arguments, "--sharpen", "2"]) == 0
    assert load_weights(project / "out.safetensors").metadata["sharpened"] == 2
    capsys.readouterr()
    (project / "begun").mkdir()
    missing = ["export", "--weights", "begun", "--output", "out.safetensors"]
    assert "finish the training of begun" in fails(missing, capsys)


def test_export_stores_a_weight_file_anew(project, weights, capsys):
    path = str(weights["SuperPoint"])
    arguments = ["export", "--weights", path, "--output", "small.safetensors"]
    assert main([*arguments, "--stored-as", "int8"]) == 0
    given, small = load_weights(path), load_weights(project / "small.safetensors")
    assert small.config == given.config and small.metadata == given.metadata
    for key, value in given.state_dict.items():
        assert (small.state_dict[key] - value).abs().max() <= 0.004 * value.abs().max() + 1e-4
    missing = ["export", "--weights", "nothing", "--output", "out.safetensors"]
    assert "no weight file nothing" in fails(missing, capsys)
    assert "--blend and --sharpen take" in fails([*arguments, "--blend", path], capsys)
    assert "--blend and --sharpen take" in fails([*arguments, "--sharpen", "2"], capsys)


def test_export_never_writes_over_what_it_exports(project, weights, capsys):
    folder = project / "run"
    folder.mkdir()
    kept = shutil.copy(weights["SuperPoint"], folder / "weights.safetensors")
    before = Path(kept).read_bytes()
    for source in ("run", "run/weights.safetensors"):
        arguments = ["export", "--weights", source, "--output", "run/../run/weights.safetensors"]
        assert "holds the weights to export" in fails(arguments, capsys)
    assert Path(kept).read_bytes() == before


def test_an_unknown_ending_and_a_missing_gpu_are_refused(project, weights, capsys, monkeypatch):
    line = fails(["export", "--weights", weights["SuperPoint"], "--output", "model.xyz"], capsys)
    assert ".onnx or .safetensors" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_picture(project / "a.png")
    line = fails(["match", "a.png", "a.png", "--device", "cuda"], capsys)
    assert "no CUDA GPU" in line


@pytest.mark.parametrize("device", ["foo", "mps", "cuda:7"])
def test_a_device_that_is_not_here_is_named_once_with_those_that_are(
    project, weights, capsys, monkeypatch, device
):
    for kind in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    for name in ("a.png", "b.png"):
        write_picture(project / "pictures" / name)
    for arguments in (
        ["extract", "pictures", "--weights", weights["SuperPoint"]],
        ["evaluate", "superpoint", "--data", "pictures"],
        ["adapt", "--images", "pictures"],
        ["train"],
    ):
        line = fails([*arguments, "--device", device], capsys)
        assert f"device {device}: " in line and line.endswith("choose cpu or auto")
        assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--threshold", ["-1"]),
        ("--threshold", ["1.5"]),
        ("--threshold", ["nan"]),
        ("--max-keypoints", ["-1"]),
        ("--nms-radius", ["-2"]),
        ("--scales", []),
        ("--scales", ["nan"]),
        ("--scales", ["1", "0"]),
        ("--pyramid", ["inf"]),
        ("--pyramid", ["-0.5"]),
    ],
)
def test_a_wrong_option_is_not_blamed_on_the_pictures(project, capsys, option, values):
    for name in ("a.png", "b.png"):
        write_picture(project / "pictures" / name)
    line = fails(["extract", "pictures", option, *values], capsys, 2)
    assert line.startswith("superpoint extract: ") and option in line and ".png" not in line


@pytest.mark.parametrize("arguments", [["orb"], ["orb", "sift", "--against", "orb"]])
def test_evaluate_keeps_earlier_results_where_it_measures_nothing(project, capsys, arguments):
    for scene in "abcde":
        write_sequence(project / "scenes" / f"v_{scene}")
        (project / "scenes" / f"v_{scene}" / "2.png").write_text("no picture")
    (project / "kept.json").write_text("earlier")
    (project / "kept.csv").write_text("earlier")
    main(["evaluate", *arguments, "--data", "scenes", "--output", "kept.json"])
    told = capsys.readouterr().err.splitlines()[-1]  # behind the progress bar
    assert "superpoint evaluate: nothing measured: " in told and "v_a/2.png" in told
    assert "v_c/2.png" in told and told.endswith("; and 2 more")
    assert [(project / f"kept.{kind}").read_text() for kind in ("json", "csv")] == ["earlier"] * 2


@pytest.mark.parametrize("name", ["sfit", "sfit@1,2", "sfit:refined"])
def test_a_misspelt_extractor_is_told_with_all_names_before_a_benchmark_is_made(
    project, capsys, name
):
    line = fails(["evaluate", name], capsys)
    assert "no weight file sfit" in line and "superpoint-open" in line
    assert all(known in line for known in ("sift", "rootsift", "orb", "shi_tomasi", "random"))
    assert not (project / "runs").exists()
    line = fails(["evaluate", "sfit", "--data", "shapes"], capsys)
    assert "shi_tomasi" in line and "orb" not in line


@pytest.mark.parametrize(
    ("options", "protocol"),
    [([], "warped"), (["--protocol", "eric"], "eric")],
)
def test_warped_pairs_are_measured_as_such_unless_asked_otherwise(project, options, protocol):
    write_picture(project / "data" / "coco" / "test2017" / "a.png")
    arguments = ["evaluate", "sift", "--data", "warped", *options, "--output", "table.json"]
    assert main(arguments) == 0
    assert json.loads((project / "table.json").read_text())["protocol_name"] == protocol


def test_pairs_are_not_made_of_an_empty_folder(project, capsys):
    folder = project / "data" / "coco" / "test2017"
    folder.mkdir(parents=True)
    line = fails(["evaluate", "orb", "--data", "warped"], capsys)
    assert f"no pictures in {folder}" in line and "remove the folder" in line


@pytest.mark.parametrize("number", ["0", "-3"])
def test_shapes_are_not_measured_on_no_pictures(project, capsys, number):
    arguments = ["evaluate", "fast", "--data", "shapes", "--images-per-primitive", number]
    line = fails(arguments, capsys, 2)
    assert f"--images-per-primitive must be at least 1, got {number}" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "fast", "--data", "shapes", "--output"],
        ["evaluate", "orb", "--output"],
        ["match", "a.png", "b.png", "--output"],
        ["match", "a.png", "b.png", "--table"],
        ["export", "--output"],
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(project, capsys, arguments):
    # Of the weights or the pictures nothing is read: there are none.
    ending = ".onnx" if arguments[0] == "export" else ".png"
    (project / f"folder{ending}").mkdir()
    (project / "file").touch()
    (project / "nowhere").symlink_to(project / "gone")
    command = f"superpoint {arguments[0]}: {arguments[-1]}"
    for name in ("folder", "file/below/out", "nowhere/out"):
        line = fails([*arguments, f"{name}{ending}"], capsys, 2)
        why = f" {name}{ending} is a folder" if name == "folder" else f"{name.split('/')[0]} is no"
        assert line.startswith(command) and why in line and "name a" in line
    assert sorted(path.name for path in project.iterdir()) == sorted(
        [f"folder{ending}", "file", "nowhere", "notebooks", "pyproject.toml"]
    )


def test_a_folder_that_takes_no_files_is_told_before_the_work(project, capsys, monkeypatch):
    monkeypatch.setattr(shared.os, "access", lambda path, mode: False)
    line = fails(["evaluate", "orb", "--output", "deep/out.json"], capsys, 2)
    assert "--output deep/out.json: . is not to be written to" in line


def test_results_beside_a_folder_of_their_name_are_refused(project, capsys):
    (project / "out.csv").mkdir()
    assert "out.csv is a folder" in fails(["evaluate", "orb", "--output", "out.json"], capsys, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "a.png", "--output"],
        ["adapt", "--images", "pictures", "--output"],
        ["run", "--run-dir"],
        ["train", "--run-dir"],
    ],
)
def test_a_file_where_a_folder_is_wanted_is_refused(project, capsys, arguments):
    write_picture(project / "a.png")
    line = fails([*arguments, "a.png"], capsys, 2)
    command = f"superpoint {arguments[0]}: {arguments[-1]}"
    assert line == f"{command} a.png is a file: name a folder"


@pytest.mark.parametrize("name", ["matches", "matches.xyz", ".png", "matches.pgf"])
def test_match_refuses_endings_it_cannot_draw(project, capsys, name):
    line = fails(["match", "a.png", "b.png", "--output", name], capsys, 2)
    assert f"--output {name}: choose a name that ends in" in line and ".png" in line


def test_a_figure_that_fails_leaves_the_earlier_one(project, weights, capsys, monkeypatch):
    from superpoint_lib.plotting.style import Picture

    def half(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Picture, "savefig", half)
    picture = write_picture(project / "a.png")
    (project / "out.png").write_text("earlier")
    arguments = ["match", picture, picture, "--output", "out.png"]
    assert "disk full" in fails([*arguments, "--weights", weights["SuperPoint"]], capsys)
    assert (project / "out.png").read_text() == "earlier"
    assert not list(project.glob(".out*"))


@pytest.mark.parametrize(
    ("output", "options", "told"),
    [
        ("x.onnx", ["--sharpen", "2", "--blend", "superpoint"], ["--sharpen", "--blend"]),
        ("x.onnx", ["--stored-as", "int8", "--learnt-from", "x"], ["--stored-as", "--learnt-from"]),
        ("x.onnx", ["--blend-share", "0.3"], ["--blend-share"]),
        ("x.onnx", ["--threshold", "0.1"], ["--threshold", "--max-keypoints"]),
        ("x.safetensors", ["--height", "240", "--width", "320"], ["--height", "--width"]),
        ("x.safetensors", ["--max-keypoints", "9"], ["--max-keypoints"]),
        ("x.safetensors", ["--blend-share", "0.3"], ["--blend-share", "--blend"]),
    ],
)
def test_export_refuses_what_it_would_ignore(project, capsys, output, options, told):
    line = fails(["export", "--output", output, *options], capsys, 2)
    assert all(f"{option}" in line for option in told)
    assert not (project / output).exists()


def test_match_names_the_picture_that_is_too_small(project, weights, capsys):
    write_picture(project / "a.png")
    cv2.imwrite(str(project / "tiny.png"), np.zeros((8, 9), np.uint8))
    line = fails(["match", "a.png", "tiny.png", "--weights", weights["SuperPoint"]], capsys)
    assert "tiny.png: image is too small" in line
