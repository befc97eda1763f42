"""The fault catalogue with the counts reached: ``make faults``, or ``python tests/faults.py [--quick] [--only WORD]``.

Runs every test that carries a fault id and every injected fault at its full count, prints the table, and writes it as JSON
(benchmarks/results/faults.json). Exits 1 unless every line reaches its target. ``--quick`` takes a tenth of the counts and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

TESTS = Path(__file__).parent
CATALOGUE = TESTS.parent / "docs" / "faults.md"
IDS = re.findall(r"^\| (F\d+) \|", CATALOGUE.read_text(), re.MULTILINE)
EXAMPLES = ("tests/data/test_validate.py", "tests/test_boxes.py", "tests/matching", "tests/test_config.py")


@dataclass(frozen=True)
class Line:
    """One line of the table: what, how many it had to be, how many it was, whether that is enough."""

    what: str
    target: str
    reached: str
    ok: bool
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


# ---------------------------------------------------------------- a pytest plugin, loaded by the runs below


def pytest_collection_modifyitems(items):
    """Spreads the wanted number of hypothesis examples over the property tests that were collected."""
    wanted = int(os.environ.get("MSDETR_FAULTS_EXAMPLES", "0"))
    properties = {item.obj for item in items if getattr(item.obj, "is_hypothesis_test", False)}
    if not wanted or not properties:
        return
    from hypothesis import settings

    for test in properties:
        own = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = settings(
            own, max_examples=math.ceil(wanted / len(properties)), deadline=None
        )
        test.hypothesis.inner_test = _counted(test.hypothesis.inner_test)


_examples = 0


def _counted(inner: Callable) -> Callable:
    import functools

    @functools.wraps(inner)
    def counted(*arguments, **named):
        global _examples
        _examples += 1
        return inner(*arguments, **named)

    return counted


_outcomes: dict[str, dict] = {}


def pytest_itemcollected(item):
    ids = [fault for mark in item.iter_markers("fault") for fault in mark.args]
    _outcomes[item.nodeid] = {"ids": ids, "outcome": "not run"}


def pytest_runtest_logreport(report):
    entry = _outcomes[report.nodeid]
    if report.when == "call" or report.outcome != "passed":
        entry["outcome"] = report.outcome


def pytest_sessionfinish():
    if target := os.environ.get("MSDETR_FAULTS_REPORT"):
        Path(target).write_text(json.dumps({"tests": _outcomes, "examples": _examples}))


# ---------------------------------------------------------------- the table


def run_pytest(*arguments: str, examples: int = 0) -> tuple[dict[str, dict], int, str]:
    """Outcome by test, examples run, and the end of the output."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "MSDETR_FAULTS_REPORT": str(report),
            "MSDETR_FAULTS_EXAMPLES": str(examples),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "faults", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            return {}, 0, done.stdout + done.stderr
        found = json.loads(report.read_text())
        return found["tests"], found["examples"], done.stdout


def catalogue(share: float) -> Line:
    tests, _, output = run_pytest("-m", "fault", "tests")
    outcomes = {fault: [entry["outcome"] for entry in tests.values() if fault in entry["ids"]] for fault in IDS}
    held = [fault for fault, found in outcomes.items() if "passed" in found and "failed" not in found]
    problems = [
        f"{fault}: {', '.join(sorted(set(outcomes[fault]))) or 'no test carries it'}"
        for fault in IDS
        if fault not in held
    ]
    problems += [f"failed: {name}" for name, entry in tests.items() if entry["outcome"] == "failed"]
    if not tests:
        problems.append(output[-2000:])
    ran = sum(entry["outcome"] == "passed" for entry in tests.values() if entry["ids"])
    reached = f"{len(held)} of {len(IDS)} ids, by {ran} tests"
    return Line("catalogue", "all ids pass, 0 silent", reached, not problems, problems=tuple(problems))


def examples(share: float) -> Line:
    wanted = round(5000 * share)
    files = [name for name in EXAMPLES if (TESTS.parent / name).exists()]
    tests, ran, output = run_pytest(*files, examples=wanted)
    failed = [name for name, entry in tests.items() if entry["outcome"] == "failed"]
    return Line(
        "hypothesis: JSON, boxes, matching against brute force, config",
        f"{wanted:,} examples, 0 failures",
        f"{ran:,} examples, {len(failed)} failures",
        ran >= wanted and not failed,
        problems=tuple(failed or ([] if tests else [output[-2000:]])),
    )


def injected_fault(what: str, target: str, run: Callable) -> Callable[[float], Line]:
    def line(share: float) -> Line:
        with tempfile.TemporaryDirectory() as folder:
            tally = run(Path(folder), share)
        return Line(
            what,
            target,
            f"{tally.passed} of {tally.total}",
            tally.passed == tally.total > 0,
            problems=tuple(tally.problems),
        )

    line.__name__ = run.__name__
    return line


def count(full: int, share: float) -> int:
    return max(round(full * share), 1)


def kills(folder: Path, share: float):
    import injected

    return injected.kills_during_saves(folder, count(50, share))


def disk(folder: Path, share: float):
    import injected

    return injected.full_disk(folder, count(20, share))


def damage(folder: Path, share: float):
    import injected

    return injected.damaged_files(folder, count(200, share), count(1000, share))


def resume(folder: Path, share: float):
    import injected

    from msdetr.data import shapes

    data = shapes.generate(folder / "shapes", 16, 6)
    total = injected.Tally()
    for ranks in (1, 2):
        for ema in (0.9, 0.0):
            stops = list(range(1, 12)) if share == 1 else [6]
            tally = injected.resumed_runs(folder, data, stops, ranks, ema)
            total.passed += tally.passed
            total.total += tally.total
            total.problems += tally.problems
    return total


def signals(folder: Path, share: float):
    import injected

    from msdetr.data import shapes

    data = shapes.generate(folder / "shapes", 16, 6)
    first = injected.terminations(folder, data, count(10, share))
    second = injected.killed_ranks(folder, data, count(10, share))
    return injected.Tally(first.passed + second.passed, first.total + second.total, first.problems + second.problems)


def script(what: str, target: str, file: str, arguments: Callable[[float], list[str]], judge: Callable) -> Callable:
    """A line that a script of another part measures; it prints JSON, alone or on its last line, ``judge`` gives (reached, ok)."""

    def line(share: float) -> Line:
        path = TESTS.parent / file
        if not path.exists():
            return Line(what, target, f"not measured: {file} is missing", False)
        command = [sys.executable, str(path), *arguments(share)]
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=900, check=False)
        try:
            text = done.stdout.strip()
            reached, ok = judge(json.loads(text if text.endswith("\n}") else text.splitlines()[-1]), share)
        except (ValueError, IndexError, KeyError) as error:
            return Line(what, target, f"no result ({error!r})", False, problems=((done.stdout + done.stderr)[-2000:],))
        return Line(what, target, reached, ok and done.returncode == 0)

    line.__name__ = Path(file).stem
    return line


def judge_corpus(found: dict, share: float) -> tuple[str, bool]:
    spoilt = {name: number for name, number in found.items() if name not in ("decoded", "rejected")}
    total = sum(found.values())
    return f"{total:,} mutations: {json.dumps(found)}", not spoilt and total >= count(2000, share)


def judge_fuzz(found: dict, share: float) -> tuple[str, bool]:
    reached = f"{found['calls']:,} calls, {found['reports']} reports, {found['planted_bugs_found']} planted bugs found"
    return reached, found["calls"] >= 1e6 * share and found["reports"] == 0 and found["planted_bugs_found"] >= 3


def operator(share: float) -> Line:
    tests, _, output = run_pytest("tests/ops")
    passed = [name for name, entry in tests.items() if entry["outcome"] == "passed"]
    failed = [name for name, entry in tests.items() if entry["outcome"] == "failed"]
    grad, error, check = (sum(word in name for name in passed) for word in ("gradcheck", "at_most_twice", "opcheck"))
    return Line(
        "operator: gradcheck in fp64; fp32, fp16, bf16 against fp64 with error at most twice PyTorch's own; opcheck",
        "48 configurations; opcheck 4 of 4",
        f"{grad} gradchecks, {error} precisions, {check} opchecks, {len(failed)} failures",
        bool(grad >= 48 and check >= 4 and error >= 3 and not failed),
        problems=tuple(failed or ([] if tests else [output[-2000:]])),
    )


LINES: list[Callable[[float], Line]] = [
    catalogue,
    examples,
    injected_fault("kill -9 during saves", "50 kills, 50 loadable, 0 steps lost beyond the last checkpoint", kills),
    injected_fault("disk full at 20 offsets", "20 of 20 previous checkpoints intact", disk),
    injected_fault("truncations 200, bit flips 1,000", "1,200 of 1,200 rejected", damage),
    injected_fault(
        "exact resume: every step of a 12-step run, 1 and 2 ranks, EMA on and off",
        "hash of weights, optimizer, EMA, RNG, sample ids identical",
        resume,
    ),
    injected_fault("SIGTERM, rank kill", "10 of 10 each, exit within 30 s", signals),
    script(
        "operator fuzz under AddressSanitizer and UBSan",
        "1,000,000 calls, 0 reports, and at least 3 planted bugs found",
        "benchmarks/fuzz_ms_deform_attn.py",
        lambda share: ["--calls", str(count(1_000_000, share)), "--workers", "2", "--output", os.devnull],
        judge_fuzz,
    ),
    operator,
    script(
        "image decoder corpus",
        "2,000 mutations, 0 hangs, 0 crashes",
        "tests/data/corpus.py",
        lambda share: [str(count(2000, share))],
        judge_corpus,
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts; writes nothing")
    parser.add_argument("--only", default="", help="only the lines with this word in their name, e.g. kills or resume")
    parser.add_argument("--output", type=Path, default=TESTS.parent / "benchmarks" / "results" / "faults.json")
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS / "engine"))

    chosen = [line for line in LINES if options.only in line.__name__]
    if not chosen:
        parser.error(
            f"--only: no line is called {options.only!r}; there are {', '.join(line.__name__ for line in LINES)}"
        )
    table = []
    for measure in chosen:
        start = time.perf_counter()
        line = measure(0.1 if options.quick else 1.0)
        table.append(Line(**{**asdict(line), "seconds": time.perf_counter() - start, "problems": line.problems}))
        print(
            f"{'ok  ' if line.ok else 'FAIL'} {line.what}: {line.reached} (target: {line.target}) [{table[-1].seconds:.0f} s]"
        )
        for problem in line.problems[:20]:
            print("       " + problem.replace("\n", "\n       "))
    print(f"\n{sum(line.ok for line in table)} of {len(table)} lines reach their target")
    if not options.quick and not options.only:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "seconds": sum(line.seconds for line in table),
            "lines": [asdict(line) for line in table],
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(line.ok for line in table) else 1


if __name__ == "__main__":
    sys.exit(main())
