"""Group normalisation that a feature map of one pixel does not stop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """As ``nn.GroupNorm``, which refuses groups of a single value; here such a group becomes its bias (a value minus its
    own mean is 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
