"""DAB-DETR's queries: learned contents and boxes, whose positions are made from the boxes of every layer (Liu et al., "Dynamic
Anchor Boxes are Better Queries for DETR", ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig
from ..errors import ConfigError
from ..model import LearnedBoxQueries
from .base import Method


@dataclass(frozen=True)
class DABConfig:
    """One-stage queries that start from learned boxes instead of points."""

    indicator: bool = False  # keep the last channel of their contents at 0, for denoising.style=indicated (DN-DETR)

    def check(self, run: RunConfig) -> None:
        if run.model.query_positions == "once":
            raise ConfigError(
                "dab: its queries have boxes and no positions; make these from the boxes "
                "(model.query_positions=scaled_references), or switch it off (dab=null)"
            )


class DAB(Method):
    """DAB-Deformable-DETR, one-stage. Published with ``model.query_positions=scaled_references``."""

    name = "dab"
    Config = DABConfig

    def query_selection(self) -> LearnedBoxQueries:
        model = self.run.model
        return LearnedBoxQueries(model.hidden_dim, model.num_queries, self.config.indicator)
