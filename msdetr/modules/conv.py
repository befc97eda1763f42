"""Convolutions of one pixel as linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import linear, takes


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, relu: bool = False) -> Tensor:
    """A 1x1 convolution as a linear layer of the pixels: x [B, I, H, W], weight [O, I, 1, 1] -> [B, O, H', W'], whose memory
    is that of [B, H', W', O] (channels last)."""
    pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
    return linear(pixels, weight.flatten(1), bias, relu).permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    """As ``nn.Conv2d``; a 1x1 convolution on a processor as a linear layer (see ``msdetr.ops.linear``)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1 and takes(x, self.weight):
            return pointwise(x, self.weight, self.bias, self.stride[0])
        return super().forward(x)
