"""The whole detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..modules import MultiScaleDeformableAttention, Pyramid, sine_embedding_2d
from ..modules.norm import GroupNorm
from ..modules.precision import in_half_where_parameters_are
from ..structures import DetectorOutput, ImageBatch
from .backbone import build_backbone
from .decoder import Decoder
from .encoder import Encoder
from .query_selection import LearnedQueries, TwoStageQueries


class Detector(nn.Module):
    """Deformable DETR with the decoder layer that ``config.variant`` names.

    Image -> backbone -> feature pyramid -> encoder -> query selection -> decoder -> classes and boxes.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.hidden_dim
        self.config = config
        self.backbone = build_backbone(config)
        self.projections = build_projections(self.backbone.channels, dim, config.num_levels)
        self.level_embedding = nn.Parameter(torch.empty(config.num_levels, dim))
        self.encoder = Encoder(
            config.encoder_layers,
            dim=dim,
            num_heads=config.num_heads,
            num_levels=config.num_levels,
            num_points=config.num_points,
            ffn_dim=config.ffn_dim,
            dropout=config.dropout,
        )
        if config.two_stage:
            self.query_selection = TwoStageQueries(dim, config.num_queries, config.num_classes, config.mixed_selection)
        else:
            self.query_selection = LearnedQueries(dim, config.num_queries)
        self.decoder = Decoder(config)
        self._initialize()

    @in_half_where_parameters_are
    def forward(
        self, images: ImageBatch | Tensor | Sequence[Tensor], one_to_many: bool | None = None
    ) -> DetectorOutput:
        """Predictions for normalised images: a padded batch, a tensor [B, 3, H, W] or a list of tensors [3, h, w].

        one_to_many: whether to compute the one-to-many branch; None: only while training. Raises ValueError where it is
        asked for and there is none, or images do not fit.
        """
        batch = ImageBatch.of(images)
        if one_to_many is None:
            one_to_many = self.training and self.decoder.one_to_many is not None
        if one_to_many and self.decoder.one_to_many is None:
            raise ValueError("this detector has no one-to-many branch (a baseline, or stripped); leave one_to_many out")
        memory = self.encoder(self.pyramid(batch))
        return self.decoder(self.query_selection(memory), memory, one_to_many)

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
            mask = F.interpolate(batch.mask[None].float(), size=x.shape[-2:])[0].bool()  # [B, h, w]
            position = sine_embedding_2d(mask, x.shape[1], x.dtype if x.dtype == torch.float64 else torch.float32)
            tokens.append(x.flatten(2).transpose(1, 2))
            positions.append((position + self.level_embedding[level]).flatten(1, 2))
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

    def strip_one_to_many(self) -> Detector:
        """Removes what only training needs, in place; the one-to-one predictions stay the same. Returns self."""
        self.decoder.one_to_many = None
        return self

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute transformer layers in the backward pass instead of keeping their activations."""
        return self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on

    def _initialize(self) -> None:
        """Xavier for the matrices of encoder, decoder layers and query selection; heads, deformable attention and
        embeddings keep their own starts."""
        nn.init.normal_(self.level_embedding)
        linears = [m for part in (self.encoder, self.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
        heads = {id(m) for name, m in self.decoder.named_modules() if "class_heads" in name or "box_heads" in name}
        if isinstance(self.query_selection, TwoStageQueries):
            linears += [self.query_selection.memory_projection, self.query_selection.position_projection]
        for linear in linears:
            if id(linear) not in heads:
                nn.init.xavier_uniform_(linear.weight)
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        for projection in self.projections:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)


def build_projections(channels: tuple[int, ...], dim: int, num_levels: int) -> nn.ModuleList:
    """One projection to ``dim`` channels per level: 1x1 on the backbone's maps (the coarsest, where there are more than
    levels), then 3x3 of stride 2, the first of them on the backbone's last map."""
    used = channels[-num_levels:]
    layers = [nn.Sequential(nn.Conv2d(c, dim, 1), GroupNorm(32, dim)) for c in used]
    inputs = channels[-1]
    for _ in range(num_levels - len(used)):
        layers.append(nn.Sequential(nn.Conv2d(inputs, dim, 3, 2, 1), GroupNorm(32, dim)))
        inputs = dim
    return nn.ModuleList(layers)


def build_model(config: ModelConfig) -> Detector:
    """A detector from its configuration, with freshly drawn weights (from torch's global generator)."""
    return Detector(config)
