"""Detectors whose parameters are of a half type."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn


def in_half_where_parameters_are(forward: Callable) -> Callable:
    """Lets a module run after ``.bfloat16()`` or ``.half()``: its forward then runs under autocast of that type.

    Positions stay in fp32, as under autocast over fp32 parameters, and images may be of either type. References that are
    parameters, those of one-stage detectors, have the half type and so have the boxes made from them. Somebody else's
    autocast is left as it is.
    """

    @functools.wraps(forward)
    def run(self: nn.Module, *args, **kwargs):
        parameter = next(self.parameters())
        half = parameter.dtype in (torch.float16, torch.bfloat16)
        if not half or torch.is_autocast_enabled(parameter.device.type):
            return forward(self, *args, **kwargs)
        with torch.autocast(parameter.device.type, parameter.dtype):
            return forward(self, *args, **kwargs)

    return run
