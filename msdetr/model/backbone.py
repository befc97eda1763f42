"""Backbones: one registry, by name.

A backbone maps normalised images [B, 3, H, W] to a list of feature maps, finest first. It has ``channels`` and ``strides`` to
match, and its parameters are the learning-rate group "backbone". ``BACKBONES`` names torchvision's networks and the small one
for the embedded data; ``timm/NAME`` is any model of timm that can give features, with the extra ``timm``.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from ..config import ModelConfig
from ..errors import ConfigError
from .frozen import channels_last, fold_norms
from .pretrained import hub_weights, load_weights_of, weights_file

TIMM = "timm/"


@dataclass(frozen=True)
class Network:
    """What a backbone is cut from.

    build: makes the network, without weights. ends: the children after which a map is taken. channels, strides: of the maps.
    stem: the children before the first stage. trunk: the child that holds all these, "" for the network itself.
    norm: "batch", which ``model.backbone_norm`` replaces, or "layer" or "group", which stay. maps_last: maps come as
    [B, H, W, C] and get a layer norm each, as detectors on Swin have it.
    """

    build: Callable[[], nn.Module]
    ends: tuple[str, ...]
    channels: tuple[int, ...]
    stem: tuple[str, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    trunk: str = ""
    norm: str = "batch"
    maps_last: bool = False


class Backbone(nn.Module):
    """The maps of a network from a stride on.

    trainable_layers: stages that are trained, counted from the last; 5 trains all.
    """

    lr_group = "backbone"

    def __init__(self, network: Network, norm: str = "frozen", trainable_layers: int = 3, finest_stride: int = 8):
        super().__init__()
        built = network.build()
        trunk = getattr(built, network.trunk) if network.trunk else built
        if network.norm == "batch":
            replace_batch_norm(trunk, norm)
        used = [i for i, stride in enumerate(network.strides) if stride >= finest_stride]
        self.channels = tuple(network.channels[i] for i in used)
        self.strides = tuple(network.strides[i] for i in used)
        self.body = IntermediateLayerGetter(trunk, {network.ends[i]: str(n) for n, i in enumerate(used)})
        self.folded = fold_norms(self.body)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels) if network.maps_last else None
        _freeze(self.body, network.stem, network.ends, trainable_layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(self.body(channels_last(images) if self.folded else images).values())
        if self.norms is None:
            return maps
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps)]


def replace_batch_norm(network: nn.Module, norm: str) -> None:
    """Frozen batch norm, or group norm, in the place of batch norm."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                width = child.num_features
                new = FrozenBatchNorm2d(width, child.eps) if norm == "frozen" else nn.GroupNorm(_groups(width), width)
                activation = getattr(child, "act", None)  # timm merges some into their batch norm
                setattr(module, name, new if activation is None else nn.Sequential(new, activation))


def _groups(channels: int) -> int:
    """32 groups where there are channels for it, at least two in each; fewer where that does not divide them."""
    return max(groups for groups in range(1, 33) if channels % groups == 0 and (groups == 1 or channels // groups >= 2))


def _freeze(body: nn.ModuleDict, stem: Sequence[str], ends: Sequence[str], trainable_layers: int) -> None:
    """Stops the training of all but the last stages; a stage ends with one of ``ends``."""
    stages: list[list[nn.Module]] = [[]]
    for name, child in body.items():
        if name not in stem and not stages[1:]:
            stages.append([])
        stages[-1].append(child)
        if name not in stem and name in ends:
            stages.append([])
    stages = [stage for stage in stages if stage]
    frozen = 0 if trainable_layers == 5 else max(len(stages) - trainable_layers, 0)
    for child in itertools.chain(*stages[:frozen]):
        child.requires_grad_(False)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with group norm and a skip connection; the first may be strided."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.skip(x)).relu()


class ConvNet(nn.Module):
    """A small residual network trained from scratch: maps of strides 4 to 32, about 0.6 million parameters."""

    lr_group = "backbone"
    widths = (48, 64, 96, 128)

    def __init__(self, finest_stride: int = 8):
        super().__init__()
        self.strides = tuple(stride for stride in (4, 8, 16, 32) if stride >= finest_stride)
        self.channels = self.widths[-len(self.strides) :]
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False),
            nn.GroupNorm(8, 24),
            nn.ReLU(inplace=True),
            ConvBlock(24, 48, 2),  # stride 4
        )
        self.stages = nn.ModuleList(ConvBlock(a, b, 2) for a, b in itertools.pairwise(self.widths))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-len(self.strides) :]


# ---------------------------------------------------------------- the registry


def _resnet(name: str, first: int) -> Network:
    ends = ("layer1", "layer2", "layer3", "layer4")
    return Network(_torchvision(name), ends, _doubling(first), ("conv1", "bn1", "relu", "maxpool"))


def dilated(network: Network) -> Network:
    """A ResNet of bottlenecks whose last stage is dilated instead of strided (DC5)."""
    build = partial(network.build, replace_stride_with_dilation=[False, False, True])
    return replace(network, build=build, strides=(4, 8, 16, 16))


def _shufflenet(name: str, first: int) -> Network:
    ends = ("maxpool", "stage2", "stage3", "stage4")
    return Network(_torchvision(name), ends, (24, first, 2 * first, 4 * first), ("conv1", "maxpool"))


def _swin(name: str, first: int) -> Network:
    return Network(
        _torchvision(name),
        ("1", "3", "5", "7"),
        _doubling(first),
        ("0",),
        trunk="features",
        norm="layer",
        maps_last=True,
    )


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return partial(getattr(torchvision.models, name), weights=None)


def _doubling(first: int) -> tuple[int, ...]:
    return tuple(first << shift for shift in range(4))


_SWIN_L = (
    partial(  # torchvision has no name for it; Liu et al., 2021, Section 3.3, with the window of 12 of their detectors
        torchvision.models.SwinTransformer,
        patch_size=[4, 4],
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=[12, 12],
        stochastic_depth_prob=0.2,
    )
)
BACKBONES: dict[str, Network] = {
    **{name: _resnet(name, 64) for name in ("resnet18", "resnet34")},
    **{name: _resnet(name, 256) for name in ("resnet50", "resnet101", "resnet152")},
    **{
        f"shufflenet_v2_{name}": _shufflenet(f"shufflenet_v2_{name}", first)
        for name, first in (("x0_5", 48), ("x1_0", 116), ("x1_5", 176), ("x2_0", 244))
    },
    "mobilenet_v3_small": Network(
        _torchvision("mobilenet_v3_small"), ("1", "3", "8", "12"), (16, 24, 48, 576), ("0",), trunk="features"
    ),
    "mobilenet_v3_large": Network(
        _torchvision("mobilenet_v3_large"), ("3", "6", "12", "16"), (24, 40, 112, 960), ("0",), trunk="features"
    ),
    **{name: _swin(name, 96) for name in ("swin_t", "swin_s", "swin_v2_t", "swin_v2_s")},
    **{name: _swin(name, 128) for name in ("swin_b", "swin_v2_b")},
    "swin_l": Network(
        _SWIN_L, ("1", "3", "5", "7"), _doubling(192), ("0",), trunk="features", norm="layer", maps_last=True
    ),
}


def build_backbone(config: ModelConfig) -> nn.Module:
    """The backbone that ``config.backbone`` names, with the weights that ``config.pretrained`` names.

    Raises ConfigError for a name that does not exist, and where pretrained weights cannot be had or used, with what to do.
    """
    name = config.backbone
    if name == "conv":
        return ConvNet(config.finest_stride)
    if name.startswith(TIMM):
        from .timm import TimmBackbone

        return TimmBackbone(name.removeprefix(TIMM), config)
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, [*BACKBONES, "conv"], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are conv, {', '.join(BACKBONES)}"
        raise ConfigError(f"model.backbone: {name!r} is unknown; {hint} (or {TIMM}NAME for a model of timm)")
    network = dilated(BACKBONES[name]) if config.dilation else BACKBONES[name]
    backbone = Backbone(network, config.backbone_norm, config.trainable_layers, config.finest_stride)
    if config.pretrained != "none":
        if config.backbone_norm != "frozen" and network.norm == "batch":
            raise ConfigError(
                "model.pretrained: pretrained weights have batch norm, model.backbone_norm=group has not; "
                "set model.backbone_norm=frozen, or model.pretrained=none to train from scratch"
            )
        weights = hub_weights(name) if config.pretrained == "imagenet" else weights_file(config.pretrained)
        load_weights_of(backbone.body, weights, network.trunk, f"model.pretrained: {config.pretrained} ({name})")
    return backbone
