"""The microscope in a terminal: the same answers as the figures, as plain text. Names are made harmless."""

from __future__ import annotations

from collections.abc import Sequence

from msdetr.analysis.branches import branch_title
from msdetr.analysis.health import Finding
from msdetr.analysis.matching import BranchExplanation, Explanation, ObjectOutcome, QueryStep, object_name
from msdetr.analysis.runs import Row
from msdetr.viz.matching import fate
from msdetr.viz.style import safe_text


def assignment_text(explanation: Explanation, layer: int | None = None) -> str:
    """Says who serves which object, one line per object and layer (all layers, or one), then in the further branches."""
    layers = range(explanation.num_layers) if layer is None else [range(explanation.num_layers)[layer]]
    lines = []
    for i in layers:
        lines.append(f"layer {i + 1}")
        for t in range(len(explanation.targets)):
            name = safe_text(object_name(t, explanation.targets, explanation.class_names))
            one, many = (_queries(explanation.branch(b).serving(t, i)) for b in ("one_to_one", "one_to_many"))
            lines.append(f"  {name:<28} {explanation.one_to_one.title}: {one:<6} one-to-many: {many}")
            for branch in explanation.further:
                if i == layers[-1]:
                    lines.append(f"    {branch.title}: {_queries(_serving(branch, t))}")
    lines += [f"({branch_title(name)}: its matcher does not explain itself)" for name in explanation.unexplained]
    if explanation.one_to_many.hypothetical:
        what = "one-to-many is" if "one_to_many" in explanation.unexplained else "no one-to-many branch:"
        lines.append(f"({what} shown as it would be on the {explanation.one_to_one.title} predictions)")
    return "\n".join(lines)


def candidate_text(branch: BranchExplanation, target: int, layer: int = -1, top: int = 10) -> str:
    """Lists an object's candidates as a table, best score first; without costs where pairs are made by IoU alone."""
    number = range(len(branch.score))[layer] + 1
    name = safe_text(branch.object_name(target))
    seen = "" if branch.match_on is None else ", by the boxes that queries start from"
    rows = [f"{name}: {branch.title}, layer {number}{seen}"]
    if branch.by_overlap:
        limit, most = branch.matching.threshold, branch.matching.k
        rows.append(f"matched by IoU: from {limit:g} on and the best one, {most} at most; costs play no part")
        rows.append(f"{'rank':>4} {'query':>5} {'prob.':>6} {'IoU':>6} | fate")
        for c in branch.candidates(target, layer, top):
            rows.append(f"{c.rank:>4} {c.query:>5} {c.probability:>6.3f} {c.iou:>6.3f} | {fate(branch, c.status)}")
        return "\n".join(rows)
    rows.append(
        f"{'rank':>4} {'query':>5} {'prob.':>6} {'IoU':>6} {'score':>6} | {'class':>6} {'L1':>6} {'GIoU':>6} {'cost':>7} | fate"
    )
    for c in branch.candidates(target, layer, top):
        rows.append(
            f"{c.rank:>4} {c.query:>5} {c.probability:>6.3f} {c.iou:>6.3f} {c.score:>6.3f} | "
            f"{c.cost_class:>6.2f} {c.cost_l1:>6.2f} {c.cost_giou:>6.2f} {c.cost:>7.2f} | {fate(branch, c.status)}"
        )
    return "\n".join(rows)


def served_text(branch: BranchExplanation, query: int) -> str:
    """Says which objects a query serves in each layer of a branch, one line each."""
    lines = [f"query {query}: {branch.title}"]
    for layer in range(len(branch.score)):
        names = (safe_text(branch.object_name(target)) for target in branch.served(query, layer))
        lines.append(f"  layer {layer + 1}: serves {', '.join(names) or '-'}")
    return "\n".join(lines)


def path_text(
    steps: Sequence[QueryStep], query: int, class_names: Sequence[str] = (), title: str = "one-to-one"
) -> str:
    """Follows a query through the layers, one line each. title: of the branch that the path is of."""
    lines = [f"query {query}"]
    for step in steps:
        label = class_names[step.label] if step.label < len(class_names) else f"class {step.label}"
        box = ", ".join(f"{x:.3f}" for x in step.box)
        one = "-" if step.one_to_one is None else step.one_to_one
        many = ", ".join(map(str, step.one_to_many)) or "-"
        near = "" if step.nearest is None else f"; closest to object {step.nearest} (IoU {step.iou:.2f})"
        lines.append(
            f"  layer {step.layer + 1}: {safe_text(label, 20)} {step.probability:.2f}, box ({box}); "
            f"serves {title}: {one}, one-to-many: {many}{near}"
        )
    return "\n".join(lines)


def outcome_text(outcomes: Sequence[ObjectOutcome]) -> str:
    """Says what became of every object in the output."""
    return "\n".join(f"[{o.outcome.value}] {safe_text(o.text, 400)}" for o in outcomes) or "no objects in this image"


def health_text(findings: Sequence[Finding]) -> str:
    """Writes the health report, worst first."""
    marks = {"bad": "!!", "warn": " !", "fine": "ok", "unknown": " ?"}
    lines = []
    for f in findings:
        lines.append(f"{marks[f.level]} {f.check}: {safe_text(f.text, 400)}")
        if f.cause:
            lines.append(f"     likely cause: {safe_text(f.cause, 400)}")
    return "\n".join(lines)


def verdict_text(rows: Sequence[Row], metric: str = "AP") -> str:
    """Says of each row how it compares with the first in a metric, and whether that is more than twice the larger scatter
    over seeds (standard deviation); with one run on a side there is none to compare with."""
    first, *others = rows
    base, lines = first.metrics[metric], []
    for row in others:
        mine = row.metrics[metric]
        if mine.mean is None or base.mean is None:
            lines.append(f"{metric}: undefined for {safe_text(row.name if mine.mean is None else first.name)}")
            continue
        gain = 100 * (mine.mean - base.mean)
        text = f"{metric}: {safe_text(row.name)} {gain:+.1f} points against {safe_text(first.name)}"
        if mine.std is None or base.std is None:
            lines.append(f"{text}; one run on a side has no scatter: this is an anecdote")
            continue
        twice = 200 * max(mine.std, base.std)
        lines.append(
            f"{text}; twice the larger scatter is {twice:.1f}: this {'passes' if abs(gain) > twice else 'shows nothing'}"
        )
    return "\n".join(lines) or f"{metric}: one group only, nothing to compare"


def _serving(branch: BranchExplanation, target: int) -> list[int]:
    """Queries of a branch's last layer that serve an object or a copy of it."""
    original = branch.targets.original
    rows = [target] if original is None else (original == target).nonzero().flatten().tolist()
    return sorted({query for row in rows for query in branch.serving(row)})


def _queries(queries: Sequence[int]) -> str:
    return ", ".join(map(str, queries)) or "-"
