"""What every result file says about where it was measured, and how contenders are timed side by side."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, threads, device, versions, date and the load of the machine over the last minute."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found |= gpu(device)
    return found


def gpu(device: torch.device | str = "cuda") -> dict[str, Any]:
    """Name, memory and driver of a GPU, and the versions of what runs on it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    versions = {}
    for package in ("cuda-core", "cuda-bindings", "triton", "deformops"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "gpu_memory_GiB": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        **versions,
    }


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def side_by_side(
    contenders: dict[str, Callable[[], Any]], repeats: int, device: torch.device, clock: str = "wall"
) -> dict[str, float]:
    """Seconds of each contender: the median of ``repeats`` rounds in which they take turns, after one to warm up.

    clock: "processor" counts what all threads of this process take, for a machine that others use, too.
    """
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(repeats + 1):
        for name, call in contenders.items():
            _wait(device)
            start = now()
            call()
            _wait(device)
            if round_number:
                times[name].append(now() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def save(name: str, what: str, device: torch.device | str, settings: argparse.Namespace, found: dict[str, Any]) -> Path:
    """Writes results/NAME.json: what was measured (the first line of a docstring), where, with which settings; says where."""
    result = {
        "what": what.splitlines()[0],
        "machine": describe(torch.device(device)),
        "settings": vars(settings),
        **found,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("written to", path.relative_to(RESULTS.parent.parent))
    return path


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
