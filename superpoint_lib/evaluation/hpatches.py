"""HPatches: detectors and descriptors measured on image sequences with known homographies.

A folder of sequences (``i_*`` illumination, ``v_*`` viewpoint; Balntas et al., "HPatches",
CVPR 2017) goes in, a table comes out: repeatability, localisation error, homography accuracy and
its AUC, share of correct matches, matching score and nearest-neighbour mAP, with bootstrap
intervals. What published evaluations do differently (sizes, NMS, which points are kept) is data, a
:class:`ProtocolConfig`; every extractor runs through the same code::

    sequences = load_sequences("data/hpatches")
    results = evaluate({"ours": superpoint_extractor(model)}, sequences, "rpautrat")
    print(results.table())

Derived in notebook 06.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tqdm.auto import tqdm

from superpoint_lib.evaluation.extractors import (
    Extractor,
    Image,
    Refined,
    plain_extractor,
    random_extractor,
    superpoint_extractor,
)
from superpoint_lib.evaluation.kept import KeptRecords, sequence_digest
from superpoint_lib.evaluation.pairs import (
    MatchedPair,
    View,
    corner_errors,
    descriptor_record,
    detector_record,
    inspect_pair,
    look_at,
    match_pair,
    prepare_image,
    refine_by_ransac,
)
from superpoint_lib.evaluation.protocols import (
    PROTOCOLS,
    ProtocolConfig,
    TaskConfig,
    protocol_config,
)
from superpoint_lib.evaluation.results import KEYS, Record, Results, compare, shortened
from superpoint_lib.evaluation.sequences import HPatchesSequence, load_sequences
from superpoint_lib.paths import UnreadableImageError, read_gray

__all__ = [
    "PROTOCOLS",
    "Extractor",
    "HPatchesSequence",
    "MatchedPair",
    "ProtocolConfig",
    "Refined",
    "Results",
    "TaskConfig",
    "compare",
    "corner_errors",
    "evaluate",
    "inspect_pair",
    "load_sequences",
    "plain_extractor",
    "prepare_image",
    "random_extractor",
    "refine_by_ransac",
    "superpoint_extractor",
]


def evaluate(
    extractors: Mapping[str, Extractor],
    sequences: Sequence[HPatchesSequence],
    protocol: str | ProtocolConfig = "rpautrat",
    progress: bool = True,
    kept: Mapping[str, KeptRecords] = MappingProxyType({}),
) -> Results:
    """Measure extractors on sequences: every pair (reference, k) of every sequence.

    Each image is read once, and an extractor sees it once for each size the protocol uses. A pair
    without a homography (blank images, fewer than four matches, RANSAC without a model) counts as
    failed: an infinite corner error and zeros. An extractor without descriptors is measured as a
    detector alone.

    Args:
        extractors: By the name they get in tables.
        sequences: From ``load_sequences``.
        protocol: Name in ``PROTOCOLS`` or a configuration.
        progress: Show a progress bar.
        kept: By the name of an extractor, where its records are kept sequence by sequence, and
            those of an earlier call are found; extractors without are measured anew.

    Returns:
        ``Results`` with one record per extractor and pair. A sequence with an unreadable image is
        left out and listed in ``Results.skipped``, so that the others are not lost.

    Raises:
        ValueError: An unknown protocol, no extractors, or no sequences left by the protocol.
    """
    config = protocol_config(protocol)
    measured = [sequence for sequence in sequences if sequence.name not in config.excluded]
    if not extractors or not measured:
        raise ValueError("evaluate needs at least one extractor and one sequence")
    # An extractor and its refined self in turn: what both see is held no longer than that.
    plains = [id(_plain(extractor)) for extractor in extractors.values()]
    in_turn = sorted(extractors.items(), key=lambda item: plains.index(id(_plain(item[1]))))
    records: list[Record] = []
    skipped: dict[str, str] = {}
    with tqdm(total=len(measured) * len(extractors), disable=not progress, unit="sequence") as bar:
        for sequence in measured:
            bar.set_postfix_str(sequence.name)
            views = _Views(sequence)
            label = sequence_digest(sequence.image_paths, sequence.homographies) if kept else ""
            try:
                for name, extractor in in_turn:
                    measure = functools.partial(
                        _sequence_records, name, extractor, sequence, views, config
                    )
                    records += kept[name].take(label, name, measure) if name in kept else measure()
                    bar.update()
            except UnreadableImageError as error:
                skipped[sequence.name] = str(error)
                bar.update(len(extractors))
    name = protocol if isinstance(protocol, str) else "custom"
    records.sort(key=lambda record: list(extractors).index(record["extractor"]))
    return Results(name, config, tuple(records), skipped)


class _Views:
    """The images of a sequence as the extractor of the moment sees them, each looked at once.

    An extractor and its ``Refined`` see the same.
    """

    def __init__(self, sequence: HPatchesSequence) -> None:
        self._sequence = sequence
        self._extractor: Extractor | None = None
        self._seen: dict[TaskConfig, list[View]] = {}

    @functools.cached_property
    def _images(self) -> list[Image]:
        return [read_gray(path) for path in self._sequence.image_paths]

    def of(self, extractor: Extractor, task: TaskConfig) -> list[View]:
        plain = _plain(extractor)
        if plain is not self._extractor:
            self._extractor, self._seen = plain, {}
        if task not in self._seen:
            self._seen[task] = [look_at(plain, image, task) for image in self._images]
        return self._seen[task]


def _plain(extractor: Extractor) -> Extractor:
    return extractor.extractor if isinstance(extractor, Refined) else extractor


def _sequence_records(
    name: str,
    extractor: Extractor,
    sequence: HPatchesSequence,
    views: _Views,
    config: ProtocolConfig,
) -> list[Record]:
    detector_views = views.of(extractor, config.detector)
    has_descriptors = detector_views[0].features.descriptors is not None
    # A detector alone need not be looked at with the knobs of descriptors.
    descriptor_views = views.of(extractor, config.descriptor) if has_descriptors else detector_views
    refined = isinstance(extractor, Refined)
    records = []
    for k, H in enumerate(sequence.homographies, start=1):
        record: Record = dict(zip(KEYS, (name, sequence.name, sequence.split, k + 1), strict=True))
        record |= detector_record(detector_views[0], detector_views[k], H, config)
        if has_descriptors:
            pair = match_pair(descriptor_views[0], descriptor_views[k], H, config, refined)
            record |= descriptor_record(pair, config)
        records.append({key: shortened(value) for key, value in record.items()})
    return records
