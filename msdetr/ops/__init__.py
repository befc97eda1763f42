"""Multi-scale deformable attention: one operator, three backends (native CPU, native CUDA, plain PyTorch)."""

from . import registration as registration  # makes torch.ops.msdetr.ms_deform_attn known
from .backends import Description, asked, backend, describe
from .functional import ms_deform_attn
from .linear import linear, takes
from .points import sampling_points, takes_points

__all__ = [
    "Description",
    "asked",
    "backend",
    "describe",
    "linear",
    "ms_deform_attn",
    "sampling_points",
    "takes",
    "takes_points",
]
