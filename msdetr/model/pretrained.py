"""Weights of networks that were trained before: from torchvision's hub where there is a network, else from a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ..errors import ConfigError

_LISTED = 5


def hub_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of a torchvision network, downloaded once. Raises ConfigError."""
    if name not in torchvision.models.list_models():
        raise ConfigError(f"model.pretrained: there are no ImageNet weights of {name}; give a file, or 'none'")
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise ConfigError(
            f"model.pretrained: the ImageNet weights of {name} are not on this machine and could not be downloaded ({error}). Download "
            f"{weights.url} elsewhere and put it at {cache}, or set model.pretrained to the file's path; or train from scratch with "
            "model.pretrained=none model.backbone_norm=group model.trainable_layers=5"
        ) from error


def weights_file(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .pth file; nothing in it is executed. Raises ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"model.pretrained: there is no file {path}; give a path, 'imagenet' or 'none'")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        read = load_file
    else:
        read = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        found = read(path)
    except Exception as error:  # damaged files raise a dozen kinds of errors
        raise ConfigError(f"model.pretrained: {path} cannot be read as weights ({first_line(error)})") from error
    for key in ("state_dict", "model"):  # what training scripts put around the weights
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"model.pretrained: {path} holds no tensors by name; give the weights of a network")
    return dict(found)


def load_weights_of(body: nn.Module, weights: Mapping[str, Tensor], trunk: str, where: str) -> None:
    """Loads what a part of a network needs from the weights of the whole; its classifier and the like are left out.

    trunk: the child of the network that ``body`` was made from. Raises ConfigError where anything is missing, has another
    shape, or where a name belongs to none of its parts.
    """
    prefix = f"{trunk}." if trunk else ""
    given = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    wanted = body.state_dict()
    parts = {name.split(".")[0] for name in wanted}
    strange = [
        k for k in given if k not in wanted and k.split(".")[0] in parts and not k.endswith("num_batches_tracked")
    ]
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    other = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    for names, what in ((missing, "has no"), (other, "has another shape of"), (strange, "has an unknown")):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise ConfigError(
                f"{where}: {what} {', '.join(names[:_LISTED])}{more}; does the file belong to this backbone?"
            )
    if next(iter(wanted.values())).is_meta:
        return
    body.load_state_dict({k: given[k] for k in wanted if k in given}, strict=False)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
