"""Settings shared by all tests."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("repository", deadline=None, derandomize=True)  # the same examples every time
settings.load_profile("repository")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
