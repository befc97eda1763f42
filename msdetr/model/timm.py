"""Any model of timm that can give feature maps, as a backbone: ``model.backbone=timm/NAME``, with the extra ``timm``."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import ConfigError
from .pretrained import first_line

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation that images come normalised with


class TimmBackbone(nn.Module):
    """The maps of a timm model from a stride on. A model that wants images normalised otherwise gets them so.

    ``config.trainable_layers`` counts stages from the last where timm's model is a list of layers; a model that is not is
    trained as a whole (5) or not at all (0).

    Raises ConfigError where timm is missing, has no such model with maps, or its weights cannot be had.
    """

    lr_group = "backbone"

    def __init__(self, name: str, config: ModelConfig):
        super().__init__()
        self.body = _created(name, config)
        info = self.body.feature_info
        self.used = [i for i, stride in enumerate(info.reduction()) if stride >= config.finest_stride]
        self.strides = tuple(info.reduction()[i] for i in self.used)
        self.channels = tuple(info.channels()[i] for i in self.used)
        if not self.used or list(self.strides) != sorted(set(self.strides)):
            raise ConfigError(
                f"model.backbone: timm/{name} gives maps of strides {info.reduction()}; one of each is needed"
            )
        if config.backbone_norm == "group":
            from .backbone import replace_batch_norm

            replace_batch_norm(self.body, "group")
        else:
            from timm.utils.model import freeze_batch_norm_2d

            self.body = freeze_batch_norm_2d(self.body)
        self._freeze(name, config.trainable_layers)
        given = getattr(self.body, "pretrained_cfg", None) or {}
        mean, std = (torch.tensor(given.get(key) or usual) for key, usual in zip(("mean", "std"), IMAGENET))
        ours, spread = map(torch.tensor, IMAGENET)
        self.register_buffer("scale", (spread / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((ours - mean) / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images * self.scale + self.shift)
        found = []
        for i, channels in zip(self.used, self.channels):
            x = maps[i]
            found.append(x if x.shape[1] == channels else x.permute(0, 3, 1, 2))
        return found

    def _freeze(self, name: str, trainable_layers: int) -> None:
        if trainable_layers == 5:
            return
        ends = list(getattr(self.body, "return_layers", {}))
        if not ends and trainable_layers:
            raise ConfigError(
                f"model.trainable_layers: timm/{name} cannot be divided into stages; set it to 5 (all) or 0 (none)"
            )
        frozen = len(ends) - trainable_layers
        for child_name, child in self.body.named_children():
            if frozen > 0 or not trainable_layers:
                child.requires_grad_(False)
            frozen -= child_name in ends


def _created(name: str, config: ModelConfig) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"model.backbone: timm/{name} needs timm: pip install 'msdetr[timm]'") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(
            f"model.backbone: timm has no model {name!r}" + (f"; e.g. {', '.join(close)}" if close else "")
        )
    options: dict = {"features_only": True, "pretrained": config.pretrained != "none"}
    if config.pretrained not in ("imagenet", "none"):
        if not Path(config.pretrained).is_file():
            raise ConfigError(
                f"model.pretrained: there is no file {config.pretrained}; give a path, 'imagenet' or 'none'"
            )
        options["pretrained_cfg_overlay"] = {"file": config.pretrained}
    if not options["pretrained"]:
        options["pretrained_cfg_overlay"] = {}
    try:
        return timm.create_model(name, **options, **_any_size(name))
    except Exception as error:  # timm, its hub and its checks raise many kinds
        if options["pretrained"]:
            raise ConfigError(
                f"model.pretrained: the weights of timm/{name} could not be had or do not fit ({first_line(error)}); give a file "
                "with them, or 'none'"
            ) from error
        raise ConfigError(
            f"model.backbone: timm/{name} gives no feature maps ({first_line(error)}); choose another"
        ) from error


def _any_size(name: str) -> dict:
    """What makes a model take images of any size, where timm's default is one size."""
    return {"strict_img_size": False} if name.startswith("swin_") else {}
