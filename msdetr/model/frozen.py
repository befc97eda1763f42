"""Residual networks whose batch norm is frozen: it is folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Affine:
    """Frozen norms as what they are, y -> scale * y + shift; by norm."""

    scale: dict[FrozenBatchNorm2d, Tensor]
    shift: dict[FrozenBatchNorm2d, Tensor]

    @classmethod
    def of(cls, norms: Sequence[FrozenBatchNorm2d]) -> Affine:
        """Of all norms of a network at once, which are as many operations as one norm takes alone."""
        weight, bias, mean, var = (
            torch.cat([getattr(norm, name) for norm in norms])
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (var + norms[0].eps).rsqrt()
        shift = bias - mean * scale
        if torch.is_autocast_enabled(shift.device.type):  # as the convolutions would, one by one
            shift = shift.to(torch.get_autocast_dtype(shift.device.type))
        sizes = [len(norm.weight) for norm in norms]
        return cls(*(dict(zip(norms, numbers.split(sizes))) for numbers in (scale, shift)))

    def conv(self, x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d, relu: bool = False) -> Tensor:
        """relu(norm(conv(x))), as one convolution, which is linear in its weight."""
        weight, shift = conv.weight * self.scale[norm][:, None, None, None], self.shift[norm]
        if conv.kernel_size == (1, 1) and takes(x, weight):
            return pointwise(x, weight, shift, conv.stride[0], relu)
        y = F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
        return y.relu_() if relu else y


class FrozenBottleneck(Bottleneck):
    """torchvision's bottleneck, which is what is computed: with its norms as ``affine`` in half of the passes over the maps."""

    def forward(self, x: Tensor, affine: Affine | None = None) -> Tensor:
        if affine is None:
            return super().forward(x)
        y = affine.conv(x, self.conv1, self.bn1, relu=True)
        y = affine.conv(y, self.conv2, self.bn2, relu=True)
        y = affine.conv(y, self.conv3, self.bn3)
        skip = x if self.downsample is None else affine.conv(x, *self.downsample)
        return (y + skip if y.requires_grad else y.add_(skip)).relu_()


class FrozenStage(nn.Sequential):
    """Bottlenecks one after another."""

    def forward(self, x: Tensor, affine: Affine | None = None) -> Tensor:
        for block in self:
            x = block(x, affine)
        return x


class FrozenLayers(IntermediateLayerGetter):
    """torchvision's layers of a residual network, the first convolution with its norm and ReLU as one."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not folds(x):
            return super().forward(x)
        affine = Affine.of(frozen_norms(self))
        maps, x = {}, affine.conv(x, self.conv1, self.bn1, relu=True)
        for name, layer in self.items():
            if isinstance(layer, FrozenStage):
                x = layer(x, affine)
            elif name not in ("conv1", "bn1", "relu"):
                x = layer(x)
            if name in self.return_layers:
                maps[self.return_layers[name]] = x
        return maps


def frozen_norms(network: nn.Module) -> list[FrozenBatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]


def fold_norms(body: IntermediateLayerGetter) -> bool:
    """Makes the layers of a residual network of bottlenecks with frozen batch norm ``FrozenLayers``, with a ``FrozenStage`` of
    ``FrozenBottleneck`` for each stage; parameters keep their names. Returns whether it is such a network."""
    blocks = [x for x in body.modules() if type(x) is Bottleneck and isinstance(x.bn1, FrozenBatchNorm2d)]
    if not blocks or len({norm.eps for norm in frozen_norms(body)}) > 1:
        return False
    for block in blocks:
        block.__class__ = FrozenBottleneck
    for stage in body.children():
        if isinstance(stage, nn.Sequential):
            stage.__class__ = FrozenStage
    body.__class__ = FrozenLayers
    return True


def channels_last(images: Tensor) -> Tensor:
    """The images as the folded convolutions want them in memory."""
    return images.contiguous(memory_format=torch.channels_last) if folds(images) else images
