"""``superpoint evaluate``: extractors on sequences, detectors on drawn shapes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from tyro.conf import Positional

from superpoint_lib.cli.shared import (
    CommandError,
    UsageError,
    all_positive,
    check_file,
    keeping,
    load_model,
    parse,
)

if TYPE_CHECKING:
    import numpy as np

    from superpoint_lib.evaluation.detection import Detector
    from superpoint_lib.evaluation.hpatches import Extractor
    from superpoint_lib.evaluation.kept import KeptRecords
    from superpoint_lib.evaluation.protocols import ProtocolConfig
    from superpoint_lib.model import MagicPoint, Precision

PAIR_EXTRACTORS = ("superpoint", "sift", "orb")
SHAPES_DETECTORS = ("magicpoint-synthetic", "magicpoint", "harris", "shi_tomasi", "fast")
#: Behind the name of an extractor: with its matches refined.
REFINED = ":refined"


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


def command(arguments: Sequence[str]) -> int:
    """Measure; returns the exit status."""
    options = parse(EvaluateOptions, "evaluate", arguments)
    if options.data == "shapes":
        return _evaluate_on_shapes(options, shlex.join(["superpoint", "evaluate", *arguments]))
    from superpoint_lib.evaluation.hpatches import evaluate, load_sequences
    from superpoint_lib.evaluation.mini import WARPED_KINDS, benchmark_folder
    from superpoint_lib.evaluation.protocols import protocol_config
    from superpoint_lib.evaluation.results import result_paths

    for path in (options.output, *result_paths(options.output)):
        check_file("evaluate: --output", path)
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
    with keeping(options.resume):
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
    refined = name.endswith(REFINED) and not Path(name).exists()  # a path may end so
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
    check_file("evaluate: --output", options.output)
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
    if "@" in name and not Path(name).exists():  # a path may hold one
        weights, _, listed = name.rpartition("@")
        first, *levels = listed.split("+")
        looks = first.split(",")
    try:
        scales = tuple(float(look) for look in looks if look != "turned") or (1.0,)
        pyramid = tuple(float(level) for level in levels)
        if not all_positive((*scales, *pyramid)):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"evaluate: {name}: after @ come scales, which are numbers above 0, and turned, then "
            "levels of a pyramid, each after a +, and :refined last, as in "
            "superpoint@1,1.5,turned+0.7:refined"
        ) from None
    try:
        model = load_model(weights, device)
    except FileNotFoundError as error:
        known = f"; besides weights there are {', '.join(others)}" if others else ""
        raise CommandError(f"{error}{known}") from error
    return model, {
        "scales": scales,
        "turned": "turned" in looks,
        "pyramid": pyramid,
    }
