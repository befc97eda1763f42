"""The flattened feature pyramid that attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def level_sizes(shapes: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
    """[L, 2]: (width, height) of each level, as a tensor of the dtype and on the device of ``like``.

    Filled there number by number: a copy from the host would make it wait for the device, and cannot be captured in a graph.
    """
    return torch.stack([like.new_full((), size) for height, width in shapes for size in (width, height)]).view(-1, 2)


def nearest(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [B, H, W] at another size [B, height, width]: each cell takes the pixel that ``interpolate(mode="nearest")`` takes.

    As indices: engines round ONNX's Resize in other ways, so that at some sizes an exported mask would lose or gain a row.
    """
    rows, columns = (
        (torch.arange(new, device=mask.device, dtype=torch.float32) * (old / new)).floor().long().clamp(max=old - 1)
        for old, new in zip(mask.shape[1:], (height, width))
    )
    return mask[:, rows[:, None], columns]


@dataclass(frozen=True)
class Pyramid:
    """All levels of a feature pyramid as one sequence of S tokens.

    tokens: [B, S, C].   positions: [B, S, C] position plus level embedding.   mask: [B, S] bool, True on padding.
    shapes: (height, width) of each of the L levels, S = sum of height x width; plain numbers, so nothing waits for
    the device.   valid_ratios: [B, L, 2] share of each level's (width, height) that is not padding.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor

    def per_level(self, references: Tensor) -> Tensor:
        """References relative to the unpadded image [B, Q, 2 or 4] -> relative to each padded level [B, Q, L, 2 or 4]."""
        ratios = self.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        return references[:, :, None] * ratios[:, None]

    def token_centers(self) -> Tensor:
        """[B, S, 2]: the centre (x, y) of each token, relative to the unpadded image; above 1 on padding."""
        centers = []
        sizes = level_sizes(self.shapes, self.valid_ratios)
        for level, (height, width) in enumerate(self.shapes):
            y = torch.arange(height, device=self.tokens.device, dtype=self.valid_ratios.dtype) + 0.5
            x = torch.arange(width, device=self.tokens.device, dtype=self.valid_ratios.dtype) + 0.5
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)
            centers.append(grid / (self.valid_ratios[:, level, None] * sizes[level]))
        return torch.cat(centers, dim=1)
