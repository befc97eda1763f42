"""The backends of the operator, one after another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import msdetr.ops
from msdetr.ops import cpu, cuda

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["plain", "native", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """The device to put inputs on, once per backend; the backend is in force during the test."""
    if request.param == "native" and not cpu.available():
        pytest.skip(f"no CPU library: {cpu.failure()}")
    if request.param == "cuda" and not cuda.available():
        pytest.skip(f"no CUDA backend: {cuda.failure()}")
    with msdetr.ops.backend("plain" if request.param == "plain" else "native"):
        yield torch.device("cuda" if request.param == "cuda" else "cpu")
