"""The health report finds planted faults, and stays quiet on a healthy run."""

import json
import re

import numpy as np
import pytest
from run_directories import make_run, train_line

from msdetr.analysis.health import Level, branch_losses, health
from msdetr.analysis.runs import read_run


def report(path):
    return {finding.check: finding for finding in health(path)}


def lines(change=lambda step: {}, loss=lambda step: 20 - step / 3):
    return [train_line(step, loss(step), **change(step)) for step in range(1, 41)]


def test_healthy_run_is_all_fine(tmp_path):
    findings = health(make_run(tmp_path / "run", per_class={"cat": 0.5, "dog": 0.3}))
    assert {finding.level for finding in findings} == {Level.FINE}
    assert len({finding.check for finding in findings}) >= 10 and all(not finding.cause for finding in findings)


def terms(**values):
    return lambda step: {"terms": train_line(step, 20 - step / 3)["terms"] | values}


FAULTS = {
    "loss falls": {"lines": lines(loss=lambda step: 20 + step)},
    "loss scale": {"lines": lines(terms(**{"one_to_one/class": [900.0, 900.0]}))},
    "gradient norm": {"lines": lines(lambda step: {"grad_norm": 1e-7})},
    "boxes learn": {"lines": lines(terms(**{"one_to_one/l1": [1.0, 1.0], "one_to_one/giou": [1.3, 1.3]}))},
    "every object has a query": {
        "lines": lines(lambda step: {"positives_per_object": {"one_to_one": 0.8, "one_to_many": 4}})
    },
    "one-to-many positives": {
        "lines": lines(lambda step: {"positives_per_object": {"one_to_one": 1.0, "one_to_many": 0.1}})
    },
    "layers refine": {"lines": lines(terms(**{"one_to_one/giou": [0.3, 0.6]}))},
    "classes found": {"per_class": {"cat": 0.5, "dog": 0.0}},
    "data keeps up": {"lines": lines(lambda step: {"data_seconds_per_step": 0.15})},
    "finite numbers": {"lines": lines(lambda step: {"grad_norm": float("nan")} if step == 9 else {})},
}


@pytest.mark.parametrize("check", FAULTS)
def test_planted_fault_is_found_with_its_cause(tmp_path, check):
    finding = report(make_run(tmp_path / "run", **FAULTS[check]))[check]
    assert finding.level in (Level.BAD, Level.WARN) and finding.cause


@pytest.mark.parametrize(
    ("alpha", "cause"),
    [
        (0.6, "next to no pairs.* IoU above 0.98 .* lower ms_detr.alpha"),
        (1.0, "no box is good enough"),
        (0.3, "IoU above 0.57"),
    ],
)
def test_a_one_to_many_branch_without_a_pair(tmp_path, alpha, cause):
    nothing = lines(lambda step: {"positives_per_object": {"one_to_one": 1.0, "one_to_many": 0.0}})
    finding = report(make_run(tmp_path / "run", lines=nothing, **{"ms_detr.alpha": alpha}))["one-to-many positives"]
    assert finding.level is Level.WARN and re.search(cause, finding.cause)


DETA = {"two_stage": True, "ms_detr": None, "deta": True, "deta.decoder_threshold": 0.55}
ROUTES = {"ms_detr": None, "mr_detr.threshold": 0.35, "mr_detr.k": 5}


@pytest.mark.parametrize(
    ("settings", "branch", "positives", "cause"),
    [
        (DETA, "one_to_one", 1.0, "queries start from overlap an object by 0.55: .* lower deta.decoder_threshold"),
        (DETA, "encoder", 1.0, "anchors overlap an object by 0.7: .* lower deta.encoder_threshold"),
        (DETA, "one_to_one", 4.0, r"few learn what is no object: .*\(deta.k\)"),
        (ROUTES, "ffn_route", 0.5, "tau = 0.35: .* lower mr_detr.threshold"),
        (ROUTES, "instruct_route", 0.0, "tau = 0.35, .* lower mr_detr.alpha or mr_detr.threshold"),
        (ROUTES, "ffn_route", 5.0, r"one-to-one .*\(mr_detr.k\)"),
    ],
)
def test_advice_on_positives_is_of_the_method_that_makes_them(tmp_path, settings, branch, positives, cause):
    change = {"positives_per_object": {branch: positives}, "positives_per_query": {branch: 0.15 * positives}}
    path = make_run(tmp_path / "run", lines=lines(lambda step: change), **settings)
    finding = report(path)["one-to-many positives"]
    assert finding.level is Level.WARN and re.search(cause, finding.cause) and "ms_detr" not in finding.cause
    assert branch != "one_to_one" or finding.text.startswith("decoder: ")


@pytest.mark.parametrize(("steps", "level"), [(40, Level.UNKNOWN), (499, Level.UNKNOWN), (500, Level.BAD)])
def test_classes_that_are_not_found_are_judged_after_enough_training_only(tmp_path, steps, level):
    path = make_run(tmp_path / "run", per_class={"cat": 0.0, "dog": 0.0})
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"steps": steps}))
    finding = report(path)["classes found"]
    assert finding.level is level
    assert ("too little training to judge" in finding.text) == (level is Level.UNKNOWN)
    assert bool(finding.cause) == (level is Level.BAD)


def test_a_detector_that_learned_quickly_is_judged_however_short_its_training(tmp_path):
    path = make_run(tmp_path / "run", per_class={"cat": 0.5, "dog": 0.0})  # 40 steps
    assert report(path)["classes found"].level is Level.WARN


def test_other_signs(tmp_path):
    crowded = lines(lambda step: {"objects_per_image": 60.0})
    assert "of the queries" in report(make_run(tmp_path / "a", lines=crowded))["one-to-many positives"].text
    assert report(tmp_path / "a")["one-to-many positives"].level is Level.WARN
    assert "one-to-many positives" not in report(make_run(tmp_path / "b", variant="baseline"))
    assert report(make_run(tmp_path / "c", lines=[]))["loss falls"].level is Level.UNKNOWN
    failed = make_run(tmp_path / "d", status="failed")
    (failed / "failed_step_7_rank0.json").write_text(json.dumps({"step": 7, "image_ids": [3, 4], "error": "NaN"}))
    assert "step 7 failed on images [3, 4]" in health(failed)[0].text
    spiky = lines(lambda step: {"grad_norm": 5000.0 if step == 30 else 5.0})
    assert report(make_run(tmp_path / "e", lines=spiky))["gradient norm"].level is Level.WARN


def test_every_branch_of_the_criterion_is_looked_at(tmp_path):
    """A further branch that does not learn, whose objects go without queries, or that has too many positives is named."""
    methods = {"hybrid.queries": 20, "denoising.queries": 4, "ms_detr.groups": "all"}

    def with_branches(step, loss=None, share=1.0, positives=4.0):
        line = train_line(step, 20 - step / 3)
        for name in ("hybrid", "denoising", "encoder"):
            for term in ("class", "l1", "giou"):
                line["terms"][f"{name}/{term}"] = [
                    x if loss is None else loss for x in line["terms"][f"one_to_one/{term}"]
                ]
        line["positives_per_object"]["one_to_many_hybrid"] = positives
        line["matched_share"] = {"one_to_one": 1.0, "hybrid": share}
        return line

    def found(name, **changes):
        lines = [with_branches(step, **changes) for step in range(1, 41)]
        return report(make_run(tmp_path / name, lines=lines, per_class={"cat": 0.5}, **methods))

    fine = found("fine")
    assert {finding.level for finding in fine.values()} == {Level.FINE}
    for name in ("one-to-one", "hybrid", "denoising", "encoder"):
        assert f"the {name} loss went from" in fine["loss falls"].text and f"{name}: last" in fine["boxes learn"].text
    stuck = found("stuck", loss=1.0)
    assert stuck["loss falls"].level is Level.WARN and "the hybrid loss went from" in stuck["loss falls"].text
    assert stuck["boxes learn"].level is Level.BAD and "hybrid: last layer's L1" in stuck["boxes learn"].text
    left = found("left", share=0.7)["every object has a query"]
    assert left.level is Level.WARN and "0.700 of the hybrid pairs" in left.text
    few = found("few", positives=0.2)["one-to-many positives"]
    assert few.level is Level.WARN and "one-to-many (hybrid): 0.20 positives" in few.text


def test_steps_that_are_not_finite_are_told_and_the_others_looked_at(tmp_path):
    def steps(broken):  # as a run logs them: null
        sound = {step: train_line(step, 20 - step / 3) for step in range(1, 41)}
        null = {"loss": None, "grad_norm": None, "terms": {name: [None, None] for name in sound[1]["terms"]}}
        return [line | (null if broken(step) else {}) for step, line in sound.items()]

    some = make_run(tmp_path / "some", lines=steps(lambda step: step > 30))
    found = report(some)
    assert found["finite numbers"].level is Level.BAD and "from step 31 on" in found["finite numbers"].text
    assert found["loss falls"].level is Level.FINE and found["gradient norm"].level is Level.FINE
    losses = branch_losses(read_run(some))["one_to_one"]
    assert np.isnan(losses).tolist() == [False] * 30 + [True] * 10
    every = report(make_run(tmp_path / "every", lines=steps(lambda step: True)))
    assert every["finite numbers"].level is Level.BAD and every["loss falls"].level is Level.UNKNOWN
