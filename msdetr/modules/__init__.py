"""The building blocks: attention, feed-forward, embeddings, heads, and the decoder layers of Figure 4."""

from .attention import MultiScaleDeformableAttention, SelfAttention
from .context import Context, Layout, concatenated
from .conv import Conv2d
from .decoder_layer import VARIANTS, Baseline, CrossAttention, DecoderLayer, VariantA, VariantB, VariantC, VariantD
from .ffn import FFN
from .heads import MLP, BoxHead, class_head
from .linear import Linear
from .positional import (
    QUERY_POSITIONS,
    MapPositions,
    ReferencePositions,
    ScaledReferencePositions,
    sine_embedding_2d,
    sine_embedding_of_boxes,
)
from .pyramid import Pyramid, nearest
from .residual import Residual
from .routes import Routed

__all__ = [
    "FFN",
    "MLP",
    "QUERY_POSITIONS",
    "VARIANTS",
    "Baseline",
    "BoxHead",
    "Context",
    "Conv2d",
    "CrossAttention",
    "DecoderLayer",
    "Layout",
    "Linear",
    "MapPositions",
    "MultiScaleDeformableAttention",
    "Pyramid",
    "ReferencePositions",
    "Residual",
    "Routed",
    "ScaledReferencePositions",
    "SelfAttention",
    "VariantA",
    "VariantB",
    "VariantC",
    "VariantD",
    "class_head",
    "concatenated",
    "nearest",
    "sine_embedding_2d",
    "sine_embedding_of_boxes",
]
