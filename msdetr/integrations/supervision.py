"""Detections to and from the library ``supervision`` (extra ``supervision``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ConfigError, InputError
from ..predictor import NamedDetections

if TYPE_CHECKING:
    import supervision


def to_supervision(detections: NamedDetections) -> supervision.Detections:
    """``supervision.Detections`` with boxes in pixels, confidence, class ids (indices of classes) and class names.

    Raises ConfigError where the library is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ConfigError(f'supervision is not installed ({error}); pip install "msdetr[supervision]"') from error
    return supervision.Detections(
        xyxy=detections.boxes.cpu().numpy().astype(np.float32).reshape(-1, 4),
        confidence=detections.scores.cpu().numpy().astype(np.float32),
        class_id=detections.labels.cpu().numpy().astype(int),
        data={"class_name": np.array(detections.names, dtype=str)},
    )


def from_supervision(found: supervision.Detections, class_names: tuple[str, ...]) -> NamedDetections:
    """Detections of this package, best first; ``query`` is -1, since they come from no query of ours.

    Raises InputError where confidences or class ids are missing, or a class id has no name.
    """
    if found.confidence is None or found.class_id is None:
        raise InputError("supervision's detections need confidence and class_id to become detections of this package")
    labels = torch.as_tensor(found.class_id).long()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise InputError(
            f"class ids {int(labels.min())} to {int(labels.max())} do not fit {len(class_names)} class names"
        )
    scores = torch.as_tensor(found.confidence, dtype=torch.float32)
    order = scores.argsort(descending=True, stable=True)
    boxes = torch.as_tensor(found.xyxy, dtype=torch.float32).reshape(-1, 4)
    none = torch.full_like(labels, -1)
    return NamedDetections(scores[order], labels[order], boxes[order], none, class_names=tuple(class_names))
