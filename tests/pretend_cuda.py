"""A device made of host memory, which notices whoever waits for it: for tests of CUDA code on machines without a GPU.

Tensors claim to lie on ``cuda`` and hold their numbers on the CPU. Everything that a GPU would make the host wait for is
refused: a number read, a result whose size depends on numbers, a blocking copy. Copies to the host may be read after
``synchronize`` only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)

# Numbers read from the device, and results whose size the host must learn.
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "repeat_interleave.Tensor")
_READS += ("bincount", "is_nonzero", "histc", "_linalg_check_errors")


class Waits(AssertionError):
    """Something here makes the host wait for the device."""


class _OnDevice(Tensor):
    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"<on the pretended device: {list(self.shape)} {self.dtype}>"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise Waits(f"{function}: the tensor has left the pretended device")


@dataclass
class Record:
    """What happened on the device: operators run there, copies each way, and how often the host waited."""

    operators: list[str] = field(default_factory=list)
    to_host: int = 0
    to_device: int = 0
    waits: int = 0


class _Device(TorchDispatchMode):
    def __init__(self, record: Record):
        super().__init__()
        self.record = record
        self.on_the_way: list[tuple[Tensor, Tensor]] = []  # host tensor, what it will hold

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with _disable_current_modes():
            return self._run(function, args, kwargs or {})

    def _run(self, function, args, kwargs):
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        given = [x for x in tensors if isinstance(x, _OnDevice)]
        device = kwargs.get("device")
        goal = None if device is None else torch.device(device).type
        name = str(function)
        if not given and goal != "cuda":
            return function(*args, **kwargs)

        if any(read in name for read in _READS):
            raise Waits(f"{name} reads numbers of the device")
        others = [x for x in tensors if not isinstance(x, _OnDevice)]
        indexing = name.startswith(("aten.index.", "aten.index_put", "aten._unsafe_index", "aten._index_put"))
        if given and any(x.dim() or indexing for x in others) and goal is None:
            raise Waits(f"{name} takes tensors of the host and of the device")
        if indexing and any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None):
            raise Waits(f"{name} selects by a mask: its size must be read from the device")
        self.record.operators.append(name)
        inner = tree_map(lambda x: x.held if isinstance(x, _OnDevice) else x, args)
        inner_kwargs = tree_map(lambda x: x.held if isinstance(x, _OnDevice) else x, kwargs)
        if goal == "cuda":
            inner_kwargs["device"] = torch.device("cpu")

        copies = (goal == "cpu" and given) or (goal == "cuda" and others)
        if copies and not kwargs.get("non_blocking"):
            raise Waits(f"{name} copies between host and device and waits for it")
        if goal == "cpu" and given:
            return self._to_host(function(*inner, **inner_kwargs))
        if goal == "cuda" and others:
            self.record.to_device += 1
            if not all(getattr(x, "pinned", False) for x in others):
                raise Waits(f"{name} copies from pageable memory of the host")
            return _OnDevice(others[0].clone())
        result = function(*inner, **inner_kwargs)
        held = {id(x.held): x for x in given}  # operators in place return what they were given

        def placed(x):
            return (held[id(x)] if id(x) in held else _OnDevice(x)) if isinstance(x, Tensor) else x

        return tree_map(placed, result)

    def _to_host(self, value: Tensor) -> Tensor:
        """Until someone waits for the device the host sees rubbish."""
        self.record.to_host += 1
        rubbish = torch.full_like(value, float("nan") if value.is_floating_point() else 0)
        self.on_the_way.append((rubbish, value.clone()))
        return rubbish

    def wait(self) -> None:
        self.record.waits += 1
        for host, value in self.on_the_way:
            host.copy_(value)
        self.on_the_way.clear()


def put(value: Tensor) -> Tensor:
    """A tensor of the host on the pretended device."""
    return _OnDevice(value.detach().clone())


def fetch(value: Tensor) -> Tensor:
    """A tensor of the pretended device on the host, for a test to look at."""
    return value.held if isinstance(value, _OnDevice) else value


def _pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True
    return copy


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Record]:
    """Where ``cuda`` is the pretended device."""
    record = Record()
    device = _Device(record)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode())  # torch then asks for no driver; nothing reaches this mode
        stack.enter_context(device)
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pinned))
        stream = SimpleNamespace(synchronize=device.wait)
        stack.enter_context(mock.patch("torch.cuda.current_stream", lambda device=None: stream))
        yield record
