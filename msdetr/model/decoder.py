"""The decoder: layers, their predictors, and box refinement from layer to layer, for any number of query groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..modules import BoxHead, Context, DecoderLayer, Layout, Pyramid, class_head, concatenated
from ..structures import GroupOutput, Predictions, QueryGroup
from .coding import BoxCoding, LogitBoxes

# of a query group, what its output has, too
SHARED = ("parts", "targets", "pairs", "divisor", "selected", "objects", "encoder")


class Decoder(nn.Module):
    """Layers, predictors, and predictors of the candidates inside each layer (None for a baseline, or after stripping).

    With refinement each layer predicts boxes relative to those of the layer before, and has its own predictors unless
    ``shared_heads``; without, all layers share them and the reference stays. Look forward twice (Deformable DETR++): a
    layer's box loss also reaches the layer before, through the reference.

    one_to_many: predicts from candidates: ``(layer index, candidates, one-to-one offsets, class head, box head) ->
    (logits, offsets)``, where the heads are those of the one-to-one branch.
    query_positions: makes the positions of every layer, ``(layer index, queries, references, memory) -> [B, Q, C]`` (see
    ``ReferencePositions``); None: the groups' own positions serve all layers.
    output_norm: applied to what the predictors read, not to what the next layer gets or its references are made from.
    coding: how boxes are made from references and offsets; None: in logits.
    learned_start: with look forward twice, the second layer's boxes also reach the references that the first layer starts
    from (LW-DETR, whose are learned).
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        dim: int,
        num_classes: int,
        box_refine: bool = True,
        look_forward_twice: bool = False,
        first_size_bias: float = 0.0,
        one_to_many: nn.Module | None = None,
        query_positions: nn.Module | None = None,
        output_norm: nn.Module | None = None,
        shared_heads: bool = False,
        coding: BoxCoding | None = None,
        learned_start: bool = False,
    ):
        super().__init__()
        self.box_refine = box_refine
        self.look_forward_twice = look_forward_twice
        self.coding = coding or LogitBoxes()
        self.learned_start = learned_start
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(layers)
        num_heads = len(layers) if box_refine and not shared_heads else 1
        self.class_heads = nn.ModuleList(class_head(dim, num_classes) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(BoxHead(dim, 0.0 if i else first_size_bias) for i in range(num_heads))
        self.one_to_many = one_to_many
        self.query_positions = query_positions
        self.output_norm = output_norm

    def forward(
        self, groups: Sequence[QueryGroup], memory: Pyramid, candidates: bool = False
    ) -> dict[str, GroupOutput]:
        """Runs all groups side by side; the output of each, by name. candidates: also predict from the candidates."""
        layout = Layout.of(groups)
        queries, positions, references = concatenated(groups)
        anchor = references  # what boxes are relative to; like references, but may carry a gradient
        results = []
        for i, layer in enumerate(self.layers):
            if self.query_positions is not None:
                positions = self.query_positions(i, queries, references, memory)
            queries, collected = self._run(layer, queries, Context(positions, references, memory, layout))
            head = min(i, len(self.class_heads) - 1)
            read = queries if self.output_norm is None else self.output_norm(queries)
            logits, offsets = self.class_heads[head](read), self.box_heads[head](read)
            boxes = self.coding(anchor, offsets)
            result = [logits, boxes, _as_boxes(references.detach())]
            if candidates:
                heads = self.class_heads[head], self.box_heads[head]
                extra_logits, extra_offsets = self.one_to_many(i, collected, offsets, *heads)
                result += [extra_logits, self.coding(anchor, extra_offsets)]
            results.append(result)
            if self.box_refine:
                step = offsets if self.output_norm is None else self.box_heads[head](queries)
                refined = self.coding(references if self.learned_start else references.detach(), step)
                anchor = refined if self.look_forward_twice else refined.detach()
                references = refined.detach()
        stacked = [torch.stack(column) for column in zip(*results)]
        return {group.name: _output(group, stacked, layout.groups[group.name]) for group in groups}

    def _run(self, layer: nn.Module, queries: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, queries, context, use_reentrant=False)
        return layer(queries, context)


def _output(group: QueryGroup, stacked: Sequence[Tensor], where: slice) -> GroupOutput:
    logits, boxes, references, *extra = (x[:, :, where] for x in stacked)
    return GroupOutput(
        Predictions(logits, boxes),
        Predictions(*extra) if extra else None,
        references,
        **{name: getattr(group, name) for name in SHARED},
    )


def _as_boxes(references: Tensor) -> Tensor:
    """Reference points as boxes without a size, so that all layers stack to [K, B, Q, 4]."""
    if references.shape[-1] == 2:
        return torch.cat([references, torch.zeros_like(references)], dim=-1)
    return references
