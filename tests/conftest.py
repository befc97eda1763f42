"""Settings shared by all tests."""

import os
import signal
import sys
from pathlib import Path

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # read when torch is imported: each its share of the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("repository", deadline=None, derandomize=True)  # the same examples every time
settings.load_profile("repository")

# Started in the background, a process ignores Ctrl-C, and so do those it starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
