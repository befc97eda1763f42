"""The ladder of one-to-many methods: what each adds to a detector's training, read off a pass through its modules.

A rung is looked at in one training pass: its groups of queries, who sees whom in self-attention, which query learns from which
object in which branch, and what each branch's terms come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from msdetr import recipes
from msdetr.losses import Criterion
from msdetr.model import PRIMARY
from msdetr.modules import Layout
from msdetr.structures import DetectorOutput, ImageBatch, Predictions, Targets

from .cells import Cell, load_cells
from .look import same_draws
from .runs import title

WITH_MS_DETR = " + MS-DETR (c)"
RUNGS = {
    "baseline": "ms-detr-c",
    "h-detr": "h-detr-ms-c",
    "group-detr": "group-detr-ms-c",
    "dn-detr": "dn-detr-ms-c",
    "dino": "dino-ms-c",
    "deta": "deta-ms-c",
    "stable-dino": "stable-dino-ms-c",
    "mr-detr": "mr-detr-ms-c",
}  # recipes on the embedded set, without and with MS-DETR (c)


def ladder_recipes() -> dict[str, str]:
    """Title -> recipe of every rung, each without and with MS-DETR (c), as far as the package has them."""
    found, known = {}, recipes.names()
    for rung in RUNGS.items():
        without, with_it = (f"shapes/{name}" for name in rung)
        if without in known:
            name = title(recipes.get(without))
            found |= {name: without} | ({name + WITH_MS_DETR: with_it} if with_it in known else {})
    return found


@dataclass(frozen=True)
class Lesson:
    """What one branch teaches in one image and layer. group: whose queries. inside: they are read inside the layer, as
    MS-DETR's candidates are. pairs: (query on the axis of all groups, object). loss: weighted, of the whole batch and all layers.
    """

    group: str
    inside: bool
    pairs: tuple[tuple[int, int], ...]
    loss: float


@dataclass(frozen=True)
class Rung:
    """groups: where each lies on the axis of Q queries. parts: of each, that do not see each other. sees: [Q, Q] bool, whether
    the query of a row attends to that of a column. lessons: by branch, without the encoder's. objects: of the image."""

    groups: dict[str, slice]
    parts: dict[str, int]
    sees: np.ndarray
    lessons: dict[str, Lesson]
    objects: int

    @property
    def queries(self) -> int:
        return len(self.sees)

    def count(self, lesson: str | None = None) -> int:
        """Positive queries of one branch, or of all."""
        return sum(len(found.pairs) for name, found in self.lessons.items() if lesson in (None, name))


def who_sees_whom(layout: Layout) -> np.ndarray:
    """[Q, Q] bool: whether the query of a row attends to that of a column, as a dense table."""
    total = max((where.stop for where in layout.groups.values()), default=0)
    table = np.zeros((total, total), dtype=bool)
    for block in layout.blocks:
        for part in range(block.parts):
            own = slice(block.start + part * block.size, block.start + (part + 1) * block.size)
            table[own, own] = True if block.mask is None else ~block.mask.cpu().numpy()
            for other in block.reads:
                table[own, other] = True
    return table


def look_at_rung(
    detector: nn.Module, criterion: Criterion, batch: ImageBatch, targets: Targets, image: int = 0, layer: int = -1
) -> Rung:
    """One pass of a detector as it trains, looked at in one image and decoder layer; no gradient, nothing changes.
    What it draws at random (noised objects) is the same at every look."""
    seen: list[Any] = []
    hook = detector.decoder.register_forward_pre_hook(lambda module, given: seen.extend(given[0]))
    try:
        with torch.no_grad(), same_draws(batch.images.device):
            output = detector(batch, targets, one_to_many=detector.decoder.one_to_many is not None)
            supervised = criterion.supervised(output, targets)
            matches, losses = criterion.match(supervised), criterion(output, targets)
    finally:
        hook.remove()
    layout = Layout.of(seen)
    weights = {branch.name: branch.weights for branch in criterion.branches}
    lessons, first = {}, int((targets.image < image).sum())
    for name, given in supervised.items():
        source = _source(output, given.predictions)
        if source is None:
            continue
        found, (group, inside) = matches[name], source
        here = (found.layer == range(len(given.predictions.logits))[layer]) & (found.image == image)
        objects = found.target[here] if given.targets.original is None else given.targets.original[found.target[here]]
        queries = found.query[here] + layout.groups[group].start
        pairs = tuple(zip(queries.tolist(), (objects - first).tolist(), strict=True))
        loss = sum(float(weights[name][term] * losses.terms[f"{name}/{term}"].sum()) for term in weights[name])
        lessons[name] = Lesson(group, inside, pairs, loss)
    parts = {group.name: group.parts for group in seen}
    return Rung(layout.groups, parts, who_sees_whom(layout), lessons, int(targets.counts[image]))


def _source(output: DetectorOutput, predictions: Predictions) -> tuple[str, bool] | None:
    """The group that predictions are of, and whether they are those of its candidates; None for the encoder's."""
    places: Mapping[tuple[str, bool], Predictions | None] = {
        (PRIMARY, False): output.one_to_one,
        (PRIMARY, True): output.one_to_many,
        **{(name, False): group.predictions for name, group in output.groups.items()},
        **{(name, True): group.candidates for name, group in output.groups.items()},
    }
    read = predictions.logits.data_ptr()  # a branch reads the very tensors of the output
    return next(
        (place for place, found in places.items() if found is not None and found.logits.data_ptr() == read), None
    )


def ladder_results(folder: str | Path) -> dict[str, list[Cell]]:
    """Title -> finished cells in a folder (see ``benchmarks/studies/family.yaml``), without the rungs that have none."""
    cells = load_cells(folder).values()
    found = {rung: [c for c in cells if c.config["recipe"] == name] for rung, name in ladder_recipes().items()}
    return {rung: members for rung, members in found.items() if members}
