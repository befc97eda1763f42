"""Run health: what looks wrong in the metrics of a run, and what usually causes it.

Every check looks at numbers of metrics.jsonl and results.json and says what it found, also where all is well, so that a
reader sees which questions were asked. The limits are rules of thumb and part of each finding's words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from msdetr import files
from msdetr.analysis.runs import Run, read_run
from msdetr.errors import FileError
from msdetr.methods import matching_rules, variant_of

ENOUGH_STEPS = 500  # rule of thumb: before, classes that are not found yet say nothing


class Level(StrEnum):
    """How bad a finding is; UNKNOWN: the numbers it needs are not there."""

    BAD = "bad"
    WARN = "warn"
    FINE = "fine"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One question, its answer in words with the numbers, and (where something is wrong) likely cause and remedy."""

    check: str
    level: Level
    text: str
    cause: str = ""


def health(run: Run | str | Path) -> list[Finding]:
    """All checks on a run (finished or still going), the worst first."""
    if not isinstance(run, Run):
        run = read_run(run, finished=False)
    found = [finding for check in CHECKS for finding in check(run)]
    order = {Level.BAD: 0, Level.WARN: 1, Level.UNKNOWN: 2, Level.FINE: 3}
    return sorted(found, key=lambda finding: order[finding.level])


def _finite(run: Run) -> Iterator[Finding]:
    failed = sorted(run.path.glob("failed_step_*.json"))
    for path in failed:
        try:
            report = files.read_json(path)
        except FileError:
            report = {}
        report = report if isinstance(report, dict) else {}
        text = (
            f"step {report.get('step', '?')} failed on images {report.get('image_ids', '?')}: {report.get('error', '')}"
        )
        yield Finding(
            "finite numbers", Level.BAD, text,
            "a NaN or infinite loss, gradient or prediction: look at these images, lower train.lr, set train.clip_norm, or "
            "train with train.precision=fp32",
        )  # fmt: skip
    if not failed:
        bad = [line["step"] for line in run.steps if not _all_finite(line)]
        if bad:
            yield Finding(
                "finite numbers", Level.BAD, f"non-finite values logged from step {bad[0]} on", "see train.lr"
            )
        elif run.steps:
            yield Finding("finite numbers", Level.FINE, f"all {len(run.steps)} logged steps are finite")


def _loss_falls(run: Run) -> Iterator[Finding]:
    weights = run.config.loss
    weights = {"class": weights.class_weight, "l1": weights.l1_weight, "giou": weights.giou_weight}
    values = [
        sum(weight * sum(line["terms"][f"one_to_one/{term}"]) for term, weight in weights.items()) for line in run.steps
    ]
    first, last, ratio = _trend(values)
    if ratio is None:
        yield _unknown("loss falls", run)
        return
    # not the total: that of one-to-many supervision grows with the number of its positives, which is good news
    text = f"the one-to-one loss went from {first:.2f} to {last:.2f} (x {ratio:.2f})"
    cause = (
        "a learning rate that is far too low or too high, labels shifted by one, boxes in another format than cxcywh in "
        "[0, 1], or images that are not normalised as the backbone expects"
    )
    yield Finding("loss falls", *_graded(ratio, 0.9, 1.0, text, cause))


def _loss_scale(run: Run) -> Iterator[Finding]:
    if not run.steps:
        return
    terms = run.steps[0]["terms"]
    for name, per_layer in terms.items():
        if name.endswith("/class"):
            value = max(per_layer)
            if value > 20:
                cause = (
                    "class heads without the prior of 0.01 (bias -log(99)), or a loss divided by something other than the "
                    "number of objects"
                )
                yield Finding(
                    "loss scale", Level.BAD, f"{name} starts at {value:.1f} per layer; a few units are usual", cause
                )
                return
    text = "class terms start at " + ", ".join(f"{max(v):.2f} ({n})" for n, v in terms.items() if n.endswith("/class"))
    yield Finding("loss scale", Level.FINE, text)


def _gradients(run: Run) -> Iterator[Finding]:
    norms = np.array([line["grad_norm"] for line in run.steps], dtype=float)
    norms = norms[np.isfinite(norms)]
    if len(norms) < 4:
        yield _unknown("gradient norm", run)
        return
    middle, top = float(np.median(norms)), float(norms.max())
    text = f"median {middle:.3g}, largest {top:.3g} before clipping (clip_norm {run.config.train.clip_norm:g})"
    if middle < 1e-4:
        cause = "nothing left to learn, a frozen model, or a loss that is detached from the weights"
        yield Finding("gradient norm", Level.BAD, text, cause)
    elif top > 50 * middle:
        cause = "single batches dominate: an annotation error (tiny or huge boxes), or train.lr too high at the peak"
        yield Finding("gradient norm", Level.WARN, text, cause)
    else:
        yield Finding("gradient norm", Level.FINE, text)


def _boxes_move(run: Run) -> Iterator[Finding]:
    values = [line["terms"].get("one_to_one/l1") for line in run.steps]
    first, last, ratio = _trend([v[-1] for v in values if v])
    if ratio is None:
        yield _unknown("boxes learn", run)
        return
    giou = run.steps[-1]["terms"]["one_to_one/giou"][-1]
    text = (
        f"last layer's L1 per object went from {first:.3f} to {last:.3f} (x {ratio:.2f}), its GIoU loss is {giou:.2f}"
    )
    cause = (
        "boxes are stuck: targets in pixels instead of [0, 1] or in another format than cxcywh, reference points without "
        "gradient, or a learning rate that is too low"
    )
    yield Finding("boxes learn", *_graded(ratio, 0.8, 0.97, text, cause))


def _one_to_one_complete(run: Run) -> Iterator[Finding]:
    values = [line["positives_per_object"].get("one_to_one") for line in run.steps]
    values = [v for v in values if v is not None]
    if not values:
        yield _unknown("every object has a query", run)
        return
    least = min(values)
    text = f"{least:.3f} one-to-one pairs per object at least"
    if least < 0.999:
        cause = "images with more objects than model.num_queries: the rest goes unsupervised; raise it"
        yield Finding("every object has a query", Level.WARN, text, cause)
    else:
        yield Finding("every object has a query", Level.FINE, text)


def _one_to_many_positives(run: Run) -> Iterator[Finding]:
    if variant_of(run.config) == "baseline":
        return
    values = [line["positives_per_object"].get("one_to_many") for line in run.steps]
    values = [v for v in values if v is not None]
    if not values:
        yield _unknown("one-to-many positives", run)
        return
    m, tail = matching_rules(run.config), float(np.mean(values[-max(1, len(values) // 5) :]))
    share = tail * np.mean([line["objects_per_image"] for line in run.steps]) / run.config.model.num_queries
    text = f"{tail:.2f} positives per object lately (k = {m.k}), {share:.0%} of the queries"
    if tail < min(1.5, 0.5 * m.k):
        cause = (
            f"few predictions score above tau = {m.threshold:g}: early in training wait; later lower ms_detr.threshold, "
            "or look whether the boxes learn at all"
        )
        yield Finding("one-to-many positives", Level.WARN, text, cause)
    elif share > 0.4:
        cause = (
            "most queries are positives, so one-to-one supervision has little to tell apart: fewer per object "
            "(ms_detr.k), or more queries (about 15 % are positive on COCO)"
        )
        yield Finding("one-to-many positives", Level.WARN, text, cause)
    else:
        yield Finding("one-to-many positives", Level.FINE, text)


def _layers_refine(run: Run) -> Iterator[Finding]:
    tail = run.steps[-max(1, len(run.steps) // 5) :]
    rows = [line["terms"]["one_to_one/giou"] for line in tail if "one_to_one/giou" in line["terms"]]
    if not rows or len(rows[0]) < 2:
        return
    layers = np.mean(rows, axis=0)
    text = f"GIoU loss per decoder layer: {', '.join(f'{v:.2f}' for v in layers)}"
    if layers[-1] > 1.05 * layers[0]:
        cause = "later layers make boxes worse: references passed on in the wrong format, or too short a training"
        yield Finding("layers refine", Level.WARN, text, cause)
    else:
        yield Finding("layers refine", Level.FINE, text)


def _classes(run: Run) -> Iterator[Finding]:
    per_class = {name: ap for name, ap in run.results.get("per_class", {}).items() if ap is not None}
    if not per_class:
        yield _unknown("classes found", run)
        return
    never = [name for name, ap in per_class.items() if ap <= 0.001]
    overall = float(np.mean(list(per_class.values())))
    steps = run.results.get("steps") or (run.steps[-1]["step"] if run.steps else 0)
    if never and overall < 0.05 and steps < ENOUGH_STEPS:
        text = (
            f"mean AP over classes is {overall:.3f} after {steps} steps: too little training to judge (under "
            f"{ENOUGH_STEPS} steps a detector seldom finds much)"
        )
        yield Finding("classes found", Level.UNKNOWN, text)
    elif never and overall > 0.01:
        shown = ", ".join(never[:8]) + (f" and {len(never) - 8} more" if len(never) > 8 else "")
        cause = "too few training examples of these classes, a category id map that is off, or too short a training"
        yield Finding(
            "classes found", Level.WARN, f"AP is 0 for {len(never)} of {len(per_class)} classes: {shown}", cause
        )
    elif never:
        cause = (
            "no class is found: class ids shifted against the annotations, too short a training, or evaluation on other "
            "categories"
        )
        yield Finding("classes found", Level.BAD, f"mean AP over classes is {overall:.3f}", cause)
    else:
        lowest = min(per_class, key=per_class.get)
        text = f"every class has AP above 0; the lowest is {lowest} with {per_class[lowest]:.3f}"
        yield Finding("classes found", Level.FINE, text)


def _holds_its_best(run: Run) -> Iterator[Finding]:
    values = [(e["AP"], e["step"]) for e in run.evaluations if e.get("AP") is not None]
    if len(values) < 2:
        yield _unknown("AP holds", run)
        return
    (best, at), (last, _) = max(values), values[-1]
    text = f"AP {last:.3f} at the end, {best:.3f} at best (step {at})"
    if best > 0.05 and last < 0.9 * best:
        cause = "over-fitting (train longer only with more data or augmentation), or a learning rate that does not fall"
        yield Finding("AP holds", Level.WARN, text, cause)
    else:
        yield Finding("AP holds", Level.FINE, text)


def _data_keeps_up(run: Run) -> Iterator[Finding]:
    lines = [line for line in run.steps if line.get("seconds_per_step")]
    if not lines:
        yield _unknown("data keeps up", run)
        return
    share = float(np.mean([line["data_seconds_per_step"] / line["seconds_per_step"] for line in lines]))
    text = f"{share:.0%} of the time is spent waiting for data"
    if share > 0.3:
        cause = "decoding and augmentation are slower than training: raise data.workers, or data.cache for small sets"
        yield Finding("data keeps up", Level.WARN, text, cause)
    else:
        yield Finding("data keeps up", Level.FINE, text)


CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _finite, _loss_falls, _loss_scale, _gradients, _boxes_move, _one_to_one_complete, _one_to_many_positives,
    _layers_refine, _classes, _holds_its_best, _data_keeps_up,
)  # fmt: skip


def _trend(values: list[float]) -> tuple[float, float, float | None]:
    """Median of the first and the last tenth (at least one value), and their ratio; None for fewer than four values."""
    if len(values) < 4:
        return math.nan, math.nan, None
    part = max(1, len(values) // 10)
    first, last = float(np.median(values[:part])), float(np.median(values[-part:]))
    return first, last, last / first if first > 0 and math.isfinite(last / first) else None


def _graded(ratio: float, fine: float, warn: float, text: str, cause: str) -> tuple[Level, str, str]:
    level = Level.FINE if ratio <= fine else Level.WARN if ratio <= warn else Level.BAD
    return level, text, "" if level is Level.FINE else cause


def _unknown(check: str, run: Run) -> Finding:
    return Finding(
        check, Level.UNKNOWN, f"not enough in {run.path.name}'s metrics to tell; train longer or log more often"
    )


def _all_finite(line: Any) -> bool:
    if isinstance(line, dict):
        return all(_all_finite(value) for value in line.values())
    if isinstance(line, list):
        return all(_all_finite(value) for value in line)
    return line is not None and (not isinstance(line, float) or math.isfinite(line))  # written as null
