"""Group DETR (Chen et al., "Group DETR: Fast DETR Training with Group-Wise One-to-Many Assignment", ICCV 2023): several
groups of queries, each of which is a detector's queries of its own, share the decoder while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from torch import nn

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..matching import PartwiseMatcher
from ..model import Proposals, QuerySource
from ..structures import DetectorOutput, QueryGroup, Targets
from .base import Method, hungarian, weighted_terms


@dataclass(frozen=True)
class GroupConfig:
    """How many groups. The default is the one published for COCO."""

    groups: Annotated[int, Range(2, 1000)] = 11  # the primary one included, each of model.num_queries

    def check(self, run: RunConfig) -> None:
        if run.two_stage is None:
            raise ConfigError(
                "group: its queries start from encoder proposals, which a one-stage model does not have; switch two_stage "
                "on (two_stage=true) or this method off (group=null)"
            )
        if not run.two_stage.mixed_selection:
            raise ConfigError(
                "group: all groups start from the same proposals and differ in their learned contents, which only mixed "
                "selection has; set two_stage.mixed_selection=true or switch this method off (group=null)"
            )


class GroupQueries(QuerySource):
    """The further groups, as parts of one: the proposals of the primary group again, with contents of their own."""

    def __init__(self, dim: int, queries: int, groups: int):
        super().__init__()
        self.groups = groups  # all, the primary one included
        self.contents = nn.Embedding((groups - 1) * queries, dim)

    def forward(self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup]) -> QueryGroup:
        primary, parts = earlier["primary"], self.groups - 1
        batch, size, _ = primary.contents.shape  # fewer queries than there are contents where an image is small
        contents = self.contents.weight.unflatten(0, (parts, -1))[:, :size].flatten(0, 1)
        return QueryGroup(
            Group.name,
            contents.expand(batch, -1, -1),
            primary.positions.repeat(1, parts, 1),
            primary.references.repeat(1, parts, 1),
            parts=parts,
            divisor=self.groups,
            selected=primary.selected.repeat(1, parts),
        )


class Group(Method):
    """Group DETR, Section 3.2, on this package's two-stage model: self-attention within a group only, one Hungarian
    matching per group, losses divided by objects times groups, so that they are the mean over all groups.

    Paper: every group has its own learned queries.   Released (LW-DETR): for each group also its own encoder head,
    which picks the group's proposals and is supervised: the method ``lw_detr``.   Here: one encoder head; all groups start
    from the primary group's proposals, with learned contents of their own, so that nothing but the queries differs from the
    baseline.
    Released: at least 1 object times groups (``loss.floor=product``).   Here: at least 1 object, then times groups.
    Released: fewer tokens than queries shift the groups' learned parts.   Here: every group is as small as the first.

    With ``ms_detr.groups=all`` one-to-many matching, too, is done per group and its losses are the mean over groups.
    """

    name = "group"
    Config = GroupConfig

    def sources(self) -> Mapping[str, QuerySource]:
        model = self.run.model
        return {self.name: GroupQueries(model.hidden_dim, model.num_queries, self.config.groups)}

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        matcher = hungarian(self.run, parts=self.config.groups - 1)
        return [Branch(self.name, of_group(self.name), matcher, weighted_terms(self.run.loss, self.run))]

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        return grouped(branches, self.name, self.config.groups)


def grouped(branches: Sequence[Branch], name: str, groups: int) -> Sequence[Branch]:
    """Branches of a run whose further groups are one source ``name``: every group weighs the same, the primary one, too, and
    one-to-many matching, and its merge where there is one, is done per group."""
    candidates, of_primary = f"one_to_many_{name}", {"one_to_one"}
    merging = any(branch.name == "one_to_many" and branch.merge_from is not None for branch in branches)
    if candidates in {branch.name for branch in branches}:
        of_primary.add("one_to_many")
    revised = []
    for branch in branches:
        if branch.name in of_primary:
            branch = replace(branch, select=_divided(branch.select, name, groups))
        if branch.name == candidates:
            matcher = PartwiseMatcher(branch.matcher, groups - 1)
            branch = replace(branch, matcher=matcher, merge_from=name if merging else None)
        revised.append(branch)
    if merging:  # from an earlier branch
        revised.sort(key=lambda branch: branch.name == candidates)
    return revised


def _divided(select, name: str, groups: int):
    """Supervises the same, as one of so many groups, where there are others (in evaluation there are none)."""

    def selected(output: DetectorOutput, targets: Targets):
        given = select(output, targets)
        return given if given is None or name not in output.groups else replace(given, divisor=given.divisor * groups)

    return selected
