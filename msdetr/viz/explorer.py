"""The matching of some images under changing settings: tau, k, alpha, decoder layer, image and training step.

In a notebook that somebody sits at it is the page (``msdetr.viz.page``); without a browser: ``Explorer.figure(...)`` for
papermill and repository pages, ``Explorer.text(...)`` for a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from msdetr.analysis.matching import STATUSES, BranchExplanation, Explanation, Status
from msdetr.analysis.specimen import Microscope, Specimen, recorded
from msdetr.analysis.stability import MatchHistory
from msdetr.errors import InputError
from msdetr.viz.matching import SHORT, canvas, draw_assignments, object_color
from msdetr.viz.style import DARK, finish, safe
from msdetr.viz.text import assignment_text, candidate_text

MARKS = {
    Status.MATCHED: "o",
    Status.MERGED: "D",
    Status.BELOW: "v",
    Status.LOST: "x",
    Status.BEYOND: "^",
    Status.UNVOTED: "^",
}


class Explorer:
    """A table of specimens, [image][step], to look at under changing matching settings.

    ``look(image, step)`` returns the specimen; ``images`` and ``steps`` are the labels of the sliders.
    """

    def __init__(
        self, look: Callable[[int, int], Specimen], images: Sequence[str], steps: Sequence[str] = ("now",)
    ) -> None:
        if not images or not steps:
            raise InputError("nothing to explore: give at least one image and one step")
        self._look, self.images, self.steps = look, list(images), list(steps)
        self._last: tuple[tuple[int, int], Specimen] | None = None

    @classmethod
    def of_specimens(cls, specimens: Sequence[Specimen]) -> Explorer:
        """Explores ready specimens, e.g. from plain arrays."""
        return cls(lambda image, step: specimens[image], [specimen.name for specimen in specimens])

    @classmethod
    def of_run(
        cls, run: str | Path | Microscope, images: Sequence[int | str | Path] | int = 8, **options: Any
    ) -> Explorer:
        """Explores a trained run on images of its validation set (the first few, or those named)."""
        microscope = run if isinstance(run, Microscope) else Microscope(run, **options)
        if isinstance(images, int):
            images = microscope.dataset.image_ids[:images]
        return cls(lambda image, step: microscope.look(images[image]), [str(image) for image in images])

    @classmethod
    def of_history(cls, history: MatchHistory) -> Explorer:
        """Explores the recorded states of a training run."""
        ids = history.targets.image_ids or tuple(range(history.targets.num_images))
        images = [str(i) for i in ids[: len(history.pictures)]]
        steps = [str(step) for step in history.steps[: len(history.states)]]
        return cls(lambda image, step: recorded(history, step, image), images, steps)

    def specimen(self, image: int = 0, step: int = -1) -> Specimen:
        """Returns one image at one step; the last one is kept."""
        key = (range(len(self.images))[image], range(len(self.steps))[step])
        if self._last is None or self._last[0] != key:
            self._last = (key, self._look(*key))
        return self._last[1]

    def figure(self, image: int = 0, step: int = -1, layer: int = -1, **matching: Any) -> Figure:
        """Draws both assignments of a layer on the image, and every object's candidates by score with their fate.

        matching: ``threshold``, ``k``, ``alpha`` or other matching settings; as trained where left out.
        """
        specimen = self.specimen(image, step)
        found = specimen.explain(**matching)
        layer = range(found.num_layers)[layer]
        figure = Figure(figsize=(12, 4.6), dpi=90, layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
        for ax, branch in ((left, found.one_to_one), (middle, found.one_to_many)):
            canvas(ax, specimen.picture)
            draw_assignments(ax, branch, layer, specimen.picture)
            would = " (as it would be)" if branch.hypothetical else ""
            ax.set_title(f"{branch.title}{would}: {int(branch.matched[layer].sum())} pairs", fontsize=10)
            ax.set_xlabel("solid: object, dashed: queries that serve it", fontsize=9)
        _score_panel(right, found, layer)
        m = found.one_to_many.matching
        where = "" if self.steps == ["now"] else f", step {self.steps[step]}"
        figure.suptitle(
            f"{safe(specimen.name.split(',')[0])}{where}, layer {layer + 1}: τ = {m.threshold:g}, k = {m.k}, α = {m.alpha:g}",
            fontsize=12,
        )
        return figure

    def text(self, image: int = 0, step: int = -1, layer: int = -1, target: int | None = None, **matching: Any) -> str:
        """Says the same for a terminal: the assignments, or the candidates of one object."""
        found = self.specimen(image, step).explain(**matching)
        return assignment_text(found, layer) if target is None else candidate_text(found.one_to_many, target, layer)

    def show(self):
        """Shows the page where a person can use it, else the static figure."""
        return self.widget() if self.live() else self.figure()

    @staticmethod
    def live() -> bool:
        """Whether this is a notebook that somebody sits at: JupyterLab, VS Code, Colab; not papermill."""
        return any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"))

    def widget(self):
        """Makes the page of these images for a notebook (needs anywidget): sliders, candidates, paths of queries.

        Returns a widget whose ``chosen`` is what is on its screen, see ``page_widget``.
        """
        from msdetr.viz.page import View, page_content, page_widget
        from msdetr.viz.page.content import Detail

        images = range(len(self.images))
        if self.steps == ["now"]:
            view = View("", {i: self.specimen(i) for i in images})
        else:
            last = len(self.steps)
            view = View("", {}, {i: [(int(self.steps[s]), self.specimen(i, s)) for s in range(last)] for i in images})
        return page_widget(page_content([view], images, Detail()))


def _score_panel(ax, found: Explanation, layer: int, top: int = 12) -> None:
    """Draws every object's best candidates by score, marked by what became of them."""
    branch: BranchExplanation = found.one_to_many
    used: list[Status] = []
    for target in range(len(found.targets)):
        queries = np.argsort(-branch.score[layer, target], kind="stable")[:top]
        for place, query in enumerate(queries):
            status = STATUSES[branch.status[layer, target, query]]
            used += [status] if status not in used else []
            kept = status in (Status.MATCHED, Status.MERGED)
            x = target + 0.5 * (place / max(top - 1, 1) - 0.5)
            ax.plot(
                x, branch.score[layer, target, query], MARKS[status], markersize=7 if kept else 5,
                color=object_color(target), markerfacecolor=object_color(target) if kept else "none",
            )  # fmt: skip
    ax.axhline(branch.matching.threshold, color=DARK, linestyle="--", linewidth=1)
    ax.annotate("τ", (1.01, branch.matching.threshold), xycoords=("axes fraction", "data"), va="center", fontsize=11)
    handles = [
        Line2D([], [], color=DARK, marker=MARKS[status], linestyle="", label=SHORT[status],
               markerfacecolor=DARK if status in (Status.MATCHED, Status.MERGED) else "none")
        for status in MARKS if status in used
    ]  # fmt: skip
    ax.set_xlim(-0.6, max(len(found.targets), 1) - 0.4)
    ax.set_ylim(0, 1)
    ax.set_xticks(range(len(found.targets)))
    finish(ax, "the best candidates of every object", "object", "score", legend=False)
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, fontsize=8, frameon=False)
