"""Fuzzes the CPU library under AddressSanitizer and UBSan, and shows that planted bugs are found.

    python benchmarks/fuzz_ms_deform_attn.py [--calls 1000000] [--output results.json]

The library and tests/ops/fuzz.cpp are compiled together with both sanitizers, once as they are and once for each
planted bug, which is an edit of a copy of the sources, with the baseline instruction set only. The driver mixes both precisions, all instruction sets of the
machine, one and three threads, forward and backward, and locations on, around and far beyond the border.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz_ms_deform_attn.json"
SANITIZERS = "address,undefined"

# name: (file of csrc/, what is there, what is planted)
PLANTED_BUGS = {
    "the pixel beyond the right and bottom border is read": (
        "sampling.h",
        "axis.high = select(high < size, high, size - 1);",
        "axis.high = high;",
    ),
    "scratch space for the points of one head too few": (
        "ms_deform_attn_kernel.cpp",
        "const int64_t padded = (count + 15) / 16 * 16;",
        "const int64_t padded = (count - n + 15) / 16 * 16;",
    ),
    "the copy of value has one token too few": (
        "ms_deform_attn_kernel.cpp",
        "const int64_t copy = copied ? (heads * S * stride",
        "const int64_t copy = copied ? (heads * (S - 1) * stride",
    ),
    "gradients of points are written in whole registers only": (
        "ms_deform_attn_kernel.cpp",
        "if (points.count - i >= kPoints<T>) {",
        "if (true) {",
    ),
    "a row is off by one": (
        "ms_deform_attn_kernel.cpp",
        "Int::store(points.row[0] + i, low + x.low);",
        "Int::store(points.row[0] + i, low + x.low - 1);",
    ),
}


def build(folder: Path, bug: str | None = None, baseline_only: bool = False) -> Path:
    """The fuzzer with its library, both sanitized; with a planted bug if one is named, then of the baseline only."""
    sys.path.insert(0, str(ROOT))
    import setup  # the same flags and instruction sets as the installed library

    sources = folder / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    if bug is not None:
        name, old, new = PLANTED_BUGS[bug]
        text = (sources / name).read_text()
        if text.count(old) != 1:
            raise ValueError(
                f"the planted bug {bug!r} does not fit {name} any more: {old!r} occurs {text.count(old)} times"
            )
        (sources / name).write_text(text.replace(old, new))
    flags = ("-O1", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-w")
    objects = setup.compile_objects(folder, sources, flags, baseline_only=baseline_only or bug is not None)
    program = folder / "fuzz"
    driver = str(ROOT / "tests" / "ops" / "fuzz.cpp")
    command = [
        *setup.find_compiler(),
        "-std=c++17",
        *flags,
        f"-I{sources}",
        "-pthread",
        "-o",
        str(program),
        driver,
        *objects,
    ]
    subprocess.run(command, check=True)
    return program


def run(program: Path, calls: int, seed: int) -> subprocess.CompletedProcess:
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
    return subprocess.run(
        [str(program), str(calls), str(seed)], capture_output=True, text=True, env=environment, check=False
    )


def first_line_of_report(text: str) -> str:
    """What was found, without addresses and paths."""
    for line in text.splitlines():
        if "ERROR: AddressSanitizer" in line:
            return "AddressSanitizer: " + line.split("AddressSanitizer: ")[1].split(" on ")[0]
        if "runtime error" in line:
            return "UBSan: " + line.split("runtime error: ")[1]
        if line.startswith(("wrong value", "return code")):
            return "driver: " + line
    return "driver: " + text.strip().splitlines()[-1] if text.strip() else ""


def fuzz(calls: int, calls_per_bug: int, workers: int) -> dict:
    """Runs the sanitized library and one build per planted bug; returns counts and what was found."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        program = build(Path(folder) / "as it is")
        begin = time.perf_counter()
        shares = [calls // workers + (i < calls % workers) for i in range(workers)]
        runs = list(pool.map(lambda i: run(program, shares[i], i), range(workers)))
        seconds = time.perf_counter() - begin
        planted = {}
        for i, bug in enumerate(PLANTED_BUGS):
            done = run(build(Path(folder) / f"bug {i}", bug), calls_per_bug, 0)
            planted[bug] = {"found": done.returncode != 0, "report": first_line_of_report(done.stderr)}
    return {
        "sanitizers": SANITIZERS,
        "calls": sum(int(done.stdout) for done in runs if done.returncode == 0),
        "reports": sum(done.returncode != 0 for done in runs),
        "report_lines": [first_line_of_report(done.stderr) for done in runs if done.returncode],
        "seconds": round(seconds, 1),
        "planted_bugs": planted,
        "planted_bugs_found": sum(bug["found"] for bug in planted.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--calls-per-bug", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = fuzz(options.calls, options.calls_per_bug, options.workers)
    results["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results["machine"] = f"{platform.system()} {platform.machine()}"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    if results["reports"] or results["calls"] < options.calls or results["planted_bugs_found"] < len(PLANTED_BUGS):
        sys.exit(1)


if __name__ == "__main__":
    main()
