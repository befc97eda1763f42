"""Hybrid matching (H-DETR; Jia et al., "DETRs with Hybrid Matching", CVPR 2023): a second query group, supervised
one-to-one with every object repeated k times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from torch import nn

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..model import Proposals, QuerySource
from ..structures import DetectorOutput, QueryGroup, Targets
from .base import Method, hungarian, weighted_terms


@dataclass(frozen=True)
class HybridConfig:
    """The second query group and its supervision. Defaults are those published for COCO."""

    queries: Annotated[int, Range(1, 10**6)] = 1500  # beyond model.num_queries
    k: Annotated[int, Range(1, 10**6)] = 6  # copies of every object
    weight: Annotated[float, Range(0, 10**6)] = 1.0  # lambda: of the group's losses beside the primary group's

    def check(self, run: RunConfig) -> None:
        if run.two_stage is None:
            raise ConfigError(
                "hybrid: its queries are encoder proposals, which a one-stage model does not have; switch two_stage on "
                "(two_stage=true) or this method off (hybrid=null)"
            )


class HybridQueries(QuerySource):
    """The proposals that rank next after those of the primary group; contents are learned in mixed selection, else they
    come from the proposals. An image with fewer tokens has fewer of these queries."""

    def __init__(self, dim: int, queries: int, copies: int, mixed: bool):
        super().__init__()
        self.ranked = queries
        self.copies = copies
        self.contents = nn.Embedding(queries, dim) if mixed else None

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        first = earlier["primary"].selected.shape[1]
        selected = proposals.ranking[:, first : first + self.ranked]
        references = proposals.references(selected)
        positions, contents = proposals.embed(references, selected)
        if self.contents is not None:
            contents = self.contents.weight[: selected.shape[1]].expand(len(selected), -1, -1)
        return QueryGroup(
            Hybrid.name,
            contents,
            positions,
            references,
            targets=targets.repeated(self.copies),
            divisor=self.copies,
            selected=selected,
        )


class Hybrid(Method):
    """H-DETR, Section 3.2 ("hybrid branch scheme"), on this package's two-stage model.

    Both groups pass the same decoder; self-attention is apart both ways, so the primary group's predictions are those
    of a model without the other. Its branch divides by its own number of targets, k times the objects.

    Released: at least 1 target after the repetition.   Here: at least 1 object before it, so the divisor of a batch
    without objects is k.
    Released: the encoder is matched on its predicted boxes with the class cost.   Here: on anchors without it, as in
    MS-DETR, for every method alike.

    With ``ms_detr.groups=all`` the candidates of this group are supervised one-to-many with the objects as they are,
    not repeated, at the weights of ``ms_detr``.
    """

    name = "hybrid"
    Config = HybridConfig

    def sources(self) -> Mapping[str, QuerySource]:
        own, mixed = self.config, self.run.two_stage.mixed_selection
        return {self.name: HybridQueries(self.run.model.hidden_dim, own.queries, own.k, mixed)}

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        terms = weighted_terms(self.run.loss, self.run, self.config.weight)
        return [Branch(self.name, of_group(self.name), hungarian(self.run), terms)]

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        own = f"one_to_many_{self.name}"
        return [replace(b, select=_unrepeated(b.select)) if b.name == own else b for b in branches]


def _unrepeated(select):
    """Supervises the same predictions with the objects of the batch."""

    def selected(output: DetectorOutput, targets: Targets):
        given = select(output, targets)
        return given and replace(given, targets=targets, divisor=1.0)

    return selected
