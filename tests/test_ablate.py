"""The comparison of trainings that differ in one setting, and what differs in them."""

import json
from types import SimpleNamespace

import ablate as tool
import pytest

from superpoint_lib import SuperPoint
from superpoint_lib.config import to_dict
from superpoint_lib.datasets import bundled_photos
from superpoint_lib.evaluation.mini import MiniConfig, make_benchmark


@pytest.mark.parametrize("study", ["labels", "views", "agreement"])
def test_variants_differ_from_plain_in_what_they_are_said_to(study, tmp_path):
    options = tool.Options((tmp_path,), study, steps=7)
    plain = to_dict(tool.configuration(options, "plain"))
    assert plain["steps"] == 7 and plain["init"] == "superpoint"
    for name, changes in tool.STUDIES[study].variants.items():
        variant = to_dict(tool.configuration(options, name))
        assert {key for key in plain if plain[key] != variant[key]} == set(changes)
        assert changes.items() <= variant.items()


@pytest.mark.parametrize(
    ("study", "variant", "kind"),
    [
        ("labels", "positions", "warped"),
        ("views", "any distance", "warped-hard"),
        ("agreement", "labels apart", "warped"),
    ],
)
def test_variants_are_compared_with_plain(study, variant, kind, monkeypatch, tmp_path):
    trained, asked = [], []

    def train(config, run_dir):
        trained.append((config, run_dir))
        name = "superpoint-open" if run_dir.name == "plain" else "superpoint"
        return SimpleNamespace(model=SuperPoint.from_pretrained(name))

    def pairs(kind):
        asked.append(kind)
        photo = {"coffee": bundled_photos("benchmark")["coffee"]}
        return make_benchmark(tmp_path / "pairs", photo, MiniConfig(120, 160, pairs=1))

    monkeypatch.setattr(tool, "train", train)
    monkeypatch.setattr(tool, "warped_pairs", pairs)
    output = tmp_path / "found.json"
    tool.main(
        tool.Options((tmp_path,), study, only=(variant,), run_dir=tmp_path, output=output),
        "command",
    )
    assert [run_dir.name for _, run_dir in trained] == ["plain", variant.replace(" ", "-")]
    assert asked == [kind]
    found = json.loads(output.read_text())
    assert found["variants"] == {"plain": {}, variant: tool.STUDIES[study].variants[variant]}
    assert found["plain"] == to_dict(trained[0][0])
    rows = [row for row in found["differences"] if row["metric"] == "repeatability"]
    # The variant and what they all started from are the same network here.
    by_name = {(row["extractor"], row["part"]): row["difference"] for row in rows}
    assert by_name["before", "all"] == by_name[variant, "all"] != 0


def test_unknown_variants_and_parts_of_a_study_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="no variant 'nothing'; there are plain, whole photo"):
        tool.main(tool.Options(tmp_path, "views", only=("nothing",)), "command")
    with pytest.raises(SystemExit, match="give --output as well"):
        tool.main(tool.Options(tmp_path, "views", only=("any distance",)), "command")
