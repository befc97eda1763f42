"""Run health: what looks wrong in the metrics of a run, and what usually causes it.

Every check looks at numbers of metrics.jsonl and results.json and says what it found, also where all is well, so that a
reader sees which questions were asked. Losses and matches are looked at in every branch of the run's criterion. The limits
are rules of thumb and part of each finding's words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from msdetr import files
from msdetr.analysis.branches import branch_title
from msdetr.analysis.reasons import innermost
from msdetr.analysis.runs import Run, read_run
from msdetr.errors import FileError
from msdetr.losses import Branch
from msdetr.matching import IoUMatcher, OneToManyMatcher
from msdetr.methods import build_criterion
from msdetr.methods.mr_detr import FFN_ROUTE, INSTRUCT_ROUTE
from msdetr.modules.heads import PRIOR_PROBABILITY

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
    """All checks on a run (finished or still going), the worst first. Steps with a number that is not finite are told by the
    first check; the others look at the steps without."""
    if not isinstance(run, Run):
        run = read_run(run, finished=False)
    sound = replace(run, steps=[line for line in run.steps if _all_finite(line)])
    found = [*_finite(run), *(finding for check in CHECKS for finding in check(sound))]
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
    # not of branches whose number of positives is free: their loss grows with it, which is good news
    graded = []
    for branch in _branches(run):
        if not _is_fixed(branch) and branch.name != "one_to_one":
            continue
        values = _weighted(run, branch)
        first, last, ratio = _trend(values)
        if ratio is not None:
            text = f"the {_title(branch)} loss went from {first:.2f} to {last:.2f} (x {ratio:.2f})"
            graded.append((_grade(ratio, 0.9, 1.0), text))
    cause = (
        "a learning rate that is far too low or too high, labels shifted by one, boxes in another format than cxcywh in "
        "[0, 1], or images that are not normalised as the backbone expects"
    )
    yield _worst("loss falls", graded, cause, run)


def branch_losses(run: Run) -> dict[str, list[float]]:
    """Branch -> what it adds to the loss at each logged step: its weighted terms, summed over layers; NaN where a term is not
    finite. Without branches that some step has not logged."""
    losses = {branch.name: _weighted(run, branch) for branch in _branches(run)}
    return {name: values for name, values in losses.items() if len(values) == len(run.steps)}


def _weighted(run: Run, branch: Branch) -> list[float]:
    def weighted(line: dict[str, Any]) -> float:
        terms = {term: line["terms"][f"{branch.name}/{term}"] for term in branch.weights}
        sums = {term: sum(math.nan if x is None else x for x in layers) for term, layers in terms.items()}
        return sum(weight * sums[term] for term, weight in branch.weights.items()) * branch.factor(
            line["epoch"] / run.config.train.epochs
        )

    return [
        weighted(line) for line in run.steps if all(f"{branch.name}/{term}" in line["terms"] for term in branch.weights)
    ]


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
    graded = []
    for branch in _branches(run):
        lines = [line["terms"] for line in run.steps if f"{branch.name}/l1" in line["terms"]]
        first, last, ratio = _trend([terms[f"{branch.name}/l1"][-1] for terms in lines])
        if not (_is_fixed(branch) or branch.name == "one_to_one") or ratio is None:
            continue
        text = f"{_title(branch)}: last layer's L1 per object went from {first:.3f} to {last:.3f} (x {ratio:.2f})"
        if f"{branch.name}/giou" in lines[-1]:
            text += f", its GIoU loss is {lines[-1][f'{branch.name}/giou'][-1]:.2f}"
        # a branch with known pairs starts from boxes that are nearly right
        graded.append((_grade(ratio, *((1.0, 1.2) if branch.matcher is None else (0.8, 0.97))), text))
    cause = (
        "boxes are stuck: targets in pixels instead of [0, 1] or in another format than cxcywh, reference points without "
        "gradient, or a learning rate that is too low"
    )
    yield _worst("boxes learn", graded, cause, run)


def _objects_have_queries(run: Run) -> Iterator[Finding]:
    graded = []
    for branch in _branches(run):
        if branch.each_object is None:
            continue
        shares = _logged(run, "matched_share", branch.name)
        if not shares and branch.name == "one_to_one":  # version 0.1 did not log the share
            shares = _logged(run, "positives_per_object", branch.name)
        if shares:
            level = Level.WARN if min(shares) < 0.999 else Level.FINE
            graded.append((level, f"{min(shares):.3f} of the {_title(branch)} pairs at least"))
    cause = "images with more objects than the branch has queries: the rest goes unsupervised; raise model.num_queries"
    yield _worst("every object has a query", graded, cause, run)


def _positives(run: Run) -> Iterator[Finding]:
    free = [branch for branch in _branches(run) if not _is_fixed(branch)]
    if not free:
        return
    graded, causes = [], []
    for branch in free:
        values = _logged(run, "positives_per_object", branch.name)
        if not values:
            continue
        tail = _lately(values)
        shares = _logged(run, "positives_per_query", branch.name)
        if not shares and branch.name == "one_to_many":  # version 0.1 did not log the share
            objects = np.mean([line["objects_per_image"] for line in run.steps])
            shares = [tail * objects / run.config.model.num_queries]
        most = branch.matcher.most
        limit = "" if most is None else f" (at most {most})"
        text = f"{_title(branch)}: {tail:.2f} positives per object lately{limit}"
        text += f", {_lately(shares):.0%} of the queries" if shares else ""
        level = Level.FINE
        if most is not None and tail < min(1.5, 0.5 * most):
            level = Level.WARN
            causes.append(_why_few(branch, tail))
        elif shares and _lately(shares) > 0.4:
            level = Level.WARN
            causes.append(_why_many(branch))
        graded.append((level, text))
    yield _worst("one-to-many positives", graded, "; ".join(dict.fromkeys(causes)), run)


def _section(branch: Branch) -> str:
    """The section of the configuration that says how a branch with a free number of positives is matched."""
    if isinstance(innermost(branch.matcher), IoUMatcher):
        return "deta"
    if branch.name.startswith("one_to_many"):
        return "ms_detr"
    return "mr_detr" if branch.name in (FFN_ROUTE, INSTRUCT_ROUTE) else branch.name


def _why_few(branch: Branch, positives: float) -> str:
    rules, section = innermost(branch.matcher), _section(branch)
    if isinstance(rules, IoUMatcher):
        boxes, name = (
            ("anchors", "encoder")
            if branch.name.startswith("encoder")
            else ("boxes that queries start from", "decoder")
        )
        return (
            f"few {boxes} overlap an object by {rules.threshold:g}: early in training wait; later lower "
            f"deta.{name}_threshold, or look whether the boxes learn at all"
        )
    if not isinstance(rules, OneToManyMatcher):
        return "its matcher finds few pairs: early in training wait; later look whether the boxes learn at all"
    if positives < 0.005:  # what is shown as 0.00
        return _why_no_pair(rules, section)
    return (
        f"few predictions score above tau = {rules.threshold:g}: early in training wait; later lower "
        f"{section}.threshold, or look whether the boxes learn at all"
    )


def _why_many(branch: Branch) -> str:
    rules = innermost(branch.matcher)
    fewer = f" ({_section(branch)}.k)" if isinstance(rules, (IoUMatcher, OneToManyMatcher)) else ""
    if branch.name == "one_to_one":
        return f"most queries are positives, so few learn what is no object: fewer per object{fewer}, or more queries"
    return (
        f"most queries are positives, so one-to-one supervision has little to tell apart: fewer per object{fewer}, or "
        "more queries (about 15 % are positive on COCO)"
    )


def _why_no_pair(rules: OneToManyMatcher, section: str) -> str:
    """A branch without pairs learns that nothing is an object, so its probabilities stay where they begin."""
    needed = (rules.threshold - rules.alpha * PRIOR_PROBABILITY) / (1 - rules.alpha) if rules.alpha < 1 else math.inf
    box = f"a box needs an IoU above {needed:.2f} for it" if needed < 1 else "no box is good enough for it"
    return (
        f"next to no pairs: probabilities begin at {PRIOR_PROBABILITY:g}, and there, with alpha = {rules.alpha:g} and "
        f"tau = {rules.threshold:g}, {box}; lower {section}.alpha or {section}.threshold, or look whether the boxes learn at all"
    )


def _layers_refine(run: Run) -> Iterator[Finding]:
    tail = run.steps[-max(1, len(run.steps) // 5) :]
    graded = []
    for branch in _branches(run):
        name = f"{branch.name}/giou"
        rows = [line["terms"][name] for line in tail if name in line["terms"]]
        if not _is_fixed(branch) or not rows or len(rows[0]) < 2:
            continue
        layers = np.mean(rows, axis=0)
        text = f"{_title(branch)} GIoU loss per decoder layer: {', '.join(f'{v:.2f}' for v in layers)}"
        graded.append((Level.WARN if layers[-1] > 1.05 * layers[0] else Level.FINE, text))
    cause = "later layers make boxes worse: references passed on in the wrong format, or too short a training"
    if graded:
        yield _worst("layers refine", graded, cause, run)


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
    _loss_falls, _loss_scale, _gradients, _boxes_move, _objects_have_queries, _positives,
    _layers_refine, _classes, _holds_its_best, _data_keeps_up,
)  # fmt: skip


def _trend(values: list[float]) -> tuple[float, float, float | None]:
    """Median of the first and the last tenth (at least one value), and their ratio; None for fewer than four values."""
    if len(values) < 4:
        return math.nan, math.nan, None
    part = max(1, len(values) // 10)
    first, last = float(np.median(values[:part])), float(np.median(values[-part:]))
    return first, last, last / first if first > 0 and math.isfinite(last / first) else None


def _branches(run: Run) -> list[Branch]:
    return build_criterion(run.config).branches


def _title(branch: Branch) -> str:
    return branch_title(branch.name, several=branch.each_object != 1)


def _is_fixed(branch: Branch) -> bool:
    """Whether the number of a branch's pairs is given, and does not depend on what is predicted."""
    return branch.matcher is None or branch.each_object is not None


def _logged(run: Run, key: str, branch: str) -> list[float]:
    values = [line.get(key, {}).get(branch) for line in run.steps]
    return [value for value in values if value is not None]


def _lately(values: list[float]) -> float:
    """Mean of the last fifth."""
    return float(np.mean(values[-max(1, len(values) // 5) :]))


def _grade(ratio: float, fine: float, warn: float) -> Level:
    return Level.FINE if ratio <= fine else Level.WARN if ratio <= warn else Level.BAD


def _worst(check: str, graded: list[tuple[Level, str]], cause: str, run: Run) -> Finding:
    """One finding about several branches, as bad as the worst of them; without any, the numbers are not there."""
    if not graded:
        return _unknown(check, run)
    level = next(level for level in (Level.BAD, Level.WARN, Level.FINE) if level in dict(graded))
    return Finding(check, level, "; ".join(text for _, text in graded), "" if level is Level.FINE else cause)


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
