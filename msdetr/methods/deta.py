"""DETA (Ouyang-Zhang et al., "NMS Strikes Back", 2022): one-to-many assignment by IoU in encoder and decoder, and
non-maximum suppression of proposals and detections, as in detectors before DETR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch
from ..matching import IoUMatcher, ReleasedIoUMatcher, SharedMatcher
from ..model import Detector, TokenContents, without_duplicates
from ..model.postprocess import nms_postprocess
from ..structures import DetectorOutput, Predictions, Targets
from .base import Method, Postprocess
from .mr_detr import INSTRUCT_ROUTE

_RELEASED_ENCODER_CAP, _RELEASED_DECODER_SHARE = 128, 0.25
Overlap = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class DETAConfig:
    """Which stages are assigned by IoU, by which rule, and the suppression that goes with it. Defaults are published."""

    encoder: bool = True  # first stage: proposals assigned by IoU, queries from those that survive suppression
    decoder: bool = True  # second stage: queries assigned by IoU, detections suppressed
    encoder_threshold: Overlap = 0.7  # IoU of an anchor with an object from which on it is a positive
    decoder_threshold: Overlap = 0.6  # of the box that a query starts from
    k: Annotated[int, Range(1, 10**6)] = 4  # positives per object at most, in both stages
    rule: Literal["exclusive", "released"] = "exclusive"  # a positive serves one object; or as the released code does
    proposal_nms: Overlap = 0.9  # proposals of a level that overlap by more are suppressed
    proposals_per_level: Annotated[int, Range(1, 10**6)] = 1000  # best of each level that enter suppression
    detection_nms: Overlap = 0.7  # detections of a class that overlap by more are suppressed
    token_contents: bool = False  # contents of queries are also made from the features of the tokens they come from

    def check(self, run: RunConfig) -> None:
        if run.two_stage is None:
            raise ConfigError(
                "deta: assigns encoder proposals and the queries made from them, which a one-stage model does not have; "
                "switch two_stage on (two_stage=true) or this method off (deta=null)"
            )
        if self.token_contents and (run.two_stage.mixed_selection or run.model.query_positions != "once"):
            raise ConfigError(
                "deta.token_contents: adds to contents that are made from proposals; set two_stage.mixed_selection=false and "
                "model.query_positions=once, or leave it off"
            )
        if self.encoder and (run.two_stage.match_on, run.two_stage.supervise) != ("anchors", "tokens"):
            raise ConfigError(
                "deta.encoder: all tokens are assigned by their anchors, whatever two_stage says; set two_stage.match_on=anchors "
                "and two_stage.supervise=tokens, or deta.encoder=false"
            )
        if not self.encoder and not self.decoder and not self.token_contents:
            raise ConfigError(
                "deta: both deta.encoder and deta.decoder are off; switch one on, or the method off (deta=null)"
            )
        if self.decoder and run.ms_detr is not None and run.ms_detr.merge:
            raise ConfigError(
                "deta: assigns the decoder's queries by IoU, so there are no one-to-one pairs to merge into one-to-many "
                "supervision; set ms_detr.merge=false or deta.decoder=false"
            )


class DETA(Method):
    """DETA's two assigners and two suppressions, on any two-stage model of this package; only ``token_contents`` needs
    parameters, and these at inference, too.

    Encoder: a token is assigned by its anchor. Decoder: a query is assigned by the reference box that it starts from, once
    for all layers. Losses are those of the base, divided by the number of objects (not of pairs). The branch of the
    detector's answer keeps the name ``one_to_one``, whoever is assigned; so does ``encoder``.

    Beside it, ``ms_detr`` supervises candidates as ever, and further query groups are supervised as their method says.
    """

    name = "deta"
    Config = DETAConfig

    def extend(self, detector: Detector) -> None:
        own = self.config
        if own.encoder:
            detector.query_selection.ranking = partial(
                without_duplicates,
                first=self.run.model.num_queries,
                iou_threshold=own.proposal_nms,
                per_level=own.proposals_per_level,
            )
        if own.token_contents:
            detector.query_selection.token_contents = TokenContents(self.run.model.hidden_dim)

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        own, revised = self.config, []
        for branch in branches:
            if branch.name in ("encoder", f"encoder_{INSTRUCT_ROUTE}") and own.encoder:
                branch = replace(branch, matcher=self._matcher(own.encoder_threshold, _RELEASED_ENCODER_CAP))
            if branch.name == "one_to_one" and own.decoder:
                cap = int(_RELEASED_DECODER_SHARE * self.run.model.num_queries)
                matcher = SharedMatcher(self._matcher(own.decoder_threshold, cap))
                branch = replace(branch, select=_by_reference(branch.select), matcher=matcher)
            revised.append(branch)
        return revised

    def postprocess(self) -> Postprocess | None:
        return partial(nms_postprocess, iou_threshold=self.config.detection_nms) if self.config.decoder else None

    def _matcher(self, threshold: float, cap: int) -> IoUMatcher:
        if self.config.rule == "released":
            return ReleasedIoUMatcher(threshold, self.config.k, cap)
        return IoUMatcher(threshold, self.config.k)


def _by_reference(select):
    """Supervises the same, matched on the boxes that queries start from."""

    def selected(output: DetectorOutput, targets: Targets):
        given = select(output, targets)
        boxes = output.references[:1].expand_as(given.predictions.boxes)
        return replace(given, match_on=Predictions(given.predictions.logits, boxes))

    return selected
