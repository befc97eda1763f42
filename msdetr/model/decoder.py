"""The decoder: layers of one variant, their predictors, and box refinement from layer to layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..boxes import logit
from ..config import ModelConfig
from ..modules import FFN, VARIANTS, BoxHead, Pyramid, Residual, class_head
from ..structures import DetectorOutput, Predictions
from .query_selection import Queries


class OneToManyHeads(nn.Module):
    """What the one-to-many branch owns; all of it is training-only.

    ffns: the additional FFN of Eq. 3, one per layer.   class_heads, box_heads: where they are not shared with the
    one-to-one branch. Each is None where the branch does without.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        layers, dim = range(config.decoder_layers), config.hidden_dim
        reads_output = config.variant in ("a", "b")
        with_ffn = not reads_output if config.candidate_ffn is None else config.candidate_ffn
        separate = reads_output if config.separate_heads is None else config.separate_heads
        self.ffns = self.class_heads = self.box_heads = None
        if with_ffn:
            self.ffns = nn.ModuleList(
                Residual(FFN(dim, config.ffn_dim, config.dropout), dim, config.dropout) for _ in layers
            )
        if separate:
            self.class_heads = nn.ModuleList(class_head(dim, config.num_classes) for _ in layers)
        if separate and not reads_output:
            self.box_heads = nn.ModuleList(BoxHead(dim) for _ in layers)


class Decoder(nn.Module):
    """Layers, one-to-one predictors, and the one-to-many branch (None for a baseline, or after stripping).

    With refinement each layer has its own predictors and predicts boxes relative to those of the layer before; without,
    all layers share them and the reference point stays. Look forward twice (Deformable DETR++): a layer's box loss also
    reaches the layer before, through the reference.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.hidden_dim
        self.box_refine = config.box_refine
        self.look_forward_twice = config.look_forward_twice
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(
            VARIANTS[config.variant](
                dim, config.num_heads, config.num_levels, config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.decoder_layers)
        )
        num_heads = config.decoder_layers if config.box_refine else 1
        self.class_heads = nn.ModuleList(class_head(dim, config.num_classes) for _ in range(num_heads))
        # a one-stage model starts from points without a size, so its first boxes need one
        biases = [-2.0 if i == 0 and not config.two_stage else 0.0 for i in range(num_heads)]
        self.box_heads = nn.ModuleList(BoxHead(dim, bias) for bias in biases)
        self.one_to_many = OneToManyHeads(config) if config.variant != "baseline" else None

    def forward(self, start: Queries, memory: Pyramid, one_to_many: bool) -> DetectorOutput:
        queries, references = start.contents, start.references
        anchor = references  # what boxes are relative to; like references, but may carry a gradient
        layer_outputs = []
        for i, layer in enumerate(self.layers):
            queries, candidates = self._run(layer, queries, start.positions, references, memory)
            logits, delta = self._predict(i, queries)
            boxes = shift(anchor, delta)
            extra = self._predict_one_to_many(i, candidates, queries, delta, anchor) if one_to_many else None
            layer_outputs.append((logits, boxes, extra, references))
            if self.box_refine:
                anchor = shift(references.detach(), delta) if self.look_forward_twice else boxes.detach()
                references = anchor.detach()
        logits, boxes, extras, all_references = zip(*layer_outputs)
        return DetectorOutput(
            one_to_one=Predictions(torch.stack(logits), torch.stack(boxes)),
            one_to_many=Predictions(*(torch.stack(x) for x in zip(*extras))) if one_to_many else None,
            encoder=start.encoder,
            references=torch.stack([_as_boxes(r.detach()) for r in all_references]),
            selected=start.selected,
        )

    def _run(self, layer: nn.Module, *inputs) -> tuple[Tensor, Tensor | None]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def _predict(self, i: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C] and box offsets [B, Q, 4] of layer i."""
        i = i if self.box_refine else 0
        return self.class_heads[i](queries), self.box_heads[i](queries)

    def _predict_one_to_many(
        self, i: int, candidates: Tensor, queries: Tensor, delta: Tensor, anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits and boxes of the one-to-many branch of layer i, Eq. 3 and 4."""
        heads, shared = self.one_to_many, i if self.box_refine else 0
        same = candidates is queries and heads.ffns is None  # (a), (b): the boxes are those of the one-to-one branch
        if heads.ffns is not None:
            candidates = heads.ffns[i](candidates)
        logits = (heads.class_heads[i] if heads.class_heads is not None else self.class_heads[shared])(candidates)
        box_head = heads.box_heads[i] if heads.box_heads is not None else self.box_heads[shared]
        return logits, shift(anchor, delta if same else box_head(candidates))


def shift(reference: Tensor, delta: Tensor) -> Tensor:
    """A box from a reference box or point [B, Q, 4 or 2] and an offset in logits [B, Q, 4]."""
    base = logit(reference)
    if base.shape[-1] == 2:
        base = torch.cat([base, torch.zeros_like(base)], dim=-1)
    return (base + delta).sigmoid()


def _as_boxes(references: Tensor) -> Tensor:
    """Reference points as boxes without a size, so that all layers stack to [K, B, Q, 4]."""
    if references.shape[-1] == 2:
        return torch.cat([references, torch.zeros_like(references)], dim=-1)
    return references
