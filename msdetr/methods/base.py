"""What a training method may contribute to a detector and its objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..config import RunConfig
from ..losses import Branch, Term, detection_terms
from ..matching import HungarianMatcher, detection_costs
from ..model import BoxCoding, Detector, QuerySource
from ..modules import DecoderLayer
from ..structures import Detections, Predictions

Postprocess = Callable[[Predictions, torch.Tensor, int], list[Detections]]  # of all layers, sizes [B, 2], count


def weighted_terms(weights: Any, run: RunConfig, factor: float = 1.0) -> Mapping[str, tuple[float, Term]]:
    """Class, L1 and GIoU terms with the three weights of a section (``run.loss`` has those of one-to-one supervision) times
    a factor, and the run's focal loss."""
    three = (factor * w for w in (weights.class_weight, weights.l1_weight, weights.giou_weight))
    return detection_terms(*three, run.loss.focal_alpha, run.loss.focal_gamma, run.loss.giou_eps)


def hungarian(run: RunConfig, parts: int = 1) -> HungarianMatcher:
    """One-to-one matching with the run's costs."""
    costs = run.matching
    weights = costs.cost_class, costs.cost_l1, costs.cost_giou
    return HungarianMatcher(detection_costs(*weights, run.loss.giou_eps, costs.focal_alpha), parts)


class Method:
    """One way to train a detector, switched on by its config section. Override what the method contributes.

    name: of the section. Config: its frozen dataclass; it may have ``check(run)``, which raises ConfigError where it does
    not suit the rest of the configuration. run: the whole configuration, the section is ``self.config``.
    """

    name: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, config: Any, run: RunConfig):
        self.config = config
        self.run = run

    def layer(self) -> type[DecoderLayer] | None:
        """The decoder layer, where the method brings its own; one method of a run may."""
        return None

    def query_selection(self) -> QuerySource | None:
        """The source of the primary query group, where it is not learned queries; one method of a run may."""
        return None

    def extend(self, detector: Detector) -> None:
        """Adds to parts of a detector, whichever method they come from; all else is built by then. ``Routed``: another path for
        a query group through a sub-layer."""

    def sources(self) -> Mapping[str, QuerySource]:
        """Further query groups, by name."""
        return {}

    def coding(self) -> BoxCoding | None:
        """How boxes are made from references and offsets, where not in logits; one method of a run may."""
        return None

    def candidate_heads(self) -> nn.Module | None:
        """What predicts from the candidates inside each decoder layer (see ``Decoder``); one method of a run may."""
        return None

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        """What is supervised. groups: names of the further query groups of all methods."""
        return ()

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        """The branches of the whole run, those of the base and of other methods among them, as this method wants them."""
        return branches

    def postprocess(self) -> Postprocess | None:
        """From the predictions of all layers to detections, where it is not the usual selection of the best."""
        return None
