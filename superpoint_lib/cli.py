"""The command line: ``superpoint <command> --help``.

Each command's options come from the same dataclasses that the library and the notebooks use. A
command imports what it needs when it is called, so that help is quick. Every failure prints one
line and exits with 1, a wrong usage with 2; ``SUPERPOINT_TRACEBACK=1`` shows where it came from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar

import tyro
from tyro.conf import Positional

from superpoint_lib import __version__
from superpoint_lib.memory import keep_freed_memory

if TYPE_CHECKING:
    import numpy as np

    from superpoint_lib.evaluation.detection import Detector
    from superpoint_lib.evaluation.hpatches import Extractor
    from superpoint_lib.evaluation.kept import KeptRecords
    from superpoint_lib.evaluation.protocols import ProtocolConfig
    from superpoint_lib.extraction import Features
    from superpoint_lib.model import MagicPoint, Precision
    from superpoint_lib.pipeline import Stage
    from superpoint_lib.training import TrainConfig

T = TypeVar("T")


# Neither publisher gives checksums, so nothing is downloaded unchecked: the links are the reader's.
HOW_TO_GET = """
MS-COCO   https://cocodataset.org (2017 train and test images), then
          ln -s /where/coco/is {folder}/coco
HPatches  https://github.com/hpatches/hpatches-dataset (full image sequences), then
          ln -s /where/hpatches-sequences-release/is {folder}/hpatches"""


PAIR_EXTRACTORS = ("superpoint", "sift", "orb")
#: Behind the name of an extractor: with its matches refined.
REFINED = ":refined"
#: The notebooks that train a network with their parameters, and what they set besides.
TRAININGS: dict[str, dict[str, Any]] = {
    "02_magicpoint_training": {},
    "05_staged_training": {"model": "superpoint", "data": "photos", "views": 2, "log_every": 20},
}
SHAPES_DETECTORS = ("magicpoint-synthetic", "magicpoint", "harris", "shi_tomasi", "fast")


class UsageError(Exception):
    """Options that do not hold together; the message is one line."""


class CommandError(Exception):
    """What was asked cannot be done; the message is one line."""


@dataclass(frozen=True)
class RunOptions:
    """Run the notebooks of a profile in order and collect the figures they reach."""

    profile: str = "quick"
    """A file in notebooks/profiles, without its ending: quick, standard or full."""
    only: str = ""
    """Numbers or names of the notebooks to run, such as 02,03; all by default."""
    resume: bool = False
    """Keep notebooks that finished with the same code, parameters and inputs."""
    run_dir: Path | None = None
    """Folder of the run; runs/<profile> by default."""
    cell_timeout: int = 6 * 3600
    """Seconds after which a cell counts as failed."""


@dataclass(frozen=True)
class TrainStart:
    """Where the training configuration starts from; single options override it."""

    recipe: str = ""
    """A named configuration: magicpoint-synthetic, magicpoint-adapted, superpoint, and those that
    go on from there (superpoint_lib.training.RECIPES; an unknown name lists them all)."""
    profile: str = ""
    """A profile of notebooks: train as the notebook of --stage does in it. What the notebook does
    not set comes from the recipe, if one is given, else from the one that the profile names."""
    stage: str = ""
    """Number or name of the notebook to take from --profile: 02, or 05, of which this is the
    training of both heads; 05_staged_training_round2 where a profile runs it again."""


@dataclass(frozen=True)
class TrainRun:
    """Where a training goes."""

    run_dir: Path | None = None
    """Folder for checkpoints, history and weights; runs/train/<recipe>, or
    <profile>-<stage>, by default."""
    resume: bool = True
    """Go on from the last checkpoint in the folder."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate extractors on HPatches (repeatability, homography accuracy, matching, mAP), or on
    drawn shapes (average precision, localisation error)."""

    extractors: Positional[tuple[str, ...]] = ()
    """Bundled names, weight files, OpenCV's sift, rootsift, orb, fast, harris, shi_tomasi, or
    random; by default superpoint, sift and orb. superpoint@1,1.5 looks at each image at the scales
    1 and 1.5, superpoint@1,1.5,turned at each of them also turned by every quarter,
    superpoint@1+0.7+0.5 in a pyramid of images made smaller. superpoint:refined, sift:refined and
    so on refine their matches in both images. With --data shapes: not sift, rootsift, orb, random
    and :refined; by default harris, shi_tomasi, fast and both MagicPoints."""
    data: str = "auto"
    """Folder of HPatches sequences; auto: data/hpatches if there, else the mini benchmark; warped:
    many small warped pairs, to choose between trainings; warped-hard: the same with more blur,
    noise, turn and zoom; warped-zoomed: pairs that zoom and do nothing else; shapes: detectors on
    drawn shapes, with and without noise."""
    protocol: str = ""
    """How to measure: rpautrat (the default), rpautrat-box, eric or gluefactory; warped is the
    default for --data warped, warped-hard and warped-zoomed. Not for shapes."""
    orders: int = 1
    """RANSAC gets the matches of a pair in so many random orders, and homography figures are means
    over them, apart from the luck of one draw; 1: in the order of their keypoints. Not for
    shapes."""
    against: str = ""
    """One of the extractors: also tell what the others gain on it, pair by pair. Not for shapes."""
    images_per_primitive: int = 200
    """Pictures drawn of each primitive, with --data shapes."""
    precision: Literal["auto", "bf16", "float32"] = "float32"
    """What the networks compute in; auto: bfloat16 where that is faster. float32 gives the same
    figures everywhere, up to rounding."""
    device: str = "auto"
    """cpu, cuda, mps and so on; auto: the CUDA GPU where there is one, else the processor."""
    resume: bool = True
    """Take what was measured before of the same weights and images by the same code, of a command
    that was stopped, or of another; it is kept in runs/evaluated. --no-resume neither takes nor
    keeps. Not for shapes."""
    output: Path = Path("runs/evaluation.json")
    """Where the results go: this name with the ending .json, and beside it, with .csv, a table of
    all pairs; r.txt becomes r.txt.json and r.txt.csv. With --data shapes: this very file, alone."""


@dataclass(frozen=True)
class ExtractorOptions:
    """How keypoints are found."""

    weights: str = "superpoint"
    """A bundled name or the path of a weight file."""
    max_keypoints: int = 1000
    """Most keypoints for an image, best first."""
    threshold: float = 0.005
    """Least score of a keypoint, in [0, 1]."""
    nms_radius: int = 4
    """Radius of non-maximum suppression, in pixels."""
    subpixel: bool = True
    """Refine keypoints by a soft-argmax."""
    device: str = "auto"
    """cpu, cuda, mps and so on; auto: the CUDA GPU where there is one, else the processor."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """What the network computes in; auto: bfloat16 where that is faster, else float32."""
    longest: int = 1600
    """Reduce images whose longer side has more pixels to that many: time and memory grow with the
    area. What is written stays in pixels of the file, turned upright as its orientation tag says.
    0: never."""
    scales: tuple[float, ...] = (1.0,)
    """Look at each image at these scales and keep what they agree on: 1 1.5 places keypoints
    better, in three times the time."""
    turned: bool = False
    """Look at each image turned by each quarter too: keypoints better placed, in four times the
    time."""
    pyramid: tuple[float, ...] = ()
    """Find keypoints in copies of each image scaled by these factors, too: 0.7 0.5 matches images
    of which one was taken up to two and a half times as near, in less than twice the time."""

    def __post_init__(self) -> None:
        # tyro makes a wrong usage of it; later, every single picture would seem to be at fault.
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold must be in 0..1, got {self.threshold}")
        for key in ("max_keypoints", "nms_radius", "longest"):
            if getattr(self, key) < 0:
                raise ValueError(f"{_option(key)} must be 0 or more, got {getattr(self, key)}")
        if not self.scales:
            raise ValueError("--scales needs at least one scale, such as 1")
        for key in ("scales", "pyramid"):
            values = getattr(self, key)
            if not _all_positive(values):
                told = " ".join(f"{value:g}" for value in values)
                raise ValueError(f"{_option(key)} must be finite and above 0, got {told}")


@dataclass(frozen=True)
class ExtractOptions(ExtractorOptions):
    """Write the features of images to one .npz file each."""

    images: Positional[tuple[Path, ...]] = ()
    """Image files, or folders of them."""
    output: Path = Path("runs/features")
    """Folder for the files, which hold keypoints, keypoint_scores, descriptors, image_size; those
    of a folder's sub-folders go into sub-folders."""


@dataclass(frozen=True)
class MatchOptions(ExtractorOptions):
    """Match two images and draw the matches."""

    image0: Positional[Path] = tyro.MISSING
    """First image."""
    image1: Positional[Path] = tyro.MISSING
    """Second image."""
    ratio: float | None = None
    """Leave out matches whose second nearest descriptor is nearly as near: 0.9 is mild, 0.8
    strict."""
    min_similarity: float | None = None
    """Leave out matches whose descriptors have a smaller dot product, of at most 1."""
    refine: bool = False
    """Move the matches to where both images agree, to a small part of a pixel, and leave out those
    that do not: for homographies, poses and panoramas."""
    output: Path = Path("matches.png")
    """The picture to write; its ending chooses the format."""
    table: Path | None = None
    """A .csv to write besides: x0, y0, x1, y1 in pixels of the files, and the similarity of every
    match."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"--ratio must be above 0 and at most 1, got {self.ratio}")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"--min-similarity must be in -1..1, got {self.min_similarity}")


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as an ONNX or weight file, or a finished training as a weight file."""

    weights: str = "superpoint"
    """A bundled name, the path of a weight file, or, for .safetensors, the folder of a training,
    whose batch normalisation is folded in."""
    output: Path = Path("superpoint.onnx")
    """The file to write: .onnx or .safetensors."""
    stored_as: Literal["float16", "int8"] = "float16"
    """Numbers of a .safetensors file. int8 halves it: all but the smallest kernels are rounded to
    1/127 of the largest weight of each output channel."""
    blend: str = ""
    """Weights to average those of a training with, number by number: what it was trained further
    from, to keep some of what that could do better."""
    blend_share: float = 0.5
    """Of the weights to blend with, in 0..1."""
    sharpen: float = 1.0
    """Exponent of the probabilities of a training's detector: above 1, faint keypoints fade."""
    learnt_from: str = ""
    """The training data, in words, for the metadata of a .safetensors file."""
    max_keypoints: int | None = None
    """Makes an .onnx file that gives keypoints, scores and descriptors, so many for each image, as
    superpoint extract --precision float32 --longest 0 does: reduce large images before. By default
    it gives the network's maps."""
    threshold: float = 0.005
    """Least score of those keypoints, in [0, 1]."""
    nms_radius: int = 4
    """Radius of their non-maximum suppression, in pixels."""
    height: int | None = None
    """Fixes the height of the images of an .onnx file; free by default."""
    width: int | None = None
    """Fixes the width likewise."""


@dataclass(frozen=True)
class DataOptions:
    """Say which data sets are linked, what is missing in them, and how to get them."""

    action: Positional[Literal["check", "fetch"]] = "check"
    """check: look at what is there. fetch: say, in addition, how to get what is not."""


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _all_positive(values: Sequence[float]) -> bool:
    return all(0 < value < math.inf for value in values)  # which NaN is not, either


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"superpoint {__version__}")
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UsageError(f"no command {name!r}: known are {', '.join(COMMANDS)}")
        keep_freed_memory()
        return COMMANDS[name][1](rest)
    except UsageError as error:
        return _fail(f"{error} (see superpoint --help)" if name not in COMMANDS else error, 2)
    except KeyboardInterrupt as stop:
        logging.disable()  # asyncio would report the notebook that was stopped, at length
        return _fail(f"{name}: {str(stop) or 'stopped'}", 130)
    except Exception as error:
        if os.environ.get("SUPERPOINT_TRACEBACK"):
            raise
        known = isinstance(error, CommandError | ValueError | OSError | KeyError)
        text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
        return _fail(f"{name}: {text}" if known else f"{name}: {type(error).__name__}: {text}", 1)


def _fail(message: object, status: int) -> int:
    print(f"superpoint {message}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _keeping(kept: bool = True) -> Iterator[None]:
    """Says, if the block is stopped, that what it has finished is kept, where that is so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not kept or str(stop):
            raise
        raise KeyboardInterrupt("stopped; what was finished is kept") from stop


def _check_file(what: str, path: Path) -> None:
    """Refuse a file that could not be written in the end, before anything is computed for it.

    Args:
        what: command and option, for the message, such as "match: --output".
        path: the file.

    Raises:
        UsageError: it is a folder, or cannot be in the one it is to be in.
    """
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder: name a file")
    _check_place(what, path, path.parent)


def _check_folder(what: str, path: Path) -> None:
    """Refuse a folder that could not be made or written to, as `_check_file` does a file.

    Raises:
        UsageError: it is a file, or cannot be where it is to be.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{what} {path} is a file: name a folder")
    _check_place(what, path, path)


def _check_place(what: str, path: Path, folder: Path) -> None:
    # A link that leads nowhere exists in so far as no folder can be made of its name.
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UsageError(f"{what} {path}: {there} is no folder: name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{what} {path}: {there} is not to be written to: name another place")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: superpoint COMMAND [OPTIONS]", ""]
    lines += ["Find, describe and match keypoints with SuperPoint; train and measure it.", ""]
    lines += [f"  {name:<{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    lines += ["", "superpoint COMMAND --help lists a command's options. To begin with:", ""]
    return "\n".join([*lines, "  superpoint match a.jpg b.jpg --refine"])


def _parse(options: Callable[..., T] | type[T], command: str, arguments: Sequence[str]) -> T:
    """Parse with tyro, whose boxed messages become one line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                options,
                prog=f"superpoint {command}",
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{command}: {_one_line(captured.getvalue())}") from None


def _one_line(box: str) -> str:
    """The words inside one of tyro's message boxes, up to its pointer to the help text."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if line.strip("─ "))
    text = re.split(r"Argument helptext:|For full helptext", text)[0]
    return " ".join(text.split()) or "wrong usage"


def _run(arguments: Sequence[str]) -> int:
    options = _parse(RunOptions, "run", arguments)
    from superpoint_lib.pipeline import run_profile, summary

    if options.run_dir:
        _check_folder("run: --run-dir", options.run_dir)
    with _keeping():
        report = run_profile(
            options.profile,
            only=[part.strip() for part in options.only.split(",") if part.strip()] or None,
            resume=options.resume,
            run_dir=options.run_dir,
            cell_timeout=options.cell_timeout,
            say=lambda line: print(line, flush=True),
        )
    print(f"\n{summary(report)}")
    return 1 if report.failed else 0


def _train(arguments: Sequence[str]) -> int:
    start = _train_start(arguments)
    from superpoint_lib.training import TrainConfig, train

    stage, stages = _train_stage(start) if start.profile else (None, [])
    # Built here because the defaults depend on the recipe, and to import training only now.
    options_class: type[Any] = make_dataclass(
        "Options",
        [
            ("start", TrainStart, start),
            ("run", TrainRun, TrainRun()),
            ("config", TrainConfig, _train_config(start, stage)),
        ],
        frozen=True,
    )
    options_class.__doc__ = "Train a detector, or a detector with descriptors."
    options = _parse(options_class, "train", arguments)
    in_profile = f"{start.profile}-{start.stage}" if start.stage else "custom"
    run_dir = options.run.run_dir or Path("runs", "train", start.recipe or in_profile)
    _check_folder("train: --run-dir", run_dir)
    # A training that has begun may need no more than its own folder.
    if stage and not (options.run.resume and (run_dir / "checkpoint.json").is_file()):
        _refuse_unfinished(start, stage, stages, options.config)
    result = train(options.config, run_dir, resume=options.run.resume)
    print(_left_out(result.skipped), end="", file=sys.stderr)
    print(f"weights: {result.weights_path}")
    return 0


def _left_out(skipped: Sequence[tuple[Path, str]], shown: int = 10) -> str:
    """Lines of pictures left out and why, a few of many; those merely unlabelled come last."""
    ranked = sorted(skipped, key=lambda item: item[1].startswith("no label file"))
    lines = [f"left out: {path}: {reason}\n" for path, reason in ranked[:shown]]
    if len(ranked) > shown:
        path, reason = ranked[-1]
        lines.append(f"left out: {len(ranked) - shown} more, the last {path}: {reason}\n")
    return "".join(lines)


def _train_start(arguments: Sequence[str]) -> TrainStart:
    """Read --recipe, --profile and --stage alone: they decide the other options' defaults."""
    captured = io.StringIO()
    known = [argument for argument in arguments if argument not in ("-h", "--help")]
    try:
        with contextlib.redirect_stderr(captured):
            start, _ = tyro.cli(TrainStart, args=known, return_unknown_args=True)
    except SystemExit:
        raise UsageError(f"train: {_one_line(captured.getvalue())}") from None
    if bool(start.profile) != bool(start.stage):
        raise UsageError("train: --profile and --stage go together: --profile full --stage 02")
    return start


def _train_stage(start: TrainStart) -> tuple[Stage, list[Stage]]:
    """The stage of a profile to train, and all stages of the profile; none needs to have run.

    Raises:
        UsageError: no such stage, several, or one that is no training; it names those there are.
    """
    from superpoint_lib.pipeline import plan

    stages = plan(start.profile)
    trainings = [stage for stage in stages if stage.notebook.stem in TRAININGS]
    called = [stage for stage in trainings if stage.is_called(start.stage)]
    if len(called) != 1:
        count = "several trainings" if called else "no training"
        raise UsageError(
            f"train: --stage {start.stage} is {count} of the profile {start.profile}: choose one "
            f"of {', '.join(stage.name for stage in called or trainings)}"
        )
    return called[0], stages


def _train_config(start: TrainStart, stage: Stage | None = None) -> TrainConfig:
    """The recipe, or what the notebook of a profile's stage trains."""
    from superpoint_lib.config import replace
    from superpoint_lib.training import RECIPES, TrainConfig

    values: dict[str, Any] = {}
    if stage:  # pipeline needs the packages of the notebooks, which a recipe does not
        from superpoint_lib.pipeline import notebook_defaults

        values = notebook_defaults(stage.notebook) | dict(stage.parameters)
    recipe = start.recipe or values.get("recipe", "")
    if recipe and recipe not in RECIPES:
        raise UsageError(f"train: no recipe {recipe!r}: known are {', '.join(RECIPES)}")
    config = RECIPES[recipe] if recipe else TrainConfig()
    if not stage:
        return config
    if not recipe:  # as in notebook 05; those of 02 are parameters
        config = replace(config, freeze_norm_after=0.85, gradient_clip=5.0)
    if values.get("detector_steps"):  # of a training before, which this one goes on from
        values["init"] = f"{values['output']}/stage1/weights.safetensors"
    if values.get("labels") == "":
        values["labels"] = f"{values['output']}/labels"
    changes = {
        field.name: values[field.name] for field in fields(TrainConfig) if field.name in values
    }
    for name, value in changes.items():
        # The notebooks take one folder where a training may have several.
        if isinstance(value, str) and isinstance(getattr(config, name), tuple):
            changes[name] = (value,)
    return replace(config, **changes, **TRAININGS[stage.notebook.stem])


def _refuse_unfinished(
    start: TrainStart, stage: Stage, stages: Sequence[Stage], config: TrainConfig
) -> None:
    """Look whether a profile's stages have left what the training is to start from.

    Raises:
        UsageError: they have not; it names the command that runs them.
    """
    from superpoint_lib.paths import project_root
    from superpoint_lib.pipeline import unfinished

    # Of the configuration, not of the stage: options may have named other weights and labels.
    paths = [project_root() / text for text in (config.init, *config.images, *config.labels)]
    needed = {one.name for one in stages if any(p.is_relative_to(one.output) for p in paths)}
    # What the stage leaves itself, such as the weights of its stage 1, may be there before it has
    # been run to its end.
    own = [path for path in paths if path.is_relative_to(stage.output) and not path.exists()]
    missing = unfinished((needed | set(stage.inputs if own else ())) - {stage.name}, stages)
    missing += [stage.name] if own else []
    if missing:
        raise UsageError(
            f"train: {stage.name} of the profile {start.profile} starts from what is not there: "
            f"run this first: superpoint run --profile {start.profile} --only {','.join(missing)} "
            "(or choose other weights and labels: --init, --labels)"
        )


def _adapt(arguments: Sequence[str]) -> int:
    from superpoint_lib.adaptation import AdaptConfig, export_labels

    config = _parse(AdaptConfig, "adapt", arguments)
    _check_folder("adapt: --output", Path(config.output))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with _keeping():
        report = export_labels(config, rank=rank, world=world)
    print(report)
    # Of several processes, one may well have no share, or a bad one; the first has a share of
    # whatever there is.
    alone_or_empty = world == 1 or (rank == 0 and not report.failed)
    if alone_or_empty and not (report.written or report.skipped_existing):
        missing = f"no pictures in {', '.join(config.images)}"
        why = "every picture was left out" if report.failed else missing
        raise CommandError(f"nothing labelled: {why}")
    if report.written and not any(report.keypoints):
        raise CommandError("no keypoint found in any picture: lower --threshold")
    return 0


def _extract(arguments: Sequence[str]) -> int:
    options = _parse(ExtractOptions, "extract", arguments)
    images = _image_files(options.images)
    _check_folder("extract: --output", options.output)
    with _keeping(len(images) > 1):
        return _extract_all(options, images)


def _extract_all(options: ExtractOptions, images: Sequence[tuple[Path, Path]]) -> int:
    import numpy as np

    from superpoint_lib.geometry import warp_points
    from superpoint_lib.paths import atomic_path, read_gray

    targets: dict[Path, Path] = {}
    for path, relative in images:
        target = options.output / relative.with_suffix(".npz")
        if targets.get(target, path) != path:
            raise CommandError(
                f"{targets[target]} and {path} would both be written to {target}: extract them to "
                "separate folders"
            )
        targets[target] = path
    find = _extractor(options)
    options.output.mkdir(parents=True, exist_ok=True)
    unreadable = []
    for target, path in targets.items():
        try:
            with _naming(path):
                image = read_gray(path)
                looked_at, to_file = _reduced(image, options.longest)
                features = find(looked_at).numpy()
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        arrays: dict[str, Any] = {
            "keypoints": warp_points(features.keypoints, to_file),
            "keypoint_scores": features.keypoint_scores,
            "image_size": image.shape,
        }
        if features.descriptors is not None:
            arrays["descriptors"] = features.descriptors
        with atomic_path(target) as temporary:
            np.savez_compressed(temporary, **arrays)
        told = f", looked at in {_size(looked_at)} pixels" if looked_at is not image else ""
        print(f"{target}: {len(features)} keypoints, computed in {features.computed_in}{told}")
    if unreadable:
        raise CommandError(f"{len(unreadable)} of {len(images)} left out: {'; '.join(unreadable)}")
    return 0


def _reduced(image: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W) with a longer side of at most ``longest`` pixels, unless that is 0, and the
    transform (3, 3) from its pixels to those it had."""
    import numpy as np

    from superpoint_lib.extraction import MIN_IMAGE_SIZE
    from superpoint_lib.geometry import invert_homographies, resize_short_side

    longer, shorter = max(image.shape), min(image.shape)
    wanted = max(MIN_IMAGE_SIZE, round(longest * shorter / longer))
    if longest == 0 or wanted >= shorter:
        return image, np.eye(3)
    smaller, transform = resize_short_side(image, wanted)
    return smaller, invert_homographies(transform)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before a message that does not have it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _match(arguments: Sequence[str]) -> int:
    options = _parse(MatchOptions, "match", arguments)
    import numpy as np
    from matplotlib.backend_bases import FigureCanvasBase

    from superpoint_lib.evaluation.hpatches import refine_by_ransac
    from superpoint_lib.extraction import match
    from superpoint_lib.geometry import warp_points
    from superpoint_lib.paths import atomic_path, read_gray, write_text
    from superpoint_lib.plotting import plot_matches

    # Without what needs TeX, what a viewer does not open, and what knows no transparency.
    known = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf", "raw", "rgba", "eps", "ps"}
    # Behind a name without an ending, matplotlib would put one of its own.
    if options.output.suffix.lower().removeprefix(".") not in known:
        raise UsageError(
            f"match: --output {options.output}: choose a name that ends in "
            f"{', '.join(f'.{ending}' for ending in sorted(known))}"
        )
    _check_file("match: --output", options.output)
    if options.table:
        _check_file("match: --table", options.table)
    places = [options.image0, options.image1]
    for key, place in (("output", options.output), ("table", options.table)):
        if place and any(place.resolve() == taken.resolve() for taken in places):
            raise UsageError(f"match: --{key} {place} would overwrite a file of this command")
        places += [place] if place else []
    find = _extractor(options)
    (image0, to_file0), (image1, to_file1) = (
        _reduced(read_gray(path), options.longest) for path in (options.image0, options.image1)
    )
    with _naming(options.image0):
        features0 = find(image0)
    with _naming(options.image1):
        features1 = find(image1)
    if features0.descriptors is None:
        raise CommandError(f"{options.weights} has no descriptors: choose a SuperPoint to match")
    found = match(features0, features1, options.ratio, options.min_similarity)
    matches, similarity = (tensor.cpu().numpy() for tensor in found)
    keypoints0, keypoints1 = features0.numpy().keypoints, features1.numpy().keypoints
    told = f"{len(matches)} matches"
    if options.refine:
        ends = keypoints0[matches[:, 0]], keypoints1[matches[:, 1]]
        moved, confirmed = refine_by_ransac(image0, image1, *ends)
        keypoints1 = keypoints1.astype(np.float64)
        keypoints1[matches[:, 1]] = moved
        matches, similarity = matches[confirmed], similarity[confirmed]
        told += f", {len(matches)} of them confirmed and refined"
    figure = plot_matches(image0, image1, keypoints0, keypoints1, matches)
    with atomic_path(options.output) as temporary:
        figure.savefig(temporary, bbox_inches="tight", dpi=160)
    if options.table:
        ends0 = warp_points(keypoints0[matches[:, 0]], to_file0)
        ends1 = warp_points(keypoints1[matches[:, 1]], to_file1)
        rows = np.column_stack([ends0, ends1, similarity])
        lines = ["x0,y0,x1,y1,similarity", *(",".join(f"{v:.4f}" for v in row) for row in rows)]
        write_text(options.table, "\n".join([*lines, ""]))
    reduced = not (np.array_equal(to_file0, np.eye(3)) and np.array_equal(to_file1, np.eye(3)))
    sizes = f", looked at in {_size(image0)} and {_size(image1)} pixels" if reduced else ""
    print(
        f"{len(features0)} and {len(features1)} keypoints, computed in {features0.computed_in}"
        f"{sizes}, {told}: {options.output}{f' and {options.table}' if options.table else ''}"
    )
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    options = _parse(EvaluateOptions, "evaluate", arguments)
    if options.data == "shapes":
        return _evaluate_on_shapes(options, shlex.join(["superpoint", "evaluate", *arguments]))
    from superpoint_lib.evaluation.hpatches import evaluate, load_sequences
    from superpoint_lib.evaluation.mini import WARPED_KINDS, benchmark_folder
    from superpoint_lib.evaluation.protocols import protocol_config
    from superpoint_lib.evaluation.results import result_paths

    for path in (options.output, *result_paths(options.output)):
        _check_file("evaluate: --output", path)
    if options.images_per_primitive != EvaluateOptions.images_per_primitive:
        raise UsageError("evaluate: --images-per-primitive is for --data shapes")
    names = options.extractors or PAIR_EXTRACTORS
    if options.against and options.against not in names:
        raise UsageError(f"evaluate: --against {options.against}: not among the extractors")
    protocol = options.protocol or ("warped" if options.data in WARPED_KINDS else "rpautrat")
    config = protocol_config(protocol)
    ordered = replace(config, ransac=replace(config.ransac, orders=options.orders))
    # First, as a misspelt name should be told of before a benchmark is made.
    extractors, facts = _extractors(names, options.precision, options.device)
    folder = benchmark_folder(options.data)
    sequences = load_sequences(folder)
    kept = {
        name: _kept_records(facts[name], ordered, options.device)
        for name in names
        if options.resume
    }
    # By its name, unless it is changed.
    chosen = protocol if ordered == config else ordered
    with _keeping(options.resume):
        results = evaluate(extractors, sequences, chosen, kept=kept)
    if not results.records:
        raise CommandError(f"nothing measured: {_few(list(results.skipped.values()))}")
    command = shlex.join(["superpoint", "evaluate", *arguments])
    paths = results.save(options.output, command, options.against or None)
    taken = {name: records.taken for name, records in kept.items() if records.taken}
    if taken:
        told = ", ".join(f"{count} for {name}" for name, count in taken.items())
        print(f"sequences measured before, and kept in runs/evaluated: {told}\n")
    print(f"{len(sequences)} sequences of {folder}, protocol {protocol}\n")
    print("\n\n".join(results.table(part) for part in results.splits))
    if options.against:
        print(f"\nMore than {options.against}, pair by pair, with 95 % intervals:")
        for row in results.differences(options.against):
            print(
                f"  {row['extractor']:24} {row['part']:13} {row['metric']:20} "
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            )
    print(f"\nwritten: {', '.join(map(str, paths))}")
    return 0


def _few(reasons: Sequence[str], shown: int = 3) -> str:
    """Reasons in one line, a few of many."""
    more = len(reasons) - shown
    return "; ".join([*reasons[:shown], *([f"and {more} more"] if more > 0 else [])])


def _extractors(
    names: Sequence[str], precision: Precision, device: str
) -> tuple[dict[str, Extractor], dict[str, dict[str, Any]]]:
    """Extractors by their names, refined ones among them, and what their records depend on."""
    from superpoint_lib.evaluation.hpatches import Refined

    split = {name: _split_refined(name) for name in names}
    # One for both names of an extractor, with and without refined matches: it looks once for both.
    measured = {plain: _measured(plain, precision, device) for plain, _ in split.values()}
    extractors, facts = dict[str, "Extractor"](), dict[str, dict[str, Any]]()
    for name, (plain, refined) in split.items():
        extractor, depends_on, has_matches = measured[plain]
        if refined and not has_matches:
            raise UsageError(f"evaluate: {name}: {plain} has no descriptors, so nothing to refine")
        extractors[name] = Refined(extractor) if refined else extractor
        facts[name] = {**depends_on, "refined": refined}
    return extractors, facts


def _split_refined(name: str) -> tuple[str, bool]:
    """The name of an extractor, and whether its matches are to be refined."""
    refined = name.endswith(REFINED) and not Path(name).is_file()  # a file's own name may end so
    return (name.removesuffix(REFINED) if refined else name), refined


def _kept_records(extractor: dict[str, Any], protocol: ProtocolConfig, device: str) -> KeptRecords:
    """Where the records of an extractor are kept, by all that they depend on."""
    from superpoint_lib.config import to_dict
    from superpoint_lib.evaluation.kept import KeptRecords
    from superpoint_lib.machine import choose_device, machine_name
    from superpoint_lib.paths import runs_dir

    machine = machine_name(choose_device(device))
    everything = {"extractor": extractor, "protocol": to_dict(protocol), "machine": machine}
    return KeptRecords(runs_dir() / "evaluated", everything)


def _evaluate_on_shapes(options: EvaluateOptions, command: str) -> int:
    from superpoint_lib.evaluation.detection import evaluate_detectors_on_shapes
    from superpoint_lib.evaluation.results import json_ready
    from superpoint_lib.paths import write_json

    if options.protocol or options.against or options.orders != 1 or not options.resume:
        raise UsageError(
            "evaluate: --protocol, --against, --orders and --no-resume are not for --data shapes"
        )
    if options.images_per_primitive < 1:
        raise UsageError(
            f"evaluate: --images-per-primitive must be at least 1, got "
            f"{options.images_per_primitive}"
        )
    _check_file("evaluate: --output", options.output)
    names = options.extractors or SHAPES_DETECTORS
    detectors = {name: _shapes_detector(name, options.precision, options.device) for name in names}
    results: dict[str, Any] = {"command": command}
    for part in ("clean", "noise"):
        found = evaluate_detectors_on_shapes(
            detectors, options.images_per_primitive, noise=part == "noise"
        )
        results[part] = found
        for name, distances in found["detectors"].items():
            figures = ", ".join(
                f"{distance} px: {_decimals(values['average_precision'])} "
                f"({_decimals(values['localization_error'])} px off)"
                for distance, values in distances.items()
            )
            print(f"{part:5}  {name:20} average precision at {figures}")
    write_json(options.output, json_ready(results))
    print(f"\nwritten: {options.output}")
    return 0


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shapes_detector(name: str, precision: Precision, device: str) -> Detector:
    """All detections of a detector, weak ones too: average precision ranks them."""
    from superpoint_lib.evaluation.classical import DETECTORS, EXTRACTORS
    from superpoint_lib.extraction import Features
    from superpoint_lib.multiscale import extract_multiscale

    if name in DETECTORS:
        return DETECTORS[name]
    if name in EXTRACTORS or name == "random" or _split_refined(name)[1]:
        raise UsageError(
            f"evaluate: not for --data shapes: {name}; choose bundled names, weight files, "
            f"{', '.join(DETECTORS)}"
        )
    model, looks = _model_and_looks(name, device, DETECTORS)

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = extract_multiscale(
            model, image, max_keypoints=None, threshold=1e-4, precision=precision, **looks
        )
        assert isinstance(features, Features)
        arrays = features.numpy()
        return arrays.keypoints, arrays.keypoint_scores

    return detect


class _Measured(NamedTuple):
    """An extractor, what its records depend on, and whether it has matches that can be refined."""

    extractor: Extractor
    facts: dict[str, Any]
    has_matches: bool


def _measured(name: str, precision: Precision = "float32", device: str = "auto") -> _Measured:
    """An extractor by the name of an OpenCV method, or by its weights."""
    from superpoint_lib.config import to_dict
    from superpoint_lib.digests import weights_digest
    from superpoint_lib.evaluation.classical import DETECTORS, EXTRACTORS, classical_extractor
    from superpoint_lib.evaluation.hpatches import random_extractor, superpoint_extractor
    from superpoint_lib.model import SuperPoint, uses_bfloat16

    if name == "random":
        return _Measured(random_extractor(), {"method": name}, False)
    if name in DETECTORS or name in EXTRACTORS:
        return _Measured(classical_extractor(name), {"method": name}, name in EXTRACTORS)
    model, looks = _model_and_looks(name, device, (*EXTRACTORS, *DETECTORS, "random"))
    facts = {
        "weights": weights_digest(model.state_dict()),
        "network": to_dict(model.config),
        "bfloat16": uses_bfloat16(precision, next(model.parameters()).device),
        **looks,
    }
    extractor = superpoint_extractor(model, precision=precision, **looks)
    return _Measured(extractor, facts, isinstance(model, SuperPoint))


class _Looks(TypedDict):
    scales: tuple[float, ...]
    turned: bool
    pyramid: tuple[float, ...]


def _model_and_looks(
    name: str, device: str = "auto", others: Iterable[str] = ()
) -> tuple[MagicPoint, _Looks]:
    """What a name such as superpoint@1,1.5 or superpoint@turned or superpoint@1+0.5 stands for.

    Args:
        name: of weights, with the looks behind it.
        device: where the network goes.
        others: names that would have been possible besides, for the message.

    Raises:
        UsageError: there is something else behind the @.
        CommandError: there are no such weights.
    """
    weights, looks, levels = name, list[str](), list[str]()
    if "@" in name and not Path(name).is_file():  # a file's own name may hold one
        weights, _, listed = name.rpartition("@")
        first, *levels = listed.split("+")
        looks = first.split(",")
    try:
        scales = tuple(float(look) for look in looks if look != "turned") or (1.0,)
        pyramid = tuple(float(level) for level in levels)
        if not _all_positive((*scales, *pyramid)):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"evaluate: {name}: after @ come scales, which are numbers above 0, and turned, then "
            "levels of a pyramid, each after a +, and :refined last, as in "
            "superpoint@1,1.5,turned+0.7:refined"
        ) from None
    try:
        model = _load_model(weights, device)
    except FileNotFoundError as error:
        known = f"; besides weights there are {', '.join(others)}" if others else ""
        raise CommandError(f"{error}{known}") from error
    return model, {
        "scales": scales,
        "turned": "turned" in looks,
        "pyramid": pyramid,
    }


#: What an .onnx file says of itself.
_ONNX_INPUT = "images: float32 (B, 1, H, W), gray levels in 0..1, 16 pixels or more along each side"
_ONNX_OUTPUTS = {
    False: "logits: (B, 65, ceil(H / 8), ceil(W / 8)), and descriptors of the same cells",
    True: "keypoints: (B, K, 2) as (x, y) in pixels; rows whose keypoint_scores are 0 hold none",
}

#: By the ending of the file to export, the options that change nothing in it.
_NOT_FOR = {
    ".onnx": ("stored_as", "blend", "blend_share", "sharpen", "learnt_from"),
    ".safetensors": ("max_keypoints", "threshold", "nms_radius", "height", "width"),
}


def _export(arguments: Sequence[str]) -> int:
    options = _parse(ExportOptions, "export", arguments)
    if options.output.suffix not in _NOT_FOR:
        raise CommandError(f"{options.output}: choose a name that ends in .onnx or .safetensors")
    default = vars(ExportOptions())
    changed = {key for key, value in vars(options).items() if value != default[key]}
    unused = [_option(key) for key in _NOT_FOR[options.output.suffix] if key in changed]
    if unused:
        raise UsageError(f"export: {', '.join(unused)}: not for {options.output.suffix} files")
    if "blend_share" in changed and not options.blend:
        raise UsageError("export: --blend-share: give --blend too, the weights to average with")
    if options.max_keypoints is None and changed & {"threshold", "nms_radius"}:
        raise UsageError("export: --threshold and --nms-radius: give --max-keypoints too")
    _check_file("export: --output", options.output)
    if options.output.suffix == ".safetensors":
        print(_export_weights(options))
        return 0
    from superpoint_lib.checkpoints import load_weights
    from superpoint_lib.interop import export_onnx

    told = load_weights(options.weights).metadata
    metadata = {
        "weights": options.weights,
        "made_by": f"superpoint_lib {__version__}",
        "input": _ONNX_INPUT,
        "output": _ONNX_OUTPUTS[options.max_keypoints is not None],
    }
    path = export_onnx(
        _load_model(options.weights, device="cpu"),
        options.output,
        options.height,
        options.width,
        max_keypoints=options.max_keypoints,
        threshold=options.threshold,
        nms_radius=options.nms_radius,
        metadata=metadata | ({"learnt_from": told["learnt_from"]} if "learnt_from" in told else {}),
    )
    print(path)
    return 0


def _export_weights(options: ExportOptions) -> Path:
    import torch

    from superpoint_lib.checkpoints import BUNDLED_NAMES, load_weights, save_weights
    from superpoint_lib.training import release

    told = {"learnt_from": options.learnt_from}
    dtype = torch.int8 if options.stored_as == "int8" else torch.float16
    if options.weights not in BUNDLED_NAMES and Path(options.weights).is_dir():
        blend = (options.blend, options.blend_share) if options.blend else None
        return release(options.weights, options.output, told, dtype, blend, options.sharpen)
    if options.blend or options.sharpen != 1:
        raise CommandError("--blend and --sharpen take the folder of a training as --weights")
    given = load_weights(options.weights)
    metadata = given.metadata | (told if options.learnt_from else {})
    return save_weights(options.output, given.state_dict, given.config, metadata, dtype)


def _data(arguments: Sequence[str]) -> int:
    options = _parse(DataOptions, "data", arguments)
    from superpoint_lib.paths import data_dir

    folder = data_dir()
    states = {}
    for name, (look, unit) in _data_sets().items():
        states[name], text = _state(folder / name, look, unit)
        print(f"{name:<15} {text}")
    missing = [name for name, state in states.items() if state == "missing"]
    broken = [name for name, state in states.items() if state == "broken"]
    if missing:
        print("What is not there is replaced by pictures from inside the dependencies.")
    if broken:
        raise CommandError(f"incomplete in {folder}: {', '.join(broken)}")
    if missing and options.action == "fetch":
        print(HOW_TO_GET.format(folder=folder))
        raise CommandError(f"nothing fetched: {', '.join(missing)} must be linked by hand")
    return 0


def _data_sets() -> dict[str, tuple[Callable[[Path], Sequence[object]], str]]:
    """Folders below data/, how to read them (which raises when files lack), and what they hold."""
    from superpoint_lib.evaluation.hpatches import load_sequences
    from superpoint_lib.paths import list_images

    return {
        "coco/train2017": (list_images, "pictures"),
        "coco/test2017": (list_images, "pictures"),
        "hpatches": (load_sequences, "sequences"),
    }


def _state(
    path: Path, look: Callable[[Path], Sequence[object]], unit: str
) -> tuple[Literal["found", "missing", "broken"], str]:
    if not path.exists():
        links = [link for link in (path, path.parent) if link.is_symlink() and not link.exists()]
        return (
            ("broken", f"the link {links[0]} leads nowhere") if links else ("missing", "not there")
        )
    try:
        found = look(path)
    except (OSError, ValueError) as error:
        return "broken", str(error)
    return ("found", f"{len(found)} {unit}") if found else ("broken", f"no {unit} in {path}")


def _image_files(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each image, and its path in the folder it was found in; its name, if it was given itself."""
    from superpoint_lib.paths import list_images

    if not paths:
        raise UsageError("extract: name an image or a folder (see superpoint extract --help)")
    files: list[tuple[Path, Path]] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no such image or folder: {path}")
        if path.is_dir():
            files += [(image, image.relative_to(path)) for image in list_images(path)]
        else:
            files.append((path, Path(path.name)))
    if not files:
        raise CommandError(
            f"no images in {', '.join(map(str, paths))} that OpenCV reads (.jpg, .png, .tif, .webp "
            "and the like; convert .heic first)"
        )
    return files


def _load_model(weights: str, device: str = "auto") -> MagicPoint:
    """A SuperPoint where the weights have descriptors, else a MagicPoint; in eval mode."""
    from superpoint_lib.checkpoints import load_weights
    from superpoint_lib.machine import choose_device
    from superpoint_lib.model import MagicPoint, SuperPoint

    chosen = choose_device(device)
    has_descriptors = any("desc" in key for key in load_weights(weights).state_dict)
    network = SuperPoint if has_descriptors else MagicPoint
    return network.from_pretrained(weights).to(chosen).eval()


def _extractor(options: ExtractorOptions) -> Callable[[np.ndarray], Features]:
    """Load the model once; the result takes an image (H, W) to its features."""
    from superpoint_lib.extraction import Features
    from superpoint_lib.multiscale import extract_multiscale

    model = _load_model(options.weights, options.device)

    def find(image: np.ndarray) -> Features:
        features = extract_multiscale(
            model,
            image,
            options.scales,
            max_keypoints=options.max_keypoints,
            threshold=options.threshold,
            nms_radius=options.nms_radius,
            subpixel=options.subpixel,
            precision=options.precision,
            turned=options.turned,
            pyramid=options.pyramid,
        )
        assert isinstance(features, Features)  # one image gives one, a batch a list
        return features

    return find


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "run": ("run the notebooks of a profile", _run),
    "train": ("train a detector, or a detector with descriptors", _train),
    "adapt": ("label pictures by homographic adaptation", _adapt),
    "evaluate": ("measure extractors on HPatches, the mini benchmark or drawn shapes", _evaluate),
    "extract": ("write the features of images to files", _extract),
    "match": ("match two images and draw the matches", _match),
    "export": ("write a model as an ONNX file, or a training as a weight file", _export),
    "data": ("check which data sets are linked, or say how to get them", _data),
}


if __name__ == "__main__":
    sys.exit(main())
