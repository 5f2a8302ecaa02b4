"""``superpoint train``: a recipe, or a stage of a profile, with options of one's own."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from superpoint_lib.cli.shared import UsageError, check_folder, one_line, parse

if TYPE_CHECKING:
    from superpoint_lib.pipeline import Stage
    from superpoint_lib.training import TrainConfig

#: The notebooks that train a network with their parameters, and what they set besides.
TRAININGS: dict[str, dict[str, Any]] = {
    "02_magicpoint_training": {},
    "05_staged_training": {"model": "superpoint", "data": "photos", "views": 2, "log_every": 20},
}


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


def command(arguments: Sequence[str]) -> int:
    """Train a network; returns the exit status."""
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
    options = parse(options_class, "train", arguments)
    in_profile = f"{start.profile}-{start.stage}" if start.stage else "custom"
    run_dir = options.run.run_dir or Path("runs", "train", start.recipe or in_profile)
    check_folder("train: --run-dir", run_dir)
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
        raise UsageError(f"train: {one_line(captured.getvalue())}") from None
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
