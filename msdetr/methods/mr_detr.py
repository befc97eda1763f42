"""Mr.DETR: multi-route training. The queries take two more ways through the decoder, each supervised one-to-many (Zhang
et al., "Mr. DETR: Instructive Multi-Route Training for Detection Transformers", CVPR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ..boxes import logit
from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..matching import OneToManyMatcher, ReleasedMrDETR
from ..model import PRIMARY, Detector, Proposals, QuerySource
from ..model.postprocess import postprocess
from ..modules import FFN, BoxHead, Context, Residual, Routed, class_head
from ..structures import Detections, Predictions, QueryGroup, Targets
from .base import Method, Postprocess, weighted_terms
from .two_stage import encoder_branch

FFN_ROUTE, INSTRUCT_ROUTE = "ffn_route", "instruct_route"


@dataclass(frozen=True)
class MrDETRConfig:
    """The routes beside the primary one, and their one-to-many supervision. Defaults are those published for COCO, with the
    matching rule of MS-DETR's paper."""

    routes: Literal["both", "ffn", "instruct"] = "both"
    instructions: Annotated[int, Range(1, 10**4)] = 10  # instruction tokens of each decoder layer
    proposals: Literal["shared", "own"] = "shared"  # of the instructed route; own: from encoder heads of its own
    rule: Literal["exclusive", "literal", "released"] = "exclusive"  # one-to-many assignment, as in ms_detr
    alpha: Annotated[float, Range(0, 1)] = 0.3
    threshold: Annotated[float, Range(0, 1)] = 0.4
    k: Annotated[int, Range(1)] = 6
    mix_layers: bool = False  # detections from class scores that are mixed over the decoder layers, as released
    class_weight: Annotated[float, Range(0)] = 2.0
    l1_weight: Annotated[float, Range(0)] = 5.0
    giou_weight: Annotated[float, Range(0)] = 2.0

    @property
    def names(self) -> tuple[str, ...]:
        """The query groups that take a route of their own."""
        return {"both": (FFN_ROUTE, INSTRUCT_ROUTE), "ffn": (FFN_ROUTE,), "instruct": (INSTRUCT_ROUTE,)}[self.routes]

    def check(self, run: RunConfig) -> None:
        if self.proposals == "own" and run.two_stage is None:
            raise ConfigError(
                "mr_detr.proposals: a one-stage model has no encoder proposals; switch two_stage on (two_stage=true) or "
                "share the primary route's queries (mr_detr.proposals=shared)"
            )
        if self.proposals == "own" and self.routes == "ffn":
            raise ConfigError(
                "mr_detr.proposals: only the instructed route can have its own, which mr_detr.routes=ffn leaves out; set "
                "mr_detr.routes=both or mr_detr.proposals=shared"
            )


# ---------------------------------------------------------------- paths through a sub-layer


class OneToManyFFN(nn.Module):
    """An FFN of its own; the norm after it is the sub-layer's."""

    training_only = True

    def __init__(self, like: FFN):
        super().__init__()
        hidden, dim = like.linear1.weight.shape
        self.ffn = FFN(dim, hidden, like.dropout.p)

    def forward(self, sublayer: Residual, queries: Tensor, context: Context) -> Tensor:
        return sublayer.norm(queries + sublayer.dropout(self.ffn(queries)))


class InstructedSelfAttention(nn.Module):
    """Self-attention whose queries, keys and values begin with learned instruction tokens; what these become is dropped.
    The projections are the sub-layer's, the norm after it is its own. As for queries, positions are not added to values."""

    training_only = True

    def __init__(self, dim: int, instructions: int):
        super().__init__()
        self.contents = nn.Parameter(torch.empty(instructions, dim))
        self.positions = nn.Parameter(torch.empty(instructions, dim))
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.contents)
        nn.init.xavier_uniform_(self.positions)

    def forward(self, sublayer: Residual, queries: Tensor, context: Context) -> Tensor:
        def instructed(tokens: Tensor, x: Tensor) -> Tensor:
            return torch.cat([tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)

        placed = instructed(self.contents + self.positions, queries + context.positions)
        values = instructed(self.contents, queries)
        attended = sublayer.inner.attention(placed, placed, values, need_weights=False)[0][:, len(self.contents) :]
        return self.norm(queries + sublayer.dropout(attended))


# ---------------------------------------------------------------- queries


class RouteQueries(QuerySource):
    """The primary group again, under the name of a route."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        return replace(earlier[PRIMARY], name=self.name)


class ProposedRouteQueries(RouteQueries):
    """As many queries as the primary group has, from the best proposals of encoder heads of their own; learned contents
    are the primary group's."""

    def __init__(self, name: str, dim: int, num_classes: int, mixed: bool):
        super().__init__(name)
        self.class_head, self.box_head, self.mixed = class_head(dim, num_classes), BoxHead(dim), mixed

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        primary = earlier[PRIMARY]
        own = proposals.by(primary.contents.shape[1], self.class_head, self.box_head)
        references = own.references(own.ranking)
        positions, contents = own.embed(references, own.ranking)
        if self.mixed:
            contents = primary.contents
        return QueryGroup(self.name, contents, positions, references, selected=own.ranking, encoder=own.encoder)


# ---------------------------------------------------------------- detections


def mixed_logits(logits: Tensor, eps: float = 1e-3) -> Tensor:
    """Class logits [K, B, Q, C] of all decoder layers, each mixed with the ones before, as released.

    m_0 = s_0 and m_l = sqrt((s_l^2.001 + m_{l-1}^1.853) / 2), with s_l the layer's probabilities, kept eps away from 0 and 1.
    """
    mixed = [logit(logits[0].sigmoid(), eps)]
    for layer in logits[1:]:
        probability = ((layer.sigmoid() ** 2.001 + mixed[-1].sigmoid() ** 1.853) / 2).sqrt()
        mixed.append(logit(probability, eps))
    return torch.stack(mixed)


def mixed_postprocess(predictions: Predictions, sizes: Tensor, max_detections: int = 100) -> list[Detections]:
    """As ``postprocess``, by class scores that are mixed over the decoder layers."""
    return postprocess(replace(predictions, logits=mixed_logits(predictions.logits)), sizes, max_detections)


# ---------------------------------------------------------------- the method


class MrDETR(Method):
    """Mr.DETR's three routes. The primary route is the detector, supervised one-to-one. Each further route is a query
    group that copies the primary one, shares all of the decoder but one sub-layer, and is supervised one-to-many by the
    rule of MS-DETR: ``ffn_route`` passes FFNs of its own, ``instruct_route`` an instructed self-attention.

    All routes pass the decoder side by side and do not see each other, which gives the numbers of separate passes.

    Paper: all routes start from the same queries.   Released: the instructed route has encoder heads, and so proposals,
    of its own, which are supervised as the encoder's are.   Here: as in the paper, or ``proposals=own``, supervised as
    ``two_stage`` says.
    Released: the rule of ``ReleasedMrDETR``.   Here: that of MS-DETR's paper, or ``rule=released``.
    Released: the encoder is supervised at three times the weights.   Here: at those of ``two_stage``.

    Paper: silent.   Released: detections from class scores mixed over layers.   Here: from the last layer, or
    ``mix_layers=true``.
    Released: the published AP is of a mean of three checkpoints, 0.8 times iteration 90000, 0.15 times 30000 and 0.05 times
    60000, which is 0.1 to 0.2 AP better.   Here: of the last weights.

    With MS-DETR, whose layer it then extends, ``ms_detr.groups=all`` supervises the candidates of all routes.
    """

    name = "mr_detr"
    Config = MrDETRConfig

    def extend(self, detector: Detector) -> None:
        own, dim = self.config, self.run.model.hidden_dim
        for layer in detector.decoder.layers:
            if FFN_ROUTE in own.names:
                layer.ffn = Routed(layer.ffn)
                layer.ffn.routes[FFN_ROUTE] = OneToManyFFN(layer.ffn.inner)
            if INSTRUCT_ROUTE in own.names:
                layer.self_attention = Routed(layer.self_attention)
                layer.self_attention.routes[INSTRUCT_ROUTE] = InstructedSelfAttention(dim, own.instructions)

    def sources(self) -> Mapping[str, QuerySource]:
        sources: dict[str, QuerySource] = {name: RouteQueries(name) for name in self.config.names}
        if self.config.proposals == "own":
            model = self.run.model
            mixed = self.run.two_stage.mixed_selection
            sources[INSTRUCT_ROUTE] = ProposedRouteQueries(INSTRUCT_ROUTE, model.hidden_dim, model.num_classes, mixed)
        return sources

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        own = self.config
        rule = {"alpha": own.alpha, "threshold": own.threshold, "k": own.k, "eps": self.run.loss.giou_eps}
        if own.rule == "released":
            matcher = ReleasedMrDETR(**rule)
        else:
            matcher = OneToManyMatcher(**rule, exclusive=own.rule == "exclusive")
        branches = [Branch(name, of_group(name), matcher, weighted_terms(own, self.run)) for name in own.names]
        if own.proposals == "own":
            branches.append(encoder_branch(self.run, INSTRUCT_ROUTE))
        return branches

    def postprocess(self) -> Postprocess | None:
        return mixed_postprocess if self.config.mix_layers else None
