"""The deformable encoder: every token of the pyramid attends to a few points on all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..modules import FFN, MultiScaleDeformableAttention, Pyramid, Residual


class PyramidAttention(MultiScaleDeformableAttention):
    """Deformable self-attention of a pyramid's tokens."""

    def forward(self, tokens: Tensor, pyramid: Pyramid, references: Tensor) -> Tensor:
        return super().forward(tokens + pyramid.positions, references, tokens, pyramid.shapes, pyramid.mask)


class EncoderLayer(nn.Module):
    """Deformable self-attention, FFN."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.attention = Residual(PyramidAttention(dim, num_heads, num_levels, num_points), dim, dropout)
        self.ffn = Residual(FFN(dim, ffn_dim, dropout), dim, dropout)

    def forward(self, pyramid: Pyramid, references: Tensor) -> Pyramid:
        tokens = self.attention(pyramid.tokens, pyramid, references)
        return replace(pyramid, tokens=self.ffn(tokens))


class Encoder(nn.Module):
    """A stack of encoder layers; each token's reference is its own centre."""

    def __init__(self, layers: Sequence[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gradient_checkpointing = False

    def forward(self, pyramid: Pyramid) -> Pyramid:
        references = pyramid.per_level(pyramid.token_centers())  # [B, S, L, 2]
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                pyramid = checkpoint(layer, pyramid, references, use_reentrant=False)
            else:
                pyramid = layer(pyramid, references)
        return pyramid
