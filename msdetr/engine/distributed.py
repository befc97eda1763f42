"""Ranks: who am I, and the few things ranks say to each other. Plain DDP under torchrun; one process is a world of 1.

Two kinds of traffic are kept apart. Gradients travel between devices (NCCL on GPUs). Control messages (object counts,
stop requests, metrics) travel between hosts over gloo, so that a step never waits for the device to learn them.
"""

from __future__ import annotations

import datetime
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import environment
from ..errors import ConfigError, TrainingError
from ..processes import end_with_parent

_MOST_RANKS = 10**6
TIMEOUT_SECONDS = 600  # for a peer that has vanished with its machine; a peer that died is noticed at once


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this rank writes the files of the run."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over the ranks, on the hosts."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def mean_(self, tensor: Tensor) -> Tensor:
        """In-place mean of a tensor over the ranks, where it lies; does not wait for the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank (host objects)."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_host_group())
        return values

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Runs ``work`` on rank 0 and gives its result to every rank.

        The others stay in touch while they wait, so long work (a large evaluation) meets no timeout, and an error on
        rank 0 is raised on all.
        """
        if self.size == 1:
            return work()
        outcome: dict[str, Any] = {}

        def run():
            try:
                outcome["result"] = work()
            except BaseException as error:  # noqa: BLE001 (raised again in the main thread)
                outcome["error"] = error

        thread = threading.Thread(target=run, daemon=True) if self.main else None
        if thread:
            thread.start()
        while not self.sum([self.main and not thread.is_alive()])[0]:
            time.sleep(0.05)
        error = self.gather(repr(outcome["error"]) if "error" in outcome else None)[0]
        if error is not None:
            raise outcome.get("error") or TrainingError(f"rank 0 failed: {error}")
        return self.gather(outcome.get("result"))[0]


ALONE = World()
_gloo: dict[str, Any] = {}


def _host_group():
    """The group that moves Python objects: gloo even where the default group prefers NCCL."""
    if "group" not in _gloo:
        _gloo["group"] = dist.new_group(backend="gloo", timeout=_timeout())
    return _gloo["group"]


def _timeout() -> datetime.timedelta:
    return datetime.timedelta(seconds=environment.number("MSDETR_TIMEOUT", TIMEOUT_SECONDS, 0.001, 10**7))


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto": this rank's GPU where there is one, else the CPU.

    Raises TrainingError for a device that is not there, or of another type than cpu and cuda.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise TrainingError(f"device '{device}': {error}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device '{device}': a detector runs on cpu and cuda alone; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(
                f"device '{device}': no CUDA device is visible; use --device cpu, or see `msdetr doctor`"
            )
        index = environment.whole("LOCAL_RANK", 0, 0, _MOST_RANKS) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise TrainingError(
                f"device cuda:{index}: this machine has {torch.cuda.device_count()} CUDA device(s); start at most that "
                "many ranks per machine"
            )
        return torch.device("cuda", index)
    return device


def join(device: str | torch.device = "auto") -> World:
    """Joins the ranks that torchrun started, or returns a world of one. Joining twice is the same as once.

    Raises ConfigError naming the environment variable where torchrun's or MSDETR_TIMEOUT has a value it cannot have.
    """
    device = pick_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = environment.whole("WORLD_SIZE", 1, 1, _MOST_RANKS)
    environment.whole("LOCAL_RANK", 0, 0, _MOST_RANKS)
    environment.whole("RANK", 0, 0, size - 1 if size > 1 else _MOST_RANKS)
    environment.whole("MASTER_PORT", 0, 0, 2**16 - 1)
    _timeout()
    if environment.text("RANK") is None or size == 1:
        return World(device=device)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if environment.text(name) is None:
            raise ConfigError(f"{name} is not set, but RANK and WORLD_SIZE are; start the ranks with torchrun")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if environment.text("TORCHELASTIC_RUN_ID") is not None:
            end_with_parent(signal.SIGTERM)  # torchrun; a rank that it left behind would hold the run directory
        store, rank, size = _meet()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_timeout())
    return World(dist.get_rank(), dist.get_world_size(), device)


def _meet() -> tuple[dist.Store, int, int]:
    """The launcher's store, under a prefix that only the ranks of this start know, with rank and world size.

    torchrun keeps its store when it starts all ranks again, with the addresses of those that died; a rank that reads one
    of these waits for ever. So each rank shows a token of its own, and rank 0 answers each token with the new prefix.
    Raises TrainingError where ranks stay away.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=_timeout()))
    token = uuid.uuid4().hex
    if rank > 0:
        store.set(f"token/{rank}", token)
        prefix = store.get(f"prefix/{token}").decode()  # waits for rank 0
        store.set(f"{prefix}/here/{rank}", "")
        return dist.PrefixStore(prefix, store), rank, size
    away, deadline = set(range(1, size)), time.monotonic() + _timeout().total_seconds()
    while away:
        for other in away:
            if store.check([f"token/{other}"]):  # perhaps that of a dead rank, whom the answer does not harm
                store.set("prefix/" + store.get(f"token/{other}").decode(), token)
        away = {other for other in away if not store.check([f"{token}/here/{other}"])}
        if time.monotonic() > deadline:
            raise TrainingError(f"rank 0 waited {_timeout().total_seconds():.0f} s; missing: {sorted(away)}")
        time.sleep(0.01)
    return dist.PrefixStore(token, store), rank, size


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_initialized():
        _gloo.clear()
        dist.destroy_process_group()
