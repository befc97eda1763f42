"""In which order the encoder's proposals become queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ..boxes import cxcywh_to_xyxy

Ranking = Callable[[Tensor, Tensor, Sequence[tuple[int, int]], int], Tensor]
# scores [B, S], boxes [B, S, 4] cxcywh, shapes of the levels, how many -> tokens [B, R], R = that many or all


def most_object_like(scores: Tensor, boxes: Tensor, shapes: Sequence[tuple[int, int]], count: int) -> Tensor:
    """The tokens of the highest scores, best first."""
    tokens = scores.shape[1]  # symbolic in an export, where min() would be so, too
    return scores.topk(count if tokens >= count else tokens, dim=1).indices  # noqa: FURB136


@torch.no_grad()
def without_duplicates(
    scores: Tensor,
    boxes: Tensor,
    shapes: Sequence[tuple[int, int]],
    count: int,
    first: int,
    iou_threshold: float = 0.9,
    per_level: int = 1000,
) -> Tensor:
    """Tokens ranked after non-maximum suppression within each level (DETA; Ouyang-Zhang et al., 2022): the ``first``
    of them, best first, then the other survivors, then the suppressed.

    The ``per_level`` best tokens of each of the L levels take part; of two on one level whose boxes overlap by more than
    ``iou_threshold`` the one of the lower score is suppressed. Among the ``first`` are the first // L best survivors
    of every level, or as many as it has; the best of all levels fill up. Where fewer than ``first`` survive, tokens are
    ranked by score alone. Boxes are clamped to the image, in fp32.

    Released: a level of fewer than ``per_level`` tokens is filled with tokens of other levels; fewer than ``per_level``
    tokens in all crash.  Here: a level has its own tokens, however few.
    On a GPU the host waits for the device: it has to learn how many tokens survive.
    """
    scores, corners = scores.float(), cxcywh_to_xyxy(boxes.float()).clamp(0, 1)
    sizes = torch.tensor([height * width for height, width in shapes])
    level = torch.arange(len(sizes)).repeat_interleave(sizes).to(scores.device)
    ranked = [
        _rank_image(s, c, level, sizes.tolist(), first, iou_threshold, per_level)[:count]
        for s, c in zip(scores, corners)
    ]
    return torch.stack(ranked)


def _rank_image(
    scores: Tensor, corners: Tensor, level: Tensor, sizes: list[int], first: int, iou_threshold: float, per_level: int
) -> Tensor:
    """[S]: all tokens of an image in their order."""
    best = [own.topk(min(per_level, len(own))).indices for own in scores.split(sizes)]
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    candidates = torch.cat([tokens + start for tokens, start in zip(best, starts.tolist())])
    survivors = candidates[batched_nms(corners[candidates], scores[candidates], level[candidates], iou_threshold)]
    by_score = scores.sort(descending=True, stable=True).indices
    if len(survivors) < first:
        return by_score
    same_level = level[survivors][:, None] == torch.arange(len(sizes), device=level.device)
    place = same_level.cumsum(0)[same_level]  # of a survivor among those of its level, from 1
    entitled = place <= first // len(sizes)
    chosen = (~entitled).sort(stable=True).indices[:first].sort().values  # the entitled first, both kinds by score
    is_chosen = torch.zeros_like(entitled).index_fill(0, chosen, True)
    survived = torch.zeros_like(by_score, dtype=torch.bool).index_fill(0, survivors, True)
    return torch.cat([survivors[is_chosen], survivors[~is_chosen], by_score[~survived[by_score]]])
