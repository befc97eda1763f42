"""What a decoder layer sees besides its queries, and how groups of queries share one axis."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..structures import QueryGroup
from .pyramid import Pyramid


@dataclass(frozen=True)
class Block:
    """Consecutive queries that are attended to as one batch: ``parts`` parts of ``size`` queries from ``start`` on.

    No part sees another; each also reads the queries of ``reads``, and leaves out what ``mask`` [size, size] says.
    """

    start: int
    size: int
    parts: int
    reads: tuple[slice, ...] = ()
    mask: Tensor | None = None

    @property
    def stop(self) -> int:
        return self.start + self.size * self.parts


@dataclass(frozen=True)
class Layout:
    """How groups lie on the query axis. groups: the slice of each, by name. blocks: the same queries as few batches of
    equal parts, so that attention within groups costs what it computes and no dense mask is needed. members: the groups."""

    groups: dict[str, slice]
    blocks: tuple[Block, ...]
    members: tuple[QueryGroup, ...] = ()

    @classmethod
    def of(cls, groups: Sequence[QueryGroup]) -> Layout:
        """Raises InputError for a repeated name, parts of unequal size, or a group that reads one that is not there."""
        stops = list(itertools.accumulate(group.contents.shape[1] for group in groups))
        slices = {g.name: slice(stop - g.contents.shape[1], stop) for g, stop in zip(groups, stops)}
        if len(slices) < len(groups):
            raise InputError(f"query groups: a name is given twice among {[group.name for group in groups]}")
        blocks: list[Block] = []
        for group in groups:
            where, queries = slices[group.name], group.contents.shape[1]
            if group.parts < 1 or queries % group.parts:
                raise InputError(f"query group {group.name}: {queries} queries are not {group.parts} equal parts")
            size = queries // group.parts
            if unknown := [name for name in group.reads if name not in slices or name == group.name]:
                raise InputError(
                    f"query group {group.name}: reads {unknown[0]}, which is not another group of this pass"
                )
            if size == 0:
                continue
            block = Block(where.start, size, group.parts, tuple(slices[name] for name in group.reads), group.mask)
            if blocks and _batchable(blocks[-1], block):
                last = blocks.pop()
                block = Block(last.start, size, last.parts + block.parts, block.reads)
            blocks.append(block)
        return cls(slices, tuple(blocks), tuple(groups))

    def only(self, names: Collection[str]) -> Layout:
        """Some of the groups, side by side."""
        return Layout.of([group for group in self.members if group.name in names])

    def take(self, x: Tensor, names: Collection[str]) -> Tensor:
        """Those queries of x [B, Q, ...] that are of some groups."""
        return torch.cat([x[:, where] for name, where in self.groups.items() if name in names], dim=1)


def _batchable(first: Block, second: Block) -> bool:
    unmasked = first.mask is None and second.mask is None
    return unmasked and (first.size, first.reads) == (second.size, second.reads)


@dataclass(frozen=True)
class Context:
    """positions: [B, Q, C] added to queries and keys.   references: [B, Q, 2 or 4] relative to the unpadded image.
    memory: the encoded image.   layout: which queries see which."""

    positions: Tensor
    references: Tensor
    memory: Pyramid
    layout: Layout

    @classmethod
    def of(cls, group: QueryGroup, memory: Pyramid) -> Context:
        """The context of a single group."""
        return cls(group.positions, group.references, memory, Layout.of([group]))

    def only(self, names: Collection[str]) -> Context:
        """The context of some of the groups."""
        take = self.layout.take
        return Context(take(self.positions, names), take(self.references, names), self.memory, self.layout.only(names))


def concatenated(groups: Sequence[QueryGroup]) -> tuple[Tensor, Tensor, Tensor]:
    """Contents, positions and references of all groups along the query axis; contents in memory of their own, so that layers
    that are compiled find the first one's as any other's."""
    if len(groups) == 1:
        return groups[0].contents.contiguous(), groups[0].positions, groups[0].references
    widths = {group.name: group.references.shape[-1] for group in groups}
    if len(set(widths.values())) > 1:
        raise InputError(f"query groups: references must all be points or all be boxes, got widths {widths}")
    return tuple(
        torch.cat([getattr(g, name) for g in groups], dim=1) for name in ("contents", "positions", "references")
    )
