"""Residual networks whose batch norm is frozen: it is folded into the convolution before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from ..modules.conv import pointwise
from ..ops import asked, takes


def folds(x: Tensor) -> bool:
    """Whether norms are folded into their convolutions here: where a processor's fast paths are taken, and on a GPU. Under
    autocast that is also what keeps the maps in bf16: a norm of fp32 numbers makes fp32 maps of them."""
    on_gpu = x.device.type == "cuda" and asked() in ("auto", "native") and not torch.onnx.is_in_onnx_export()
    return on_gpu or takes(x)


class FrozenBottleneck(Bottleneck):
    """torchvision's bottleneck, which is what is computed: here with half of the passes over the maps."""

    def forward(self, x: Tensor) -> Tensor:
        if not folds(x):
            return super().forward(x)
        y = normed(x, self.conv1, self.bn1, relu=True)
        y = normed(y, self.conv2, self.bn2, relu=True)
        y = normed(y, self.conv3, self.bn3)
        skip = x if self.downsample is None else normed(x, *self.downsample)
        return (y + skip if y.requires_grad else y.add_(skip)).relu_()


def normed(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d, relu: bool = False) -> Tensor:
    """relu(norm(conv(x))), as one convolution: norm(y) = scale * y + shift, and a convolution is linear in its weight."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    if conv.kernel_size == (1, 1) and takes(x, weight):
        return pointwise(x, weight, shift, conv.stride[0], relu)
    y = F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.relu_() if relu else y


class FrozenLayers(IntermediateLayerGetter):
    """torchvision's layers of a residual network, the first convolution with its norm and ReLU as one."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not folds(x):
            return super().forward(x)
        maps, x = {}, normed(x, self.conv1, self.bn1, relu=True)
        for name, layer in self.items():
            if name not in ("conv1", "bn1", "relu"):
                x = layer(x)
            if name in self.return_layers:
                maps[self.return_layers[name]] = x
        return maps


def fold_norms(body: IntermediateLayerGetter) -> bool:
    """Makes the layers of a residual network of bottlenecks with frozen batch norm ``FrozenLayers`` and each bottleneck a
    ``FrozenBottleneck``; parameters keep their names. Returns whether it is such a network."""
    found = [x for x in body.modules() if type(x) is Bottleneck and isinstance(x.bn1, FrozenBatchNorm2d)]
    for module in found:
        module.__class__ = FrozenBottleneck
    if found:
        body.__class__ = FrozenLayers
    return bool(found)


def channels_last(images: Tensor) -> Tensor:
    """The images as the folded convolutions want them in memory."""
    return images.contiguous(memory_format=torch.channels_last) if folds(images) else images
