"""The feed-forward network of a transformer layer."""

from torch import Tensor, nn

from .linear import Linear


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
        return self.linear2(self.dropout(self.linear1(x, relu=True)))
