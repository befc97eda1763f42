"""Which backend runs the operator, and why: by the device of the tensors, what is installed, and what is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

import torch

from . import cpu, plain

Choice = Literal["auto", "native", "plain"]
CHOICES: tuple[Choice, ...] = ("auto", "native", "plain")
VARIABLE = "MSDETR_OPS_BACKEND"

_chosen: str = os.environ.get(VARIABLE, "auto")


@contextlib.contextmanager
def backend(choice: Choice) -> Iterator[None]:
    """Within the ``with`` block, every call uses ``choice``: "native" (an error where there is none), "plain", "auto".

    Holds for all threads of the process. The environment variable ``MSDETR_OPS_BACKEND`` sets the default.
    """
    global _chosen
    if choice not in CHOICES:
        raise ValueError(f"there is no backend {choice!r}; choose one of {', '.join(CHOICES)}")
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def asked() -> Choice:
    """What is asked for: by ``backend``, else by the environment, else "auto"."""
    if _chosen not in CHOICES:
        raise ValueError(f"{VARIABLE} is {_chosen!r}; it must be one of {', '.join(CHOICES)}")
    return _chosen


def native(device_type: str) -> ModuleType | None:
    """The native backend of a kind of device, if there is one and it can run here."""
    if device_type == "cpu" and cpu.available():
        return cpu
    return None


def select(device: torch.device) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run on tensors of ``device``."""
    if asked() == "plain":
        return plain
    module = native(device.type)
    if module is None and asked() == "native":
        raise RuntimeError(f"no native backend for {device.type}; `msdetr doctor` says why")
    return module or plain
