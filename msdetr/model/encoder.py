"""The deformable encoder: every token of the pyramid attends to a few points on all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..modules import FFN, Linear, MultiScaleDeformableAttention, Pyramid, Residual


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


class DenseFusion(nn.Module):
    """Makes the memory from all stages of the encoder, its input among them (Stable-DINO, Liu et al., ICCV 2023):
    stages + 1 times [B, S, C], concatenated, projected to [B, S, C], normalised.

    Released: the projection starts from Xavier's uniform distribution, its bias at 0.   Here: from torch's default for linear
    layers.
    """

    def __init__(self, stages: int, dim: int):
        super().__init__()
        self.projection = Linear((stages + 1) * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        return self.norm(self.projection(torch.cat(list(stages), dim=-1)))


class Encoder(nn.Module):
    """A stack of encoder layers; each token's reference is its own centre. fusion: makes the tokens of the encoded pyramid
    from those of all stages; None: they are those of the last."""

    def __init__(self, layers: Sequence[EncoderLayer], fusion: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fusion = fusion
        self.gradient_checkpointing = False

    def forward(self, pyramid: Pyramid) -> Pyramid:
        references = pyramid.per_level(pyramid.token_centers())  # [B, S, L, 2]
        stages = [pyramid.tokens]
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                pyramid = checkpoint(layer, pyramid, references, use_reentrant=False)
            else:
                pyramid = layer(pyramid, references)
            if self.fusion is not None:
                stages.append(pyramid.tokens)
        return pyramid if self.fusion is None else replace(pyramid, tokens=self.fusion(stages))
