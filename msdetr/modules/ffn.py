"""The feed-forward network of a transformer layer."""

import torch
from torch import Tensor, nn

from ..ops import takes
from .linear import Linear

PIECE = 4096  # rows whose hidden values stay in a processor's caches


class FFN(nn.Module):
    """Position-wise feed-forward network: linear, ReLU, dropout, linear; [..., dim] -> [..., dim]."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(hidden, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        by_pieces = not self.training and not torch.is_grad_enabled() and takes(x)
        if not by_pieces or x.shape[:-1].numel() <= PIECE:  # rows are counted last: a graph may have any number of them
            return self._at_once(x)
        return torch.cat([self._at_once(piece) for piece in x.flatten(0, -2).split(PIECE)]).view(*x.shape[:-1], -1)

    def _at_once(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.linear1(x, relu=True)))
