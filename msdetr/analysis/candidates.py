"""Candidate quality (Section A of the paper): how many good boxes does a detector have for every object?

For each annotated object (crowds are not among the targets) all N queries of a decoder layer are ranked by the IoU of
their box with the object's box:

- Figure 1: the mean IoU of its top k candidates, for k = 1, 2, ...;
- Figure 2: the number of candidates whose IoU exceeds t, for a range of t.

Both are averaged over all objects of the evaluation set. Two views are added. Every decoder layer is measured, not only
the last; and the *duplicate gap* says how well the detector tells an object's best candidate from the next one: among
the candidates with IoU at least ``duplicate_iou``, the class probability of the best minus that of the second. A
detector without non-maximum suppression needs many good candidates *and* a large gap.

What is not defined is counted and left out of the average: an object with fewer than k candidates has no top k, one
with fewer than two overlapping candidates has no gap.

Shape legend: K layers, T objects, Q queries, top = largest k, n thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from msdetr import files
from msdetr.errors import InputError, InputLookupError
from msdetr.matching import class_probability, pair_iou
from msdetr.structures import DetectorOutput, ImageBatch, Predictions, Targets

DEFAULT_THRESHOLDS = tuple(round(0.30 + 0.05 * i, 2) for i in range(14))  # 0.30, 0.35, ..., 0.95


@dataclass(frozen=True)
class CandidateTable:
    """Averages over objects, per decoder layer. NaN stands for "no object for which this is defined"; the counts say
    how many there were.

    k [top], mean_iou [K, top] (Figure 1) and defined [top], the number of objects with at least k candidates.
    thresholds [n], above [K, n] (Figure 2): candidates with IoU > t per object.
    best_score, second_score, gap [K]: class probability of the best and the second overlapping candidate and their
    difference, over the objects that have two; several [K] is their number, single [K] and none [K] the number of
    objects with one and with no candidate at IoU >= duplicate_iou.
    objects, images: how many were seen.
    """

    objects: int
    images: int
    k: np.ndarray
    mean_iou: np.ndarray
    defined: np.ndarray
    thresholds: np.ndarray
    above: np.ndarray
    duplicate_iou: float
    best_score: np.ndarray
    second_score: np.ndarray
    gap: np.ndarray
    several: np.ndarray
    single: np.ndarray
    none: np.ndarray

    @property
    def num_layers(self) -> int:
        return len(self.mean_iou)

    def top(self, k: int, layer: int = -1) -> float:
        """Mean IoU of the top k candidates of a layer."""
        return float(self.mean_iou[layer, list(self.k).index(k)])

    def over(self, threshold: float, layer: int = -1) -> float:
        """Candidates per object with IoU above one of ``thresholds``."""
        index = np.flatnonzero(np.isclose(self.thresholds, threshold))
        if not len(index):
            raise InputLookupError(f"IoU threshold {threshold} was not measured; there are {self.thresholds.tolist()}")
        return float(self.above[layer, index[0]])

    def summary(self, layer: int = -1) -> dict[str, float | int | None]:
        """The numbers one quotes, JSON-ready (None where undefined)."""
        values = {"objects": self.objects, "images": self.images}
        values |= {f"mean IoU of the top {k}": self.top(k, layer) for k in (1, 5, 10) if k in self.k}
        values |= {f"candidates over IoU {t}": self.over(t, layer) for t in (0.5, 0.75) if t in self.thresholds}
        values |= {"best score": float(self.best_score[layer]), "second score": float(self.second_score[layer])}
        values |= {"duplicate gap": float(self.gap[layer])}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }


class CandidateQuality:
    """Accumulates candidate quality over batches; shards of an evaluation set merge to the same result.

    top: largest k of Figure 1. thresholds: the t of Figure 2. duplicate_iou: candidates at or above this IoU compete
    for the duplicate gap.

    Example:
        quality = CandidateQuality()
        for batch, targets in loader:
            quality.update(detector(batch).one_to_one, targets)
        table = quality.result()
    """

    _SUMS = ("top_iou", "above", "best", "second", "several", "single", "none")

    def __init__(
        self, top: int = 20, thresholds: Sequence[float] = DEFAULT_THRESHOLDS, duplicate_iou: float = 0.5
    ) -> None:
        if top < 1:
            raise InputError(f"top: must be at least 1, got {top}")
        if any(not 0 <= t <= 1 for t in (*thresholds, duplicate_iou)):
            raise InputError(f"IoU thresholds must lie in [0, 1], got {list(thresholds)} and {duplicate_iou}")
        self.top, self.duplicate_iou = int(top), float(duplicate_iou)
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        self.images = self.objects = 0
        self.defined = np.zeros(self.top, dtype=np.int64)
        self.sums: dict[str, np.ndarray] | None = None  # made at the first update, when K is known

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Adds a batch: predictions of K layers, the annotated objects of the same images.

        Raises InputError for a NaN or infinite box or score (with image, layer and query), a label outside [0, C), or
        a number of layers, or of images, that does not fit.
        """
        predictions, targets = _checked(predictions, targets)
        num_layers, _, num_queries, _ = predictions.boxes.shape
        if self.sums is None:
            self._start(num_layers)
        if len(self.sums["best"]) != num_layers:
            raise InputError(f"predictions of {num_layers} layers after some of {len(self.sums['best'])}")
        overlap = pair_iou(predictions, targets)  # [K, T, Q]
        score = class_probability(predictions, targets)  # [K, T, Q]

        top = min(self.top, num_queries)
        ranked = overlap.topk(top, dim=-1).values
        steps = torch.arange(1, top + 1, dtype=ranked.dtype)
        self.sums["top_iou"][:, :top] += (ranked.cumsum(-1) / steps).sum(1).numpy()
        self.defined[:top] += len(targets)
        self.sums["above"] += (overlap[..., None] > torch.from_numpy(self.thresholds)).sum((1, 2)).numpy()

        overlapping = overlap >= self.duplicate_iou
        count = overlapping.sum(-1)  # [K, T]
        if num_queries > 1:
            best, second = score.masked_fill(~overlapping, 0.0).topk(2, dim=-1).values.unbind(-1)  # [K, T] each
            self.sums["best"] += (best * (count > 1)).sum(1).numpy()
            self.sums["second"] += (second * (count > 1)).sum(1).numpy()
        for name, members in (("several", count > 1), ("single", count == 1), ("none", count == 0)):
            self.sums[name] += members.sum(1).numpy()
        self.objects += len(targets)
        self.images += targets.num_images

    def merge(self, other: CandidateQuality) -> CandidateQuality:
        """Adds what another accumulator with the same settings saw (another rank, another shard); returns self."""
        if (self.top, self.duplicate_iou) != (other.top, other.duplicate_iou) or not np.array_equal(
            self.thresholds, other.thresholds
        ):
            raise InputError("candidate quality measured with other settings (top, thresholds, duplicate_iou)")
        if other.sums is None:
            return self
        if self.sums is None:
            self._start(len(other.sums["best"]))
        if len(self.sums["best"]) != len(other.sums["best"]):
            raise InputError(f"shards of {len(self.sums['best'])} and {len(other.sums['best'])} decoder layers")
        for name in self._SUMS:
            self.sums[name] += other.sums[name]
        self.defined += other.defined
        self.objects += other.objects
        self.images += other.images
        return self

    def result(self) -> CandidateTable:
        """Averages over everything seen. Raises InputError where nothing was."""
        if self.sums is None:
            raise InputError("no predictions seen: call update(predictions, targets) first")
        sums = self.sums
        best, second = (_mean(sums[name], sums["several"]) for name in ("best", "second"))
        return CandidateTable(
            objects=self.objects,
            images=self.images,
            k=np.arange(1, self.top + 1),
            mean_iou=_mean(sums["top_iou"], self.defined),
            defined=self.defined.copy(),
            thresholds=self.thresholds,
            above=_mean(sums["above"], np.asarray(self.objects)),
            duplicate_iou=self.duplicate_iou,
            best_score=best,
            second_score=second,
            gap=best - second,
            several=sums["several"].copy(),
            single=sums["single"].copy(),
            none=sums["none"].copy(),
        )

    def save(self, path: str | Path) -> None:
        """Writes the sums as JSON: exact, and shards can be merged after loading."""
        if self.sums is None:
            raise InputError("nothing to save: no predictions seen")
        content = {name: getattr(self, name) for name in ("images", "objects", "top", "duplicate_iou")}
        content |= {"thresholds": self.thresholds.tolist(), "defined": self.defined.tolist()}
        content |= {"sums": {name: values.tolist() for name, values in self.sums.items()}}
        files.write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> CandidateQuality:
        """Reads what ``save`` wrote. Raises InputError naming the file where it is something else."""
        try:
            content = files.read_json(path)
            quality = cls(content["top"], content["thresholds"], content["duplicate_iou"])
            quality._start(len(content["sums"]["best"]))
            for name, empty in quality.sums.items():
                empty += np.asarray(content["sums"][name], dtype=empty.dtype).reshape(empty.shape)
            quality.defined += np.asarray(content["defined"])
            quality.images, quality.objects = int(content["images"]), int(content["objects"])
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a candidate-quality file written by CandidateQuality.save: {error}"
            ) from error
        return quality

    def _start(self, num_layers: int) -> None:
        shapes = {"top_iou": (num_layers, self.top), "above": (num_layers, len(self.thresholds))}
        counts = ("several", "single", "none", "above")
        self.sums = {
            name: np.zeros(shapes.get(name, (num_layers,)), dtype=np.int64 if name in counts else np.float64)
            for name in self._SUMS
        }


@torch.no_grad()
def measure_candidates(
    detector: Callable[[ImageBatch], DetectorOutput],
    loader: Iterable[tuple[ImageBatch, Targets]],
    device: str | torch.device = "cpu",
    **settings,
) -> CandidateQuality:
    """Candidate quality of a detector's one-to-one predictions over a loader; ``settings`` go to CandidateQuality.

    The detector is used as it is: put it in eval mode first.
    """
    quality = CandidateQuality(**settings)
    for batch, targets in loader:
        quality.update(detector(batch.to(device)).one_to_one, targets)
    return quality


def measure_run(
    path: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    **settings,
) -> CandidateQuality:
    """Candidate quality of a run (its best checkpoint) or a checkpoint, on its own validation set or other data.

    data, split, limit: as for ``msdetr.evaluate``. ``settings`` go to CandidateQuality.
    """
    from msdetr.data import build_dataset, build_eval_loader
    from msdetr.predictor import check_classes, evaluation_config, load

    predictor = load(path, device)
    config = evaluation_config(predictor.config, predictor.source, data, split, limit)
    dataset = build_dataset(config, "val")
    check_classes(predictor, dataset)
    loader = build_eval_loader(dataset, config.train.at_once, workers=config.data.workers)
    return measure_candidates(predictor.detector, loader, predictor.device, **settings)


def _checked(predictions: Predictions, targets: Targets) -> tuple[Predictions, Targets]:
    """Both on the CPU, predictions in float64 (the float32 sides of an IoU threshold depend on the machine), or
    InputError."""
    predictions = predictions.detach().to("cpu", torch.float64)
    boxes, logits = predictions.boxes, predictions.logits
    if boxes.shape[:3] != logits.shape[:3] or boxes.shape[1] != targets.num_images:
        raise InputError(
            f"boxes {list(boxes.shape)}, logits {list(logits.shape)} and targets of {targets.num_images} images "
            "do not fit: give all three for the same batch"
        )
    for name, values in (("box", boxes), ("logit", logits)):
        bad = (~torch.isfinite(values)).any(-1).nonzero()
        if len(bad):
            layer, image, query = bad[0].tolist()
            known = targets.image_ids[image] if targets.image_ids else f"number {image} of the batch"
            raise InputError(f"NaN or infinite {name} in image {known}, layer {layer}, query {query}")
    labels = targets.labels.cpu()
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < logits.shape[-1]):
        raise InputError(
            f"labels must lie in [0, {logits.shape[-1]}), found {int(labels.min())} to {int(labels.max())}: "
            "predictions and annotations are of different categories"
        )
    objects = replace(targets, labels=labels, boxes=targets.boxes.detach().cpu(), image=targets.image.cpu())
    return predictions, objects


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where nothing was counted."""
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=np.broadcast_to(count > 0, total.shape))
