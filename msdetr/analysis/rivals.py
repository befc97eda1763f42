"""Why a DETR needs no non-maximum suppression: duplicates with and without self-attention between the queries.

Self-attention is where a query can learn that another one has its object. ``self_attention_cut`` takes it away from a trained
detector, ``attention_maps`` shows who attends to whom, and ``measure_rivals`` counts what becomes of duplicates and AP.

Shape legend: K layers, B images, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from msdetr.analysis.look import evaluating
from msdetr.boxes import cxcywh_to_xyxy, pairwise_iou
from msdetr.modules import SelfAttention
from msdetr.structures import ImageBatch, Predictions, Targets


@dataclass(frozen=True)
class Rivals:
    """What a detector answers on a data set, and what becomes of the rivals of an object's best query.

    ap, ap_nms: COCO AP in [0, 1], as it answers (with post-processing of its own, where the run has that), and of the pairs of
    query and class after class-wise non-maximum suppression. found: objects that a query
    overlaps with IoU >= 0.5 (the best of these by the probability of the object's class is the *winner*, the others are its
    *rivals*). duplicates: rivals per found object that have at least half the winner's probability. to_rivals, to_others:
    [K] the winner's attention to a rival and to any other query, as multiples of 1 / Q, what each would get if all got
    alike; NaN where no object has a rival, or attention is cut.
    """

    ap: float
    ap_nms: float
    found: int
    duplicates: float
    to_rivals: np.ndarray
    to_others: np.ndarray


@contextmanager
def self_attention_cut(detector: nn.Module) -> Iterator[nn.Module]:
    """The detector with every decoder query attending to itself alone: the same weights, but no query sees another."""

    def alone(module: SelfAttention, inputs: tuple, output: Tensor) -> Tensor:
        attention, queries = module.attention, inputs[0]
        dim = queries.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * dim :]
        return attention.out_proj(nn.functional.linear(queries, attention.in_proj_weight[2 * dim :], bias))

    hooks = [module.register_forward_hook(alone) for module in _self_attentions(detector)]
    try:
        yield detector
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def attention_recorded(detector: nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward pass fills: for every decoder layer [B, Q, Q], how much each query attends to each (rows sum to
    1), mean over heads."""
    maps: list[Tensor] = []

    def record(module: SelfAttention, inputs: tuple) -> None:
        queries, context = inputs
        placed = queries + context.positions
        maps.append(module.attention(placed, placed, queries, need_weights=True)[1])

    hooks = [module.register_forward_pre_hook(record) for module in _self_attentions(detector)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def attention_maps(detector: nn.Module, batch: ImageBatch) -> Tensor:
    """[K, B, Q, Q]: the attention of queries to each other in every decoder layer (see ``attention_recorded``)."""
    with evaluating(detector), attention_recorded(detector) as maps:
        detector(batch)
    return torch.stack(maps)


def measure_rivals(
    path: str | Path,
    cut: bool = False,
    data: str | Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    nms_iou: float = 0.7,
) -> Rivals:
    """The rivals of a run (its best checkpoint) or a checkpoint on its own validation set or other data.

    cut: without self-attention between queries. data, limit: as for ``msdetr.evaluate``. nms_iou: detections of one class
    with a higher IoU count as one object in suppression.
    """
    from msdetr.data import build_dataset, build_eval_loader
    from msdetr.engine.metric import coco_metrics, coco_rows
    from msdetr.model.postprocess import nms_postprocess
    from msdetr.predictor import check_classes, evaluation_config, load

    predictor = load(path, device)
    config = evaluation_config(predictor.config, predictor.source, data, None, limit)
    dataset = build_dataset(config, "val")
    check_classes(predictor, dataset)
    detector, category_ids = predictor.detector, dataset.categories.category_ids
    kept: dict[str, list[np.ndarray]] = {"as it is": [], "nms": []}
    counts, towards = [], []
    for batch, targets in build_eval_loader(dataset, config.train.at_once):
        batch = batch.to(predictor.device)
        with evaluating(detector), self_attention_cut(detector) if cut else attention_recorded(detector) as recorded:
            output = detector(batch).to("cpu")
        maps = None if cut else torch.stack(recorded).cpu()
        for name, detections in (
            ("as it is", predictor.postprocess(output.one_to_one, targets.sizes, config.train.max_detections)),
            ("nms", nms_postprocess(output.one_to_one, targets.sizes, config.train.max_detections, nms_iou)),
        ):
            kept[name] += [coco_rows(i, d, category_ids) for i, d in zip(targets.image_ids, detections, strict=True)]
        for image in range(targets.num_images):
            found = rivals_of(output.one_to_one, targets, image)
            counts += [duplicates for _, _, duplicates in found]
            if maps is not None:
                towards += [_towards(maps[:, image], winner, rivals) for winner, rivals, _ in found if len(rivals)]
    api, mean = dataset.coco_api(), np.mean(towards, axis=0) if towards else np.full((2, 1), np.nan)
    ap, ap_nms = (
        coco_metrics(api, np.concatenate(rows), dataset.image_ids, config.train.max_detections).metrics["AP"]
        for rows in kept.values()
    )
    return Rivals(ap, ap_nms, len(counts), float(np.mean(counts)) if counts else float("nan"), mean[0], mean[1])


def rivals_of(predictions: Predictions, targets: Targets, image: int) -> list[tuple[int, Tensor, int]]:
    """Winner, rivals and the number of duplicates of every found object of an image (see ``Rivals``), in the last layer."""
    probability = predictions.logits[-1, image].sigmoid()
    objects = (targets.image == image).nonzero().flatten()
    overlap = pairwise_iou(cxcywh_to_xyxy(targets.boxes[objects]), cxcywh_to_xyxy(predictions.boxes[-1, image]))
    found = []
    for row, target in zip(overlap, objects, strict=True):
        near = (row >= 0.5).nonzero().flatten()
        if len(near):
            mine = probability[near, targets.labels[target]]
            winner = int(mine.argmax())
            others = torch.cat([near[:winner], near[winner + 1 :]])
            found.append((int(near[winner]), others, int((mine >= mine[winner] / 2).sum()) - 1))
    return found


def _towards(maps: Tensor, winner: int, rivals: Tensor) -> np.ndarray:
    """[2, K]: a winner's mean attention to its rivals and to all others but itself, times the number of queries."""
    row = maps[:, winner]  # [K, Q]
    rest = torch.ones(row.shape[1], dtype=torch.bool)
    rest[rivals] = False
    rest[winner] = False
    return row.shape[1] * torch.stack([row[:, rivals].mean(1), row[:, rest].mean(1)]).double().numpy()


def _self_attentions(detector: nn.Module) -> list[SelfAttention]:
    """Those of the decoder, in order."""
    return [module for module in detector.decoder.modules() if isinstance(module, SelfAttention)]
