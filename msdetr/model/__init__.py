"""The detector: backbone, encoder, query selection, decoder."""

from .backbone import BACKBONES, build_backbone
from .convert import from_released, to_released
from .decoder import Decoder
from .detector import Detector, build_projections
from .encoder import DenseFusion, Encoder, EncoderLayer
from .query_selection import (
    PRIMARY,
    LearnedBoxQueries,
    LearnedQueries,
    Proposals,
    ProposedQueries,
    QuerySource,
    ReferenceQueries,
    TokenContents,
    TwoStageQueries,
)
from .ranking import without_duplicates
from .strip import strip, training_only_names

__all__ = [
    "BACKBONES",
    "PRIMARY",
    "Decoder",
    "DenseFusion",
    "Detector",
    "Encoder",
    "EncoderLayer",
    "LearnedBoxQueries",
    "LearnedQueries",
    "Proposals",
    "ProposedQueries",
    "QuerySource",
    "ReferenceQueries",
    "TokenContents",
    "TwoStageQueries",
    "build_backbone",
    "build_projections",
    "from_released",
    "strip",
    "to_released",
    "training_only_names",
    "without_duplicates",
]
