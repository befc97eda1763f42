from torch import Tensor, nn


class Residual(nn.Module):
    """A sub-layer with its residual connection: norm(x + dropout(inner(x, ...))), normalised after the sum."""

    def __init__(self, inner: nn.Module, dim: int, dropout: float = 0.0):
        super().__init__()
        self.inner = inner
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, *context) -> Tensor:
        return self.norm(x + self.dropout(self.inner(x, *context)))
