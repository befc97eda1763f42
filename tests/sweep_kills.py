"""A sweep that is killed again and again: no finished cell is trained twice, none is lost, and all get the same numbers.

    python tests/sweep_kills.py [--kills 30]      # writes benchmarks/results/sweep_kills.json

Studies of tiny cells are swept one after the other. At random moments of a cell's life either the sweep alone is killed
(SIGKILL), or it and all its processes, or it is asked to stop (SIGTERM); then it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import small
import yaml

from msdetr.analysis.cells import Cell
from msdetr.data import shapes
from msdetr.sweep import load_study, run_cell

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "sweep_kills.json"
TINY = small.SMALL | {
    "data.num_train": 8,
    "data.num_val": 4,
    "train.epochs": 3,
    "train.batch_size": 2,
    "train.micro_batch": 2,
    "train.checkpoint_every": 0.25,
    "train.eval_every": 0,
    "train.log_every": 1,
    "model.num_queries": 20,
}
KINDS = ("the sweep is killed", "all its processes are killed", "it is asked to stop")


def tiny_study(folder: Path, seeds: list[int], run: str = "train", **more) -> Path:
    """A study file of two recipes, and its data."""
    if not (folder / "data").exists():
        shapes.generate(folder / "data", 8, 4)
    content = {
        "recipes": {"baseline": "shapes/baseline", "MS-DETR (c)": "shapes/ms-detr-c"},
        "data": {"tiny": "data"},
        "settings": TINY,
        "seeds": seeds,
        "reference": "baseline",
        "run": run,
    } | more
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(study: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "msdetr", "sweep", str(study), "--out", str(out), "--jobs", "1", "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with (out.parent / "sweep.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def processes_below(pid: int) -> list[int]:
    """A process and all that it started, and these, and so on."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def stop(process: subprocess.Popen, kind: str) -> None:
    """Ends a sweep in one of the three ways. Only the processes that it started are touched."""
    if kind == KINDS[2]:
        process.terminate()
    else:
        for pid in processes_below(process.pid) if kind == KINDS[1] else [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def finished_cells(out: Path) -> dict[str, tuple[bytes, int]]:
    """Cell -> the bytes of its file, and how much its processes have said so far: both stay as they are."""
    return {
        path.stem: (path.read_bytes(), (out / "runs" / path.stem / "log.txt").stat().st_size)
        for path in sorted((out / "cells").glob("*.json"))
    }


def disturb(study: Path, out: Path, kills: int, moments: random.Random, life: float | None = None) -> dict:
    """Sweeps a study to its end through at most so many kills.

    life: seconds that a cell takes, more or less; a kill comes within that time after a start. None: measured, by leaving the
    first cell in peace.
    Returns how often each kind was done, the cells that were touched after they were finished, those that are missing, and
    the longest life seen.
    """
    done, repeated = Counter(), set()
    while True:
        before = finished_cells(out)
        began, process = time.monotonic(), start(study, out)
        if life is None:
            while process.poll() is None and not finished_cells(out):
                time.sleep(0.2)
            life = time.monotonic() - began
        elif sum(done.values()) < kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, life))
        else:
            process.wait()
        if process.poll() is None:
            kind = moments.choice(KINDS)
            stop(process, kind)
            done[kind] += 1
        after = finished_cells(out)
        repeated |= {name for name, seen in before.items() if after.get(name) != seen}
        if process.returncode == 0:
            names = {cell.name for cell in load_study(study).cells()}
            return {
                "kills": dict(done),
                "cells": sorted(names),
                "repeated": sorted(repeated),
                "lost": sorted(names - set(after)),
                "life": life,
            }
        life *= 1.05  # a busy machine may have become slower, so that no cell would ever end


def undisturbed(study: Path, out: Path, name: str) -> Cell:
    """A cell trained without a break."""
    planned = load_study(study)
    return run_cell(planned, {cell.name: cell for cell in planned.cells()}[name], out, "cpu", progress=False)


def same_result(a: Cell, b: Cell) -> bool:
    return a.metrics == b.metrics and a.candidates == b.candidates and a.steps == b.steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    moments, began, life = random.Random(options.seed), time.monotonic(), None
    kills, total = Counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="msdetr-") as folder:
        number = 0
        while kills.total() < options.kills:
            run = ("train", "train", "notebook")[number % 3]
            study = tiny_study(Path(folder), [2 * number, 2 * number + 1], run)
            out = Path(folder, f"out{number}")
            out.mkdir()
            found = disturb(study, out, options.kills - kills.total(), moments, life)
            kills.update(found["kills"])
            life = found["life"] / 1.05 ** sum(found["kills"].values())
            name = found["cells"][number % len(found["cells"])]
            alone = undisturbed(study, Path(folder, f"alone{number}"), name)
            total["cells"] += len(found["cells"])
            total["finished cells repeated"] += len(found["repeated"])
            total["cells lost"] += len(found["lost"])
            total["compared with an undisturbed run"] += 1
            total["of those, with other numbers"] += not same_result(alone, Cell.load(out / "cells" / f"{name}.json"))
            number += 1
            print(
                f"study {number} ({run}): {found['kills']}, repeated {found['repeated']}, lost {found['lost']}",
                flush=True,
            )
    zero = ("finished cells repeated", "cells lost", "of those, with other numbers")
    result = {"what": __doc__.splitlines()[0], "kills": dict(kills), "studies": number} | {
        name: total[name] for name in ("cells", "compared with an undisturbed run", *zero)
    }
    RESULT.write_text(json.dumps(result | {"minutes": round((time.monotonic() - began) / 60, 1)}, indent=1) + "\n")
    print(RESULT.read_text())
    return int(any(total[name] for name in zero))


if __name__ == "__main__":
    sys.exit(main())
