"""Comparisons with DETA and Stable-DINO notice what a case was computed with: other settings fail, by their name where there is
nothing for them here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import conformance
import golden
import pytest

SMALL = Path(__file__).parent / "golden_small"


def compared(folder: Path, system: str, keep: tuple[str, ...], change: dict, capsys) -> str:
    """What is printed for one small case with some of its fields changed. keep: where it stands in the manifest."""
    shutil.copytree(SMALL / system, folder / system)
    manifest = golden.read_json(folder / system / "manifest.json")
    *sections, name = keep
    spec = manifest
    for section in keep:
        spec = spec[section]
    for section in ("assign", "select", "post", "criterion", "cases"):
        if section in manifest:
            manifest[section] = {}
    holder = manifest
    for section in sections:
        holder = holder.setdefault(section, {})
    holder[name] = spec | change
    (folder / system / "manifest.json").write_text(json.dumps(manifest))
    passed, failed = conformance.run(folder, [system])
    printed = capsys.readouterr().out
    assert passed + failed == 1, printed
    return printed


CASES = {
    "deta": [
        (("assign", "stage2", "crowded"), {"max_k": 2}),
        (("assign", "stage1", "grid_empty_image"), {"t_high": 0.2}),
        (("select", "small_image"), {"num_queries": 50}),
        (("criterion", "both_shared_query"), {"assign_second_stage": False}),
    ],
    "stable": [
        (("cases", "stable_loss.exp"), {"post": "sin"}),
        (("cases", "stable_loss.power"), {"ta_beta": 2.0}),
        (("cases", "stable_match.off"), {"cec_beta": 0.5}),
        (("cases", "mixed_match.k_capped"), {"k": 1}),
        (("cases", "ia_bce.k2"), {"tau": 1.0}),
        (("cases", "vfl.default"), {"alpha": 0.25}),
        (("cases", "stable_cdn.k3"), {"neg_step_type": "none"}),
        (("cases", "align_criterion.one_empty"), {"match_num": [1, 2, 2, 1]}),
    ],
}
ALL = [(system, *case) for system, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("system", "where", "change"), ALL, ids=lambda value: str(value)[:40])
def test_a_setting_is_not_ignored(system, where, change, tmp_path, capsys):
    assert compared(tmp_path / "as_it_is", system, where, {}, capsys).startswith("pass")
    assert compared(tmp_path / "changed", system, where, change, capsys).startswith("FAIL")


@pytest.mark.parametrize(
    ("system", "where"),
    [
        ("deta", ("assign", "stage2", "crowded")),
        ("deta", ("criterion", "both_shared_query")),
        ("deta", ("post", "fewer_than_100")),
        ("stable", ("cases", "stable_loss.exp")),
        ("stable", ("cases", "stable_match.off")),
        ("stable", ("cases", "stable_criterion.one_empty")),
        ("stable", ("cases", "align_criterion.none")),
        ("stable", ("cases", "stable_cdn.few")),
    ],
)
def test_a_setting_that_cannot_be_honored_fails_by_its_name(system, where, tmp_path, capsys):
    printed = compared(tmp_path, system, where, {"soft_labels": True}, capsys)
    assert printed.startswith("FAIL") and "the case carries soft_labels" in printed


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("stable_loss.exp", {"kind": "quality_loss"}, "of the kind quality_loss"),
        ("stable_loss.exp", {"type": "quality"}, "type = 'quality'"),
        ("stable_cdn.k3", {"neg_step_type": "times:2"}, "neg_step_type = 'times:2'"),
    ],
)
def test_kinds_that_are_unknown(where, change, message, tmp_path, capsys):
    assert message in compared(tmp_path, "stable", ("cases", where), change, capsys)
