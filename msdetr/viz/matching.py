"""The matching microscope in pictures: who is matched to whom in every layer, and why. Explanations in, Figures out.

``picture`` is always an image [H, W, 3] (uint8, or floats in [0, 1]), or None for a blank canvas. Objects have a color
each, used for their box and for everything that is matched to them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from msdetr.analysis.look import SamplingPoints
from msdetr.analysis.matching import (
    BranchExplanation,
    Candidate,
    Explanation,
    ObjectOutcome,
    Outcome,
    QueryStep,
    Status,
    object_name,
)
from msdetr.viz.labels import draw_labels
from msdetr.viz.style import DARK, MARKERS, PALETTE, finish, safe, subplots

Picture = np.ndarray | None
OBJECTS = tuple(PALETTE[i] for i in (0, 1, 2, 4, 9, 3, 7, 8, 5, 6))
LEVELS = tuple(PALETTE[i] for i in (1, 4, 9, 8, 2, 3, 0, 6, 5, 7))  # of the pyramid

NUMBERED = 6  # best candidates of an object whose boxes are numbered
MOST = 8  # objects that are named in a legend, and whose queries are listed below a panel

SHORT = {
    Status.MATCHED: "matched",
    Status.MERGED: "merged",
    Status.BELOW: "≤ τ",
    Status.LOST: "other object",
    Status.BEYOND: "beyond k",
    Status.UNVOTED: "beyond votes",
    Status.TAKEN: "other object",
    Status.COSTLIER: "costs more",
    Status.BACKGROUND: "background",
}


def assignment_figure(
    explanation: Explanation, picture: Picture = None, branches: Sequence[str] = ("one_to_one", "one_to_many")
) -> Figure:
    """Draws the assignments of every decoder layer: a row per branch, a column per layer. Objects are drawn solid and
    numbered, the boxes matched to them dashed in the same color; below each panel stand the numbers of these queries."""
    layers = explanation.num_layers
    width = max(6.0, min(3.0 * layers, 14.0))
    height = (
        _height(picture, width / layers) + 0.45 + 0.5 / len(branches) + 0.15 * min(len(explanation.targets), MOST + 1)
    )
    figure, axes = subplots(layers, len(branches), width=width, height=height)
    for row, name in enumerate(branches):
        branch = explanation.branch(name)
        for layer in range(layers):
            ax = axes[row * layers + layer]
            canvas(ax, picture)
            draw_assignments(ax, branch, layer, picture)
            pairs = int(branch.matched[layer].sum())
            ax.set_title(f"{branch.title}, layer {layer + 1}: {pairs} pair{'s' * (pairs != 1)}", fontsize=10)
            ax.set_xlabel(_served_lines(branch, layer), fontsize=8, loc="left", linespacing=1.25)
    handles = [
        *_object_handles(explanation),
        Line2D([], [], color=DARK, linewidth=2.2, label="solid: object"),
        Line2D([], [], color=DARK, linewidth=1.2, linestyle="--", label="dashed: box of a query that serves it"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def ranking_figure(
    branch: BranchExplanation, target: int, layer: int = -1, top: int = 12, picture: Picture = None
) -> Figure:
    """Draws an object's candidates, ranked by score: where they are, of what their score is made, the Hungarian cost split
    into its terms (where pairs are not made by IoU alone), and what became of each."""
    layer = range(len(branch.score))[layer]
    candidates = branch.candidates(target, layer, top)
    figure = Figure(figsize=(11.5, max(3.6, 1.7 + 0.27 * len(candidates))), dpi=100, layout="constrained")
    ratios = (1.1, 1.3) if branch.by_overlap else (1.1, 1.3, 1.1)
    left, middle, *costs = figure.subplots(1, len(ratios), width_ratios=ratios)
    color, boxes = object_color(target), branch.seen.boxes
    canvas(left, picture)
    for candidate in reversed(candidates):
        matched = candidate.status in (Status.MATCHED, Status.MERGED)
        box = boxes[layer, 0, candidate.query].numpy()
        _box(left, box, picture, color if matched else DARK, "-" if matched else ":", 1.6 if matched else 1.2)
    _box(left, branch.targets.boxes[target].numpy(), picture, "white", "-", 4)
    _box(left, branch.targets.boxes[target].numpy(), picture, color, "-", 2.4)
    first = candidates[:NUMBERED]
    corners = [_corners(boxes[layer, 0, c.query].numpy(), picture) for c in first]
    shades = [color if c.status in (Status.MATCHED, Status.MERGED) else "#d9d9d9" for c in first]
    draw_labels(left, corners, [str(c.query) for c in first], shades, size=8)
    words = "solid: matched; numbers: queries" + ("" if branch.match_on is None else "\nboxes that queries start from")
    left.set_title(words, fontsize=10)

    place = np.arange(len(candidates))
    alpha = branch.matching.alpha
    probability = np.array([alpha * c.probability for c in candidates])
    overlap = np.array([(1 - alpha) * c.iou for c in candidates])
    if not branch.by_overlap:
        middle.barh(place, probability, color=PALETTE[0], label=f"{alpha:g} · class probability")
    share = "" if branch.by_overlap else f"{1 - alpha:g} · "
    middle.barh(place, overlap, left=probability, color=PALETTE[9], label=f"{share}IoU")
    if branch.by_overlap or branch.name == "one_to_many":
        limit, name = branch.matching.threshold, "threshold" if branch.by_overlap else "τ"
        middle.axvline(limit, color=DARK, linestyle="--", label=f"{name} = {limit:g}")
    for y, candidate in zip(place, candidates, strict=True):
        bold = "bold" if candidate.status in (Status.MATCHED, Status.MERGED) else "normal"
        middle.text(1.03, y, fate(branch, candidate.status), va="center", fontsize=8, fontweight=bold)
    middle.set_yticks(place, [f"query {c.query}" for c in candidates], fontsize=8)
    middle.set_xlim(0, 1.4)
    middle.set_xticks([0, 0.25, 0.5, 0.75, 1])

    for right in costs:
        _draw_costs(right, candidates)
    for ax in (middle, *costs):
        ax.invert_yaxis()
    what = "overlap" if branch.by_overlap else "score"
    finish(middle, f"{what} and fate", "IoU" if branch.by_overlap else "score", "", legend=False)
    for ax in (middle, *costs):
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, columnspacing=1)
    name = branch.object_name(target)
    figure.suptitle(f"{safe(name, 60)}: best candidates, {branch.title}, layer {layer + 1}", fontsize=12)
    return figure


def query_figure(
    explanation: Explanation, query: int, picture: Picture = None, sampling: Sequence[SamplingPoints] | None = None
) -> Figure:
    """Draws a query's path: per layer the reference it starts from, the box it predicts, where it looked (a mark per level of
    the pyramid, larger for more attention) and the object it is matched to. All panels show the same part of the image."""
    steps = explanation.query_path(query)
    width = max(6.0, min(3.2 * len(steps), 14.0))
    figure, axes = subplots(len(steps), width=width, height=_height(picture, width / len(steps)) + 1.55)
    for ax, step in zip(axes, steps, strict=True):
        canvas(ax, picture)
        served = step.one_to_one if step.one_to_one is not None else next(iter(step.one_to_many), None)
        color = DARK if served is None else object_color(served)
        if sampling is not None:
            marks = _sampled(ax, sampling[step.layer], query, picture)
        for target in sorted({*step.one_to_many, *([] if step.one_to_one is None else [step.one_to_one])}):
            box = explanation.targets.boxes[target].numpy()
            _box(ax, box, picture, "white", "-", 4)
            _box(ax, box, picture, object_color(target), "-", 2.4)
        if step.reference is not None and step.reference[2:].any():
            _box(ax, step.reference, picture, DARK, ":", 1.6)
        elif step.reference is not None:
            ax.plot(*_scaled(step.reference[:2], picture), "+", color=DARK, markersize=10)
        _box(ax, step.box, picture, color, "--", 2.0)
        names = explanation.class_names
        label = names[step.label] if step.label < len(names) else f"class {step.label}"
        many = "–" if not step.one_to_many else ", ".join(map(str, step.one_to_many))
        one = "–" if step.one_to_one is None else step.one_to_one
        ax.set_title(f"layer {step.layer + 1}: {safe(label, 18)} {step.probability:.2f}", fontsize=10)
        ax.set_xlabel(
            f"{explanation.one_to_one.title}: object {one}\none-to-many: object {many}\nIoU {step.iou:.2f}", fontsize=9
        )
    references = [step.reference for step in steps if step.reference is not None]
    handles = []
    if any(reference[2:].any() for reference in references):
        handles.append(Line2D([], [], color=DARK, linestyle=":", label="reference it starts from"))
    if any(not reference[2:].any() for reference in references):
        handles.append(Line2D([], [], color=DARK, marker="+", linestyle="", label="reference point it starts from"))
    handles += [
        Line2D([], [], color=DARK, linestyle="--", label="box it predicts"),
        Line2D([], [], color=DARK, linestyle="-", linewidth=2.4, label="object it serves"),
    ]
    if sampling is not None:
        handles += marks
    _zoom(axes, explanation, steps, picture)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(f"Query {query} through the decoder layers", fontsize=12)
    return figure


def why_not_figure(
    branch: BranchExplanation, query: int, target: int, layer: int = -1, picture: Picture = None
) -> Figure:
    """ "Why not this one?": the query, the object and what stands between them, with the reason in words."""
    layer = range(len(branch.score))[layer]
    reason = branch.why_not(query, target, layer)
    rival = reason.numbers.get("rival")
    height = min(max(_height(picture, 3.8), 2.6), 5.0) + 1.1
    figure = Figure(figsize=(10, height), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    canvas(left, picture)
    handles = []
    for other, style in ((target, "-"), (rival, "-.")):
        if other is not None:
            _box(left, branch.targets.boxes[other].numpy(), picture, "white", "-", 4)
            _box(left, branch.targets.boxes[other].numpy(), picture, object_color(other), style, 2.4)
            name = safe(branch.object_name(other), 34)
            handles.append(Line2D([], [], color=object_color(other), linestyle=style, linewidth=2.4, label=name))
    _box(left, branch.seen.boxes[layer, 0, query].numpy(), picture, DARK, "--", 2.2)
    words = f"query {query}" if branch.match_on is None else f"box that query {query} starts from"
    handles.append(Line2D([], [], color=DARK, linestyle="--", linewidth=2.2, label=words))
    left.set_title(f"{branch.title}, layer {layer + 1}", fontsize=10)
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=9)

    verdict = "yes" if not reason.obstacles else "no: " + ", ".join(status.value for status in reason.obstacles)
    right.axis("off")
    right.text(0, 1.0, f"Does query {query} serve object {target}?", fontsize=12, va="top", transform=right.transAxes)
    right.text(0, 0.87, safe(verdict, 100), fontsize=12, va="top", fontweight="bold", transform=right.transAxes)
    body = textwrap.wrap(reason.text, 72)
    text = {"va": "top", "transform": right.transAxes, "linespacing": 1.4}
    right.text(0, 0.76, safe_lines("\n".join(body)), fontsize=10, **text)
    at = (layer, target, query)
    rows = [("class probability", branch.probability[at]), ("IoU", branch.iou[at])]
    if not branch.by_overlap:
        rows += [
            ("score", branch.score[at]),
            ("class cost", branch.cost_class[at]),
            ("L1 cost", branch.cost_l1[at]),
            ("GIoU cost", branch.cost_giou[at]),
        ]
    numbers = "\n".join(f"{label:<18}{value:>8.3f}" for label, value in rows)
    right.text(0, 0.70 - 0.065 * len(body), numbers, fontsize=9, family="monospace", **text)
    return figure


def outcome_figure(
    explanation: Explanation, outcomes: Sequence[ObjectOutcome], picture: Picture = None, lines: int = 12
) -> Figure:
    """Draws what the detector makes of the image: found, doubled and missed objects, with the reason for each beside it."""
    wrapped = [textwrap.wrap(outcome.text, 84)[:4] for outcome in outcomes[:lines]]
    rows = sum(1.7 + len(text) for text in wrapped)
    figure = Figure(figsize=(11, max(4.2, 0.9 + 0.19 * rows)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    canvas(left, picture)
    right.axis("off")
    shades = {Outcome.FOUND: (PALETTE[2], "-"), Outcome.DOUBLED: (PALETTE[1], "--")}
    missed = (PALETTE[3], ":")
    boxes = explanation.one_to_one.predictions.boxes[-1, 0].numpy()
    for outcome in outcomes:
        color, style = shades.get(outcome.outcome, missed)
        box = explanation.targets.boxes[outcome.target].numpy()
        _box(left, box, picture, "white", "-", 4.5)
        _box(left, box, picture, color, style, 2.6)
        x, y = _scaled(box[:2] - box[2:] / 2, picture)
        left.text(x, y, str(outcome.target), fontsize=9, color="white", va="bottom",
                  bbox={"fc": color, "ec": "none", "pad": 1.5})  # fmt: skip
        for query, _, _ in outcome.detections:
            _box(left, boxes[query], picture, color, "-", 0.9)
    scale = max(rows, (figure.get_figheight() - 0.9) / 0.19)  # one unit is a line of text
    right.set_ylim(scale, 0)
    y = 0.0
    for outcome, text in zip(outcomes, wrapped, strict=False):
        color, _ = shades.get(outcome.outcome, missed)
        right.text(0, y, outcome.outcome.value, color=color, fontsize=10, fontweight="bold", va="top")
        right.text(0, y + 1.1, safe_lines("\n".join(text)), fontsize=9, va="top", color=DARK)
        y += 1.7 + len(text)
    if len(outcomes) > lines:
        right.text(1, scale, f"and {len(outcomes) - lines} more", fontsize=9, ha="right", va="bottom", color=DARK)
    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=2.6, label=label)
        for (color, style), label in ((shades[Outcome.FOUND], "found"), (shades[Outcome.DOUBLED], "doubled"), (missed, "missed"))
    ]  # fmt: skip
    handles.append(Line2D([], [], color=DARK, linewidth=0.9, label="detections"))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=9)
    return figure


# --- pieces -----------------------------------------------------------------------------------------------------------


def canvas(ax: Axes, picture: Picture) -> None:
    """Draws the image (paled, so that boxes show), or an empty unit square."""
    height, width = (1.0, 1.0) if picture is None else picture.shape[:2]
    if picture is not None:
        shown = np.asarray(picture, dtype=np.float64)
        shown = shown / 255 if np.asarray(picture).dtype == np.uint8 else shown
        ax.imshow(np.clip(0.35 + 0.65 * shown, 0, 1), extent=(0, width, height, 0), interpolation="bilinear")
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def draw_assignments(ax: Axes, branch: BranchExplanation, layer: int, picture: Picture) -> None:
    """Draws objects solid, the boxes of the queries matched to them dashed, in one color per object."""
    boxes = branch.predictions.boxes[layer, 0].numpy()
    for target in range(len(branch.targets)):
        box = branch.targets.boxes[target].numpy()
        _box(ax, box, picture, "white", "-", 4)
        _box(ax, box, picture, object_color(target), "-", 2.2)
        for query in branch.serving(target, layer):
            _box(ax, boxes[query], picture, object_color(target), "--", 1.2)
    _number_objects(ax, branch.targets.boxes.numpy(), picture)


def fate(branch: BranchExplanation, status: Status) -> str:
    """What became of a pair, in two words; τ is a limit of scores, and not of matching by IoU."""
    return "overlaps less" if branch.by_overlap and status is Status.BELOW else SHORT[status]


def object_color(target: int) -> str:
    """Returns the color of an object in every picture of its image: those that are easiest to tell apart come first."""
    return OBJECTS[target % len(OBJECTS)]


def _draw_costs(ax: Axes, candidates: Sequence[Candidate]) -> None:
    """Draws the Hungarian cost of candidates, split into its terms, one bar below the other."""
    place = np.arange(len(candidates))
    rest = np.zeros(len(candidates)), np.zeros(len(candidates))  # ends of the bars to the left and right of 0
    for shade, label, values in (
        (PALETTE[1], "class", [c.cost_class for c in candidates]),
        (PALETTE[2], "L1", [c.cost_l1 for c in candidates]),
        (PALETTE[4], "GIoU", [c.cost_giou for c in candidates]),
    ):
        values = np.array(values)
        start = np.where(values < 0, rest[0], rest[1])
        ax.barh(place, values, left=start, color=shade, label=label)
        rest = rest[0] + np.minimum(values, 0), rest[1] + np.maximum(values, 0)
    ax.plot([c.cost for c in candidates], place, "D", color=DARK, markersize=4, label="total")
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.set_yticks(place, [])
    finish(ax, "Hungarian cost (lower is better)", "cost", "", legend=False)


def _height(picture: Picture, width: float) -> float:
    """Height in inches of a panel that shows the picture at this width."""
    return width if picture is None else width * picture.shape[0] / picture.shape[1]


def _served_lines(branch: BranchExplanation, layer: int) -> str:
    """'object 0: queries 7, 3', a line per object, as many as there is room for."""
    served = [branch.serving(target, layer) for target in range(len(branch.targets))]
    words = [f"quer{'y' if len(q) == 1 else 'ies'} {', '.join(map(str, q))}" if q else "no query" for q in served]
    lines = [f"object {target}: {text}" for target, text in enumerate(words[:MOST])]
    return "\n".join(lines + [f"and {len(words) - MOST} more objects"] * (len(words) > MOST))


def _number_objects(ax: Axes, boxes: np.ndarray, picture: Picture) -> None:
    corners = [_corners(box, picture) for box in boxes]
    names = [str(target) for target in range(len(boxes))]
    draw_labels(ax, corners, names, [object_color(target) for target in range(len(boxes))], size=8)


def _corners(box: np.ndarray, picture: Picture) -> tuple[float, float, float, float]:
    (cx, cy), (w, h) = _scaled(box[:2], picture), _scaled(box[2:], picture)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def safe_lines(text: str) -> str:
    """Several lines of words with names in them, safe to draw."""
    return "\n".join(safe(line, 200) for line in text.split("\n"))


def _object_handles(explanation: Explanation) -> list[Line2D]:
    """An entry of the legend per object, of as many as there is room for."""
    count = len(explanation.targets)
    handles = [
        Line2D([], [], color=object_color(t), linewidth=2.2,
               label=safe(object_name(t, explanation.targets, explanation.class_names), 34))
        for t in range(min(count, MOST))
    ]  # fmt: skip
    return handles + [Line2D([], [], linestyle="", label=f"and {count - MOST} more objects")] * (count > MOST)


def _scaled(point: np.ndarray, picture: Picture) -> tuple[float, float]:
    height, width = (1.0, 1.0) if picture is None else picture.shape[:2]
    return float(point[0]) * width, float(point[1]) * height


def _box(ax: Axes, box: np.ndarray, picture: Picture, color: str, style: str, width: float) -> None:
    (cx, cy), (w, h) = _scaled(box[:2], picture), _scaled(box[2:], picture)
    ax.add_patch(Rectangle((cx - w / 2, cy - h / 2), w, h, fill=False, ec=color, ls=style, lw=width))


def _sampled(ax: Axes, points: SamplingPoints, query: int, picture: Picture) -> list[Line2D]:
    """Draws the sampling points of a query's heads, a mark and color per level; returns the legend's entries."""
    locations, weights = points.locations[query], points.weights[query]  # [M, L, P, 2], [M, L, P]
    handles = []
    for level in range(locations.shape[1]):
        marker, color = MARKERS[level % len(MARKERS)], LEVELS[level % len(LEVELS)]
        places, size = locations[:, level].reshape(-1, 2), weights[:, level].reshape(-1)
        x, y = zip(*(_scaled(place, picture) for place in places), strict=True)
        ax.scatter(
            x, y, s=5 + 130 * size, color=color, marker=marker, alpha=0.8, linewidths=0.4, edgecolors=DARK, zorder=3
        )
        handles.append(
            Line2D([], [], color=color, marker=marker, mec=DARK, linestyle="", label=f"looks at level {level}")
        )
    return handles


def _zoom(axes: Sequence[Axes], explanation: Explanation, steps: Sequence[QueryStep], picture: Picture) -> None:
    """Shows the part of the image where the query's boxes and objects are, with a margin around it."""
    served = {t for s in steps for t in (*s.one_to_many, *([] if s.one_to_one is None else [s.one_to_one]))}
    boxes = [step.box for step in steps] + [explanation.targets.boxes[target].numpy() for target in served]
    corners = np.array([_corners(np.asarray(box), picture) for box in boxes])
    (x0, y0), (x1, y1) = corners[:, :2].min(0), corners[:, 2:].max(0)
    height, width = (1.0, 1.0) if picture is None else picture.shape[:2]
    share = min(1.0, max(1.7 * (x1 - x0) / width, 1.7 * (y1 - y0) / height, 0.3))  # panels keep the image's proportions
    left = min(max((x0 + x1 - share * width) / 2, 0), (1 - share) * width)
    top = min(max((y0 + y1 - share * height) / 2, 0), (1 - share) * height)
    for ax in axes:
        ax.set_xlim(left, left + share * width)
        ax.set_ylim(top + share * height, top)


__all__ = [
    "assignment_figure",
    "canvas",
    "draw_assignments",
    "fate",
    "object_color",
    "outcome_figure",
    "query_figure",
    "ranking_figure",
    "why_not_figure",
]
