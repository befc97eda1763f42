"""Builds the CPU library of the deformable attention operator beside the package, where there is a C++ compiler.

The library has a plain C interface and knows nothing of Python or PyTorch. It is optional: whatever goes wrong here is
reported and the installation goes on, the operator then runs in plain PyTorch (``msdetr doctor`` says so).
``MSDETR_BUILD=0`` leaves the library out, one of an earlier build, too; ``CXX`` picks the compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SOURCES = ROOT / "csrc"
LIBRARY = "libms_deform_attn.so"
SEAL = b"msdetr library, SHA-256 of what is before: "  # with the digest at the file's end, checked by msdetr/ops/cpu.py
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"baseline": [], "avx2": AVX2, "avx512": AVX512}


def find_compiler() -> list[str]:
    """The program and its first arguments: those of CXX, e.g. "ccache g++", where it is set."""
    if named := shlex.split(os.environ.get("CXX", "")):
        program = shutil.which(named[0])
        if program is None:
            raise RuntimeError(f"CXX is {os.environ['CXX']!r}, and there is no program {named[0]!r}")
        return [program, *named[1:]]
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler found; install g++ or clang++, or name one in CXX")
    return [compiler]


def compile_objects(
    folder: Path, sources: Path = SOURCES, extra: Sequence[str] = (), baseline_only: bool = False
) -> list[str]:
    """Compiles the CPU sources, the kernels once per instruction set, into object files in ``folder``."""
    x86 = platform.machine().lower() in ("x86_64", "amd64") and not baseline_only
    flags = [*FLAGS, *(["-DMSDETR_X86"] if x86 else []), *extra]
    units = [("interface", sources / "ms_deform_attn_cpu.cpp", [])]
    for name, options in (INSTRUCTION_SETS if x86 else {"baseline": []}).items():
        for kernel in ("attn", "points"):
            source = sources / f"ms_deform_{kernel}_kernel.cpp"
            units.append((f"{kernel}_{name}", source, [*options, f"-DMSDETR_ISA={name}"]))
    compiler = find_compiler()
    objects = [f"{folder}/{name}.o" for name, _, _ in units]
    commands = [
        [*compiler, *flags, *options, "-c", str(source), "-o", target]
        for (_, source, options), target in zip(units, objects, strict=True)
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(_call, commands))
    return objects


def compile_library(output: Path) -> None:
    """Compiles csrc/ into one shared library."""
    with tempfile.TemporaryDirectory() as folder:
        linked = f"{folder}/{LIBRARY}"
        _call([*find_compiler(), "-shared", "-pthread", "-o", linked, *compile_objects(Path(folder))])
        output.parent.mkdir(parents=True, exist_ok=True)
        staged = output.with_suffix(".new")
        library = Path(linked).read_bytes()
        staged.write_bytes(library + SEAL + hashlib.sha256(library).digest())
        os.replace(staged, output)  # whoever opens the library meanwhile finds the old one or the new one


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")


class BuildLibrary(build_ext):
    """Stands in for the compilation of a Python extension: a plain shared library, and no failure."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def get_outputs(self) -> list[str]:
        paths = [self.get_ext_fullpath(extension.name) for extension in self.extensions]
        return [path for path in paths if Path(path).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def run(self) -> None:
        (extension,) = self.extensions
        library = Path(self.get_ext_fullpath(extension.name))
        try:
            if os.environ.get("MSDETR_BUILD", "1") != "0":
                compile_library(library)
                return
            self.warn("MSDETR_BUILD=0: the CPU library is left out, deformable attention runs in plain PyTorch")
        except (RuntimeError, OSError, ValueError) as error:  # ValueError: a quote in CXX that is not closed
            self.warn(f"the CPU library was not built, deformable attention runs in plain PyTorch: {error}")
        library.unlink(missing_ok=True)  # one of an earlier build is of other sources


COURSE = (
    "notebooks/*.ipynb",
    "notebooks/solutions/*.py",
    "data/README.md",
    "data/samples/**/*",
    "docs/*.md",
    "docs/teaching/*.md",
    "benchmarks/results/*.json",
    "benchmarks/results/*/*.json",
    "benchmarks/results/*/cells/*.json",
)  # as in the repository, under msdetr/course


class CopyResources(build_py):
    """Takes along what the package reads beside its modules: the CUDA sources, which NVRTC compiles on the user's machine,
    and the course."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for target, source in self._resources().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        resources = [] if self.editable_mode else map(str, self._resources())
        return [*super().get_outputs(include_bytecode), *resources]

    def _resources(self) -> dict[Path, Path]:
        package = Path(self.build_lib) / "msdetr"
        kernels = {package / "ops" / "csrc" / name: SOURCES / name for name in ("sampling.h", "ms_deform_attn.cu")}
        course = (path for pattern in COURSE for path in sorted(ROOT.glob(pattern)) if path.is_file())
        return kernels | {package / "course" / path.relative_to(ROOT): path for path in course}


class PlatformWheel(bdist_wheel):
    """Tags the wheel by what is in it: the library knows the platform but nothing of Python, so one wheel serves every
    Python 3; without the library, every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        built = self.get_finalized_command("build_ext").get_outputs()
        return "py3", "none", super().get_tag()[2] if built else "any"


def long_description() -> str:
    """README.md for a page elsewhere, as PyPI's: pictures and links by their addresses in the repository."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

    def absolute(link: re.Match) -> str:
        mark, label, target = link.groups()
        file = f"README.md{target}" if target.startswith("#") else target
        return f"{mark}[{label}]({urls['Repository']}/{'raw' if mark else 'blob'}/main/{file})"

    link = r"(!?)\[([^][]*)\]\((?!\w+:)([^)]+)\)"
    return re.sub(link, absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        ext_modules=[Extension("msdetr.ops.libms_deform_attn", sources=[], optional=True)],
        cmdclass={"build_ext": BuildLibrary, "build_py": CopyResources, "bdist_wheel": PlatformWheel},
    )
