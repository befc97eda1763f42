"""Where the decoder's queries come from: learned (one-stage) or the encoder's best proposals (two-stage)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modules import BoxHead, Pyramid, class_head, sine_embedding_of_boxes
from ..structures import EncoderOutput, Predictions


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from: contents and positions [B, Q, C], references [B, Q, 2 or 4] in [0, 1]; for a
    two-stage model also the encoder's proposals and the token each query was made from, [B, Q]."""

    contents: Tensor
    positions: Tensor
    references: Tensor
    encoder: EncoderOutput | None = None
    selected: Tensor | None = None


class LearnedQueries(nn.Module):
    """One-stage: contents and positions are learned, a reference point is read off each position."""

    def __init__(self, dim: int, num_queries: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * dim)
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Pyramid) -> Queries:
        positions, contents = self.embedding.weight.expand(len(memory.tokens), -1, -1).chunk(2, dim=-1)
        return Queries(contents, positions, self.reference_points(positions).sigmoid())


class TwoStageQueries(nn.Module):
    """Two-stage: every token proposes a box around its own anchor; the most object-like become queries.

    A token's anchor is centred on it, with sides of 5 % of the image on the first level, doubling per level. Tokens on
    padding, or whose anchor's centre or side is not within (0.01, 0.99), have no features and the box (1, 1, 1, 1);
    they keep their place in the ranking.
    Mixed selection (Deformable DETR++): only positions come from proposals, contents are learned.
    """

    def __init__(self, dim: int, num_queries: int, num_classes: int, mixed: bool):
        super().__init__()
        self.num_queries = num_queries
        self.memory_projection = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.class_head = class_head(dim, num_classes)
        self.box_head = BoxHead(dim)
        self.position_projection = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        self.contents = nn.Embedding(num_queries, dim) if mixed else None

    def forward(self, memory: Pyramid) -> Queries:
        """Queries of a pyramid; of an image so small that there are fewer tokens than queries, one for each token."""
        batch, num_tokens, dim = memory.tokens.shape
        count = min(self.num_queries, num_tokens)
        anchors, usable = self.anchors(memory)
        features = memory.tokens.masked_fill(~usable[..., None], 0)
        features = self.memory_norm(self.memory_projection(features))
        logits = self.class_head(features)  # [B, S, C]; channel 0 is objectness
        box_logits = self.box_head(features) + anchors  # [B, S, 4]

        selected = logits[..., 0].topk(count, dim=1).indices  # [B, Q]
        references = box_logits.gather(1, selected[..., None].expand(-1, -1, 4)).detach().sigmoid()
        embedding = self.position_norm(self.position_projection(sine_embedding_of_boxes(references, dim)))
        positions, contents = embedding.chunk(2, dim=-1)
        if self.contents is not None:
            contents = self.contents.weight[:count].expand(batch, -1, -1)
        proposals = Predictions(logits[None], box_logits.sigmoid()[None])
        return Queries(contents, positions, references, EncoderOutput(proposals, anchors.sigmoid()), selected)

    def anchors(self, memory: Pyramid) -> tuple[Tensor, Tensor]:
        """Logits of the anchors [B, S, 4], infinite where unusable, and which tokens are usable [B, S] bool."""
        centers = memory.token_centers()
        side = torch.cat([centers.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)])
        boxes = torch.cat([centers, side[None, :, None].expand(len(centers), -1, 2)], dim=-1)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~memory.mask
        return torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf), usable
