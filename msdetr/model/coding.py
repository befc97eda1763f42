"""How predictors say where a box is: by offsets to a reference, in logits or in sizes of the reference."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..boxes import logit


class LogitBoxes(nn.Module):
    """Offsets are added to the reference's logits (Deformable DETR). eps: how near to 0 and 1 the reference's numbers come
    before their logit is taken.   unusable: all coordinates of the box of a token that has no anchor."""

    unusable: ClassVar[float] = 1.0

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = eps

    def forward(self, reference: Tensor, offsets: Tensor) -> Tensor:
        """A box from a reference box or point [..., 4 or 2] and offsets [..., 4]."""
        base = logit(reference, self.eps)
        if base.shape[-1] == 2:
            base = torch.cat([base, torch.zeros_like(base)], dim=-1)
        return (base + offsets).sigmoid()

    def start(self, learned: Tensor) -> Tensor:
        """A reference box from four learned numbers."""
        return learned.sigmoid()


class RelativeBoxes(nn.Module):
    """The center moves by sizes of the reference box, a size is multiplied by the exponential of its offset, as in R-CNN
    (LW-DETR's "box reparameterization"). Boxes may leave the image."""

    unusable: ClassVar[float] = 0.0

    def forward(self, reference: Tensor, offsets: Tensor) -> Tensor:
        """A box from a reference box and offsets, both [..., 4]."""
        center, size = reference[..., :2], reference[..., 2:]
        return torch.cat([offsets[..., :2] * size + center, offsets[..., 2:].exp() * size], dim=-1)

    def start(self, learned: Tensor) -> Tensor:
        """A reference box from four learned numbers: they are it."""
        return learned


BoxCoding = LogitBoxes | RelativeBoxes
