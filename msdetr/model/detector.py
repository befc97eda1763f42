"""The whole detector, made of parts that are passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modules import Conv2d, MapPositions, Pyramid, nearest
from ..modules.norm import GroupNorm
from ..modules.precision import in_half_where_parameters_are
from ..structures import DetectorOutput, ImageBatch, QueryGroup, Targets
from .decoder import Decoder
from .encoder import Encoder
from .query_selection import PRIMARY, Proposals, QuerySource
from .strip import strip


class Detector(nn.Module):
    """Deformable DETR: image -> backbone -> feature pyramid -> encoder -> query groups -> decoder -> classes and boxes.

    projections: one per pyramid level, the backbone's maps to ``dim`` channels (see ``build_projections``).
    query_selection: the source of the primary group, the detector's answer.
    sources: of further groups, by name, which only training runs.
    map_positions: the position embedding of the feature maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projections: nn.ModuleList,
        encoder: Encoder,
        query_selection: QuerySource,
        decoder: Decoder,
        sources: Mapping[str, QuerySource] | None = None,
        map_positions: MapPositions | None = None,
    ):
        super().__init__()
        dim = projections[0][0].out_channels
        self.backbone = backbone
        self.projections = projections
        # only the encoder reads where tokens are
        self.level_embedding = nn.Parameter(torch.empty(len(projections), dim)) if len(encoder.layers) else None
        self.encoder = encoder
        self.query_selection = query_selection
        self.decoder = decoder
        self.sources = nn.ModuleDict(sources or {})
        self.map_positions = map_positions or MapPositions()
        if self.level_embedding is not None:
            nn.init.normal_(self.level_embedding)

    @in_half_where_parameters_are
    def forward(
        self,
        images: ImageBatch | Tensor | Sequence[Tensor],
        targets: Targets | None = None,
        one_to_many: bool | None = None,
    ) -> DetectorOutput:
        """Predictions for normalised images: a padded batch, a tensor [B, 3, H, W] or a list of tensors [3, h, w].

        targets: the objects of the batch. Where they are given, also in eval mode, the further query groups run, too;
        a detector that has any needs them while training.
        one_to_many: whether to predict from the candidates inside the decoder layers; None: only while training.

        Raises InputError where candidates are asked for and there is no such branch, targets are missing, or images do
        not fit.
        """
        batch = ImageBatch.of(images)
        if one_to_many is None:
            one_to_many = self.training and self.decoder.one_to_many is not None
        if one_to_many and self.decoder.one_to_many is None:
            raise InputError("this detector has no one-to-many branch (a baseline, or stripped); leave one_to_many out")
        if targets is None and self.sources and self.training:
            raise InputError(
                f"query groups {', '.join(self.sources)} are trained with objects: call detector(batch, targets), or "
                "detector.eval() for predictions"
            )
        memory = self.encoder(self.pyramid(batch))
        proposals, groups = self.query_groups(memory, targets)
        outputs = self.decoder(groups, memory, one_to_many)
        primary = outputs.pop(PRIMARY)
        return DetectorOutput(
            primary.predictions, primary.candidates, proposals.encoder, primary.references, primary.selected, outputs
        )

    def query_groups(self, memory: Pyramid, targets: Targets | None = None) -> tuple[Proposals, list[QueryGroup]]:
        """The encoder's proposals and the query groups made from them; the primary group alone without targets."""
        sources = dict(self.sources.items()) if targets is not None else {}
        ranked = self.query_selection.ranked + sum(source.ranked for source in sources.values())
        heads = self.decoder.class_heads[0], self.decoder.box_heads[0]
        proposals = self.query_selection.propose(memory, ranked, *heads)
        groups = {PRIMARY: self.query_selection(proposals, targets, {})}
        for name, source in sources.items():
            groups[name] = source(proposals, targets, groups)
        return proposals, list(groups.values())

    def pyramid(self, batch: ImageBatch) -> Pyramid:
        """Backbone features of all levels, projected to one width, flattened, with positions and padding mask."""
        maps = self.backbone(batch.images)[-len(self.projections) :]
        projected = [projection(x) for projection, x in zip(self.projections, maps)]
        coarsest = maps[-1]
        for projection in self.projections[len(maps) :]:
            coarsest = projection(coarsest)
            projected.append(coarsest)

        tokens, positions, masks, ratios = [], [], [], []
        for level, x in enumerate(projected):
            mask = nearest(batch.mask, *x.shape[-2:])  # [B, h, w]
            position = self.map_positions(mask, x.shape[1], x.dtype if x.dtype == torch.float64 else torch.float32)
            tokens.append(x.flatten(2).transpose(1, 2))
            if self.level_embedding is not None:
                position = position + self.level_embedding[level]
            positions.append(position.flatten(1, 2))
            masks.append(mask.flatten(1))
            ratios.append(
                torch.stack([(~mask[:, 0]).to(position.dtype).mean(1), (~mask[:, :, 0]).to(position.dtype).mean(1)], -1)
            )
        return Pyramid(
            tokens=torch.cat(tokens, 1),
            positions=torch.cat(positions, 1),
            mask=torch.cat(masks, 1),
            shapes=tuple(tuple(x.shape[-2:]) for x in projected),
            valid_ratios=torch.stack(ratios, 1),
        )

    def strip(self) -> Detector:
        """Removes what only training needs, in place; predictions stay the same. Returns self."""
        return strip(self)

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute transformer layers in the backward pass instead of keeping their activations."""
        return self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on

    def compile_layers(self) -> None:
        """Has torch.compile compile backbone and transformer layers, in place; weights keep their names.

        That happens at their first call and serves images of every size: left to itself, torch.compile would do it anew for
        each size that turns out to vary, and give up at the eighth.
        """
        for module in (self.backbone, *self.encoder.layers, *self.decoder.layers):
            module.compile(dynamic=True)


def build_projections(channels: tuple[int, ...], dim: int, num_levels: int) -> nn.ModuleList:
    """One projection to ``dim`` channels per level: 1x1 on the backbone's maps (the coarsest, where there are more than
    levels), then 3x3 of stride 2, the first of them on the backbone's last map."""
    used = channels[-num_levels:]
    layers = [nn.Sequential(Conv2d(c, dim, 1), GroupNorm(32, dim)) for c in used]
    inputs = channels[-1]
    for _ in range(num_levels - len(used)):
        layers.append(nn.Sequential(nn.Conv2d(inputs, dim, 3, 2, 1), GroupNorm(32, dim)))
        inputs = dim
    for convolution, _ in layers:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return nn.ModuleList(layers)
