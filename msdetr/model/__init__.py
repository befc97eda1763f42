"""The detector: backbone, encoder, query selection, decoder."""

from .backbone import build_backbone
from .convert import from_released, to_released
from .decoder import Decoder
from .detector import Detector, build_model
from .encoder import Encoder
from .query_selection import LearnedQueries, Queries, TwoStageQueries

__all__ = [
    "Decoder",
    "Detector",
    "Encoder",
    "LearnedQueries",
    "Queries",
    "TwoStageQueries",
    "build_backbone",
    "build_model",
    "from_released",
    "to_released",
]
