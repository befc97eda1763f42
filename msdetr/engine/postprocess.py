"""Detections as evaluation takes them."""

from __future__ import annotations

import torch

from ..errors import EvaluationError
from ..model.postprocess import nms_postprocess, postprocess
from ..structures import Detections

__all__ = ["nms_postprocess", "postprocess", "require_finite"]


def require_finite(detections: Detections, where: str) -> None:
    """Raises EvaluationError where a score or box is NaN or infinite: the weights are unusable."""
    if not (torch.isfinite(detections.boxes).all() and torch.isfinite(detections.scores).all()):
        raise EvaluationError(
            f"{where}: the detector predicts a NaN or infinite box or score; its weights are unusable: "
            "use an earlier checkpoint, or train with a lower learning rate"
        )
