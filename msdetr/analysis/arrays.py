"""Predictions and objects from plain arrays, so that everything here also works on detectors that are not ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdetr.boxes import xyxy_to_cxcywh
from msdetr.errors import InputError
from msdetr.structures import Predictions, Targets


def predictions_from_arrays(
    boxes: Any, scores: Any, box_format: str = "cxcywh", image_size: tuple[float, float] | None = None
) -> Predictions:
    """Predictions [K, B, Q, .] in float64 from arrays of boxes and class probabilities.

    boxes: [..., Q, 4] in ``box_format`` "cxcywh", "xyxy" or "xywh" (COCO); in pixels where ``image_size`` (height,
    width) is given, else normalised to [0, 1]. scores: [..., Q, C] probabilities in [0, 1], kept 1e-7 away from both
    ends, where a logit is infinite. Leading dimensions: none (one layer, one image), K, or K and B.

    Raises InputError where shapes, format or values do not fit.
    """
    box, score = _normalised(boxes, box_format, image_size), torch.from_numpy(np.array(scores, dtype=np.float64))
    if box.shape[:-1] != score.shape[:-1] or not 2 <= box.ndim <= 4:
        raise InputError(
            f"boxes {list(box.shape)} and scores {list(score.shape)}: expected [Q, 4] and [Q, C], with the same leading "
            "dimensions (layers, images) on both, if any"
        )
    if not bool(((score >= 0) & (score <= 1)).all()):
        raise InputError("scores must be class probabilities in [0, 1]; apply sigmoid (or softmax) to logits first")
    logits = torch.logit(score, eps=1e-7)
    if box.ndim == 3:
        box, logits = box[:, None], logits[:, None]
    elif box.ndim == 2:
        box, logits = box[None, None], logits[None, None]
    return Predictions(logits, box)


def targets_from_arrays(
    boxes: Any, labels: Any, box_format: str = "cxcywh", image_size: tuple[float, float] | None = None
) -> Targets:
    """The objects of one image: boxes [T, 4] as in ``predictions_from_arrays``, labels [T] class indices."""
    box = _normalised(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), box_format, image_size)
    label = torch.from_numpy(np.array(labels, dtype=np.int64).reshape(-1))
    if len(box) != len(label):
        raise InputError(f"{len(box)} object boxes but {len(label)} labels")
    return Targets.from_list([label], [box])


def _normalised(boxes: Any, box_format: str, image_size: tuple[float, float] | None) -> Tensor:
    box = torch.from_numpy(np.array(boxes, dtype=np.float64))
    if box.ndim == 0 or box.shape[-1] != 4:
        raise InputError(f"boxes: the last dimension must be 4, got shape {list(box.shape)}")
    if image_size is not None:
        height, width = image_size
        box = box / torch.tensor([width, height, width, height], dtype=torch.float64)
    if box_format == "xyxy":
        return xyxy_to_cxcywh(box)
    if box_format == "xywh":
        return torch.cat([box[..., :2] + box[..., 2:] / 2, box[..., 2:]], dim=-1)
    if box_format != "cxcywh":
        raise InputError(f"box_format: {box_format!r} is none of 'cxcywh', 'xyxy', 'xywh'")
    return box
