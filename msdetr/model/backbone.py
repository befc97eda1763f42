"""Backbones: torchvision's ResNets for photographs, a small convolutional network for the embedded data.

A backbone maps images [B, 3, H, W] to a list of feature maps, finest first, and has ``channels`` to match.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from ..config import ModelConfig
from ..errors import ConfigError


class ResNet(nn.Module):
    """Stages 2 to 4 of a ResNet: strides 8, 16, 32."""

    lr_group = "backbone"

    def __init__(self, name: str, norm: str = "frozen", trainable_layers: int = 3):
        super().__init__()
        norm_layer = FrozenBatchNorm2d if norm == "frozen" else partial(nn.GroupNorm, 32)
        network = getattr(torchvision.models, name)(weights=None, norm_layer=norm_layer)
        self.channels = tuple(network.fc.in_features >> shift for shift in (2, 1, 0))
        self.body = IntermediateLayerGetter(network, {"layer2": "0", "layer3": "1", "layer4": "2"})
        trainable = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")[
            : 6 if trainable_layers == 5 else trainable_layers
        ]
        for parameter_name, parameter in self.body.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(trainable) if trainable else False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())

    def load_imagenet(self, state: dict[str, Tensor]) -> None:
        """Loads a torchvision classification checkpoint; its classifier and batch counters are left out."""
        state = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
        self.body.load_state_dict(state)


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
    """A small residual network trained from scratch: strides 8, 16, 32, about 0.6 million parameters."""

    lr_group = "backbone"
    channels = (64, 96, 128)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False),
            nn.GroupNorm(8, 24),
            nn.ReLU(inplace=True),
            ConvBlock(24, 48, 2),  # stride 4
        )
        self.stages = nn.ModuleList(ConvBlock(a, b, 2) for a, b in itertools.pairwise((48, *self.channels)))

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def build_backbone(config: ModelConfig) -> nn.Module:
    """The backbone that ``config.backbone`` names, with the weights that ``config.pretrained`` names.

    Raises ConfigError where pretrained weights cannot be had or used, with what to do.
    """
    if config.backbone == "conv":
        return ConvNet()
    backbone = ResNet(config.backbone, config.backbone_norm, config.trainable_layers)
    if config.pretrained == "imagenet":
        if config.backbone_norm != "frozen":
            raise ConfigError(
                "model.pretrained=imagenet has batch norm, model.backbone_norm=group has not; "
                "set model.backbone_norm=frozen, or model.pretrained=none to train from scratch"
            )
        backbone.load_imagenet(_imagenet_weights(config.backbone))
    elif config.pretrained != "none":
        try:
            backbone.load_imagenet(_weights_file(Path(config.pretrained)))
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"model.pretrained: {config.pretrained} does not hold the weights of {config.backbone} ({_first_line(error)})"
            ) from error
    return backbone


def _imagenet_weights(name: str) -> OrderedDict[str, Tensor]:
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise ConfigError(
            f"model.pretrained: the ImageNet weights of {name} are not on this machine and could not be downloaded ({error}). Download "
            f"{weights.url} elsewhere and put it at {cache}, or set model.pretrained to the file's path, or to 'none'"
        ) from error


def _weights_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"model.pretrained: there is no file {path}; give a path, 'imagenet' or 'none'")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        read = load_file
    else:
        read = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        return read(path)
    except Exception as error:  # damaged files raise a dozen kinds of errors
        raise ConfigError(f"model.pretrained: {path} cannot be read as weights ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
