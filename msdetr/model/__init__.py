"""The detector: backbone, encoder, query selection, decoder."""

from .backbone import BACKBONES, build_backbone
from .coding import BoxCoding, LogitBoxes, RelativeBoxes
from .convert import from_released, to_released
from .decoder import Decoder
from .detector import Detector, build_projections
from .encoder import DenseFusion, Encoder, EncoderLayer
from .group_selection import FurtherOffsetQueries, OffsetQueries
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
    "BoxCoding",
    "Decoder",
    "DenseFusion",
    "Detector",
    "Encoder",
    "EncoderLayer",
    "FurtherOffsetQueries",
    "LearnedBoxQueries",
    "LearnedQueries",
    "LogitBoxes",
    "OffsetQueries",
    "Proposals",
    "ProposedQueries",
    "QuerySource",
    "ReferenceQueries",
    "RelativeBoxes",
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
