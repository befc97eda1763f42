"""Which backend runs: damaged or missing libraries, cuda.core that does not fit, and what the user is told."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from operator_inputs import Inputs

import msdetr.ops
from msdetr.errors import ConfigError, OperatorError, OperatorWarning
from msdetr.ops import backends, cpu, cuda, gather

compiled = pytest.mark.skipif(not cpu.available(), reason="no CPU library")


@pytest.fixture
def library(monkeypatch, tmp_path) -> Path:
    """A copy of the library that the backend takes for the installed one, not loaded yet."""
    path = tmp_path / "lib.so"
    if cpu.LIBRARY.exists():
        shutil.copyfile(cpu.LIBRARY, path)
    monkeypatch.setattr(cpu, "LIBRARY", path)
    caches = (cpu.load, cpu.failure, backends._warn_of_plain)
    for cache in caches:
        cache.cache_clear()
    yield path
    for cache in caches:
        cache.cache_clear()


def _sealed(content: bytes) -> bytes:
    return content + cpu._SEAL + hashlib.sha256(content).digest()


def _elf_of_another_machine(content: bytes) -> bytes:
    return _sealed(content[:18] + b"\xf3\x00" + content[20:])  # e_machine: RISC-V


def _another_library(_: bytes) -> bytes:
    return Path(sys.modules["_ctypes"].__file__).read_bytes()


DAMAGES = {
    "missing": lambda content: None,
    "zero bytes": lambda content: b"",
    "all zeros": lambda content: bytes(len(content)),
    "one page": lambda content: content[:4096],
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "zeros at the end": lambda content: content[:-8192] + bytes(8192),
    "a bit flipped": lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
    "no library": lambda content: b"#!/bin/sh\n",
    "of another machine": _elf_of_another_machine,
    "another library": _another_library,
    "another library, sealed": lambda content: _sealed(_another_library(content)),
    "an ELF header alone, sealed": lambda content: _sealed(content[:64]),
}


@compiled
@pytest.mark.fault("F107")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_means_plain_pytorch_and_one_warning(damage, library):
    content = DAMAGES[damage](library.read_bytes())
    library.unlink() if content is None else library.write_bytes(content)
    inputs = Inputs.random()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        results = [inputs.run(), inputs.run()]
    assert [w.category for w in seen] == [OperatorWarning]
    assert re.search(r"plain PyTorch.*lib\.so", str(seen[0].message)), seen[0].message
    with msdetr.ops.backend("plain"):
        expected = inputs.run()
    for result in results:
        assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))
    (described, _) = msdetr.ops.describe()
    assert described.backend == "plain" and "compiled library" in described.reason and "compiler" in described.advice
    with msdetr.ops.backend("native"), pytest.raises(OperatorError, match="there is no compiled library"):
        inputs.run()


@compiled
@pytest.mark.fault("F107")
def test_a_library_of_another_version(library, monkeypatch):
    monkeypatch.setattr(cpu, "_INTERFACE", cpu._INTERFACE + 1)
    with pytest.warns(OperatorWarning, match=f"interface {cpu._INTERFACE - 1}, this package wants {cpu._INTERFACE}"):
        Inputs.random().run()


@compiled
@pytest.mark.fault("F107")
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_library_replaced_while_loaded(size, library):
    """In a process of its own: an in-place change of a mapped file would end it by SIGBUS or SIGSEGV."""
    script = f"""
import sys, torch
from pathlib import Path
from msdetr.ops import cpu
cpu.LIBRARY = Path({str(library)!r})
from operator_inputs import Inputs
import msdetr.ops
with msdetr.ops.backend("native"):
    cpu.load()
    with open(cpu.LIBRARY, "r+b") as file:
        file.write(bytes({size}))
        file.truncate({size})
    native = Inputs.random(channels=33).run()
with msdetr.ops.backend("plain"):
    plain = Inputs.random(channels=33).run()
for ours, expected in zip(native, plain):
    torch.testing.assert_close(ours, expected)
"""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(msdetr.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_plain_on_request_is_not_warned_about(library):
    library.unlink(missing_ok=True)
    with warnings.catch_warnings(), msdetr.ops.backend("plain"):
        warnings.simplefilter("error")
        Inputs.random().run()


def test_unknown_backend(monkeypatch):
    with pytest.raises(ConfigError, match="no backend 'fast'"), msdetr.ops.backend("fast"):
        pass
    monkeypatch.setattr(backends, "_chosen", "fast")
    with pytest.raises(ConfigError, match="MSDETR_OPS_BACKEND is 'fast'"):
        Inputs.random().run()


# ----------------------------------------------------------------------------------------------------- the installation


@pytest.fixture
def installation():
    """setup.py as a module."""
    pytest.importorskip("setuptools", minversion="77")
    spec = importlib.util.spec_from_file_location("msdetr_setup", Path(__file__).parents[2] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("variable, value", [("MSDETR_BUILD", "0"), ("CXX", "no-such-compiler"), ("CXX", "g++ '")])
def test_a_library_that_is_not_built_is_not_that_of_an_earlier_build(
    variable, value, installation, monkeypatch, tmp_path
):
    from setuptools import Distribution, Extension

    extension = Extension("msdetr.ops.libms_deform_attn", sources=[])
    command = installation.BuildLibrary(Distribution({"ext_modules": [extension]}))
    command.build_lib = str(tmp_path)
    command.ensure_finalized()
    library = Path(command.get_ext_fullpath(extension.name))
    library.parent.mkdir(parents=True)
    library.write_bytes(b"earlier")
    monkeypatch.setenv(variable, value)
    command.run()
    assert library.is_relative_to(tmp_path) and not library.exists() and not command.get_outputs()


def test_the_compiler_that_is_named_is_taken_with_its_arguments(installation, monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -m 'my compiler'")
    assert installation.find_compiler() == [sys.executable, "-m", "my compiler"]
    monkeypatch.setenv("CXX", "no-such-compiler -O0")
    with pytest.raises(RuntimeError, match="CXX is 'no-such-compiler -O0', and there is no program"):
        installation.find_compiler()


# ----------------------------------------------------------------------------------------------------------------- CUDA


@pytest.fixture
def pretended_gpu(monkeypatch):
    """PyTorch sees a GPU, as far as finding the backend goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.version, "hip", None)
    cuda.failure.cache_clear()
    yield
    cuda.failure.cache_clear()


def _modules(**attributes) -> dict[str, types.ModuleType]:
    core, utils = types.ModuleType("cuda.core"), types.ModuleType("cuda.core.utils")
    vars(core).update(attributes)
    return {"cuda.core": core, "cuda.core.utils": utils}


@pytest.mark.parametrize(
    "modules, reason",
    [
        (_modules(Program=1), "is too old, cuda.core has no Device and no LaunchConfig"),  # 0.x
        (_modules(**dict.fromkeys(cuda._NEEDED["cuda.core"])), "cuda.core.utils has no FileStreamProgramCache"),
        ({"cuda.core": None}, "cannot be used .*cuda.core"),  # no cuda-core
        ({"cuda.bindings.nvrtc": None}, "cannot be used .*cuda.bindings.nvrtc"),  # PyTorch's wheels for CUDA 12
    ],
)
def test_a_cuda_core_that_does_not_fit_means_plain_pytorch(modules, reason, pretended_gpu, monkeypatch):
    pytest.importorskip("cuda.core")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert not cuda.available()
    (_, described) = msdetr.ops.describe()
    assert described.backend == "plain"
    assert re.search(reason, described.reason), described.reason
    assert 'pip install -U "cuda-core[cu12]' in described.advice


def test_a_cuda_core_that_fits(pretended_gpu):
    pytest.importorskip("cuda.core")
    assert cuda.failure() is None


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_in_deterministic_mode_the_kernel_leaves_the_gradient_of_value_to_ordered_sums(deterministic, monkeypatch):
    def launch(tensors, value, locations, shapes, need_value, need_points):
        assert not need_value and need_points
        tensors[-2].fill_(2)
        tensors[-1].fill_(3)

    monkeypatch.setattr(cuda, "_launch", launch)
    inputs = Inputs.random(queries=50, points=4)
    arguments = (inputs.grad_output, inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    value, locations, weights = cuda.backward(*arguments, True, True)
    torch.testing.assert_close(value, inputs.run()[1], rtol=0, atol=1e-12)
    assert (locations == 2).all() and (weights == 3).all()


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_ordered_sums_are_the_gradient_of_value(dtype, error):
    inputs = Inputs.random(heads=3, channels=5, shapes=((7, 9), (1, 3), (4, 1)), queries=40, points=3, margin=0.4)
    inputs.locations[0, :3, 0, 0, 0] = torch.tensor([[float("nan"), 0.5], [float("inf"), 0.1], [1e30, -1e30]])
    expected = inputs.run()[1]
    given = inputs.to(dtype)
    with torch.no_grad():
        found = gather.value_gradient(given.grad_output, given.value, given.shapes, inputs.locations, inputs.weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


# -------------------------------------------------------------------------------------------------------------- threads


def _openmp_settings(code: str, **environment: str) -> str:
    """What OpenMP says of its settings when a process loads it."""
    settings = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(Path(msdetr.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.fault("F109")
def test_waiting_threads_do_not_spin():
    settings = _openmp_settings("import msdetr, torch")
    if "GOMP_SPINCOUNT" not in settings:
        pytest.skip("PyTorch's OpenMP is not GNU's")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in settings and "GOMP_SPINCOUNT = '1000'" in settings
    chosen = _openmp_settings("import msdetr, torch", OMP_WAIT_POLICY="active")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in chosen and "GOMP_SPINCOUNT = '1000'" not in chosen
