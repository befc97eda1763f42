"""What only training needs, removed by one rule: every sub-module that says ``training_only``."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def is_training_only(module: nn.Module) -> bool:
    """Whether a module, with all that is in it, is needed for training alone."""
    return getattr(module, "training_only", False)


def strip(module: Module) -> Module:
    """Removes all training-only sub-modules, in place: an entry of a ModuleDict disappears, an attribute becomes None.
    Returns the module."""
    for name, child in list(module.named_children()):
        if not is_training_only(child):
            strip(child)
        elif isinstance(module, nn.ModuleDict):
            del module[name]
        else:
            setattr(module, name, None)
    return module


def training_only_names(module: nn.Module) -> tuple[str, ...]:
    """Prefixes, ending in a dot, of the parameters that ``strip`` removes."""
    outermost: list[str] = []
    for name, child in module.named_modules():
        if is_training_only(child) and not name.startswith(tuple(outermost)):
            outermost.append(name + ".")
    return tuple(outermost)
