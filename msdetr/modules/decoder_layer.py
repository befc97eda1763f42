"""The decoder layers of Figure 4: the same three sub-layers in different orders.

Each forward returns (output, candidates): ``output`` goes to the one-to-one predictors and the next layer, and
``candidates`` are the queries that the one-to-many predictors read (None: there is no such branch).

    baseline  self-attention, cross-attention, FFN
    (a)       self-attention, cross-attention, FFN *
    (b)       cross-attention, self-attention, FFN *
    (c)       cross-attention *, self-attention, FFN
    (d)       self-attention *, cross-attention, FFN           * one-to-many supervision is applied here

Every sub-layer is called with queries and context, so that a method can give some query groups a path of their own
through it (see ``Routed``).

Shapes: queries, output and candidates [B, Q, C]; Q runs over all query groups (see ``Context``).
"""

from __future__ import annotations

from torch import Tensor, nn

from .attention import MultiScaleDeformableAttention, SelfAttention
from .context import Context
from .ffn import FFN
from .residual import Residual


class CrossAttention(MultiScaleDeformableAttention):
    """Deformable attention of placed queries into the encoded image."""

    def forward(self, queries: Tensor, context: Context) -> Tensor:
        memory = context.memory
        references = memory.per_level(context.references)
        return super().forward(queries + context.positions, references, memory.tokens, memory.shapes, memory.mask)


class QueryFFN(FFN):
    """The FFN of queries, each by itself."""

    def forward(self, queries: Tensor, context: Context | None = None) -> Tensor:
        return super().forward(queries)


class DecoderLayer(nn.Module):
    """Owns the three sub-layers; a subclass says in which order they run. cross_heads: heads of cross-attention, where they
    are not as many as those of self-attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        cross_heads: int = 0,
    ):
        super().__init__()
        cross_heads = cross_heads or num_heads
        self.self_attention = Residual(SelfAttention(dim, num_heads, dropout), dim, dropout)
        self.cross_attention = Residual(CrossAttention(dim, cross_heads, num_levels, num_points), dim, dropout)
        self.ffn = Residual(QueryFFN(dim, ffn_dim, dropout), dim, dropout)

    def forward(self, queries: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class Baseline(DecoderLayer):
    """Deformable DETR: one-to-one supervision only."""

    def forward(self, queries, context):
        queries = self.self_attention(queries, context)
        queries = self.cross_attention(queries, context)
        return self.ffn(queries, context), None


class VariantA(DecoderLayer):
    """Figure 4 (a): both kinds of supervision on the output of the usual layer."""

    def forward(self, queries, context):
        queries = self.self_attention(queries, context)
        queries = self.cross_attention(queries, context)
        output = self.ffn(queries, context)
        return output, output


class VariantB(DecoderLayer):
    """Figure 4 (b): as (a), cross-attention first."""

    def forward(self, queries, context):
        queries = self.cross_attention(queries, context)
        queries = self.self_attention(queries, context)
        output = self.ffn(queries, context)
        return output, output


class VariantC(DecoderLayer):
    """Figure 4 (c), the paper's choice: candidates are collected from the image, then self-attention sorts them out."""

    def forward(self, queries, context):
        candidates = self.cross_attention(queries, context)  # Q_ca, Eq. 1
        queries = self.self_attention(candidates, context)  # Q_sa, Eq. 2
        return self.ffn(queries, context), candidates


class VariantD(DecoderLayer):
    """Figure 4 (d): one-to-many supervision after self-attention, before cross-attention."""

    def forward(self, queries, context):
        candidates = self.self_attention(queries, context)
        queries = self.cross_attention(candidates, context)
        return self.ffn(queries, context), candidates


VARIANTS: dict[str, type[DecoderLayer]] = {
    "baseline": Baseline,
    "a": VariantA,
    "b": VariantB,
    "c": VariantC,
    "d": VariantD,
}
