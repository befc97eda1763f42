"""Faults as they really happen: processes killed with SIGKILL and SIGTERM, a full disk, damaged files.

Each function injects one kind of fault ``count`` times and returns how many times all was well, with a line for each time
it was not. The tests run a few; ``tests/faults.py`` runs the full counts.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import tiny
import torch

from msdetr.engine import CheckpointError
from msdetr.engine import checkpoint as checkpoints


@dataclass
class Tally:
    """How often a fault was injected, how often the outcome was as it must be, and what went wrong otherwise."""

    passed: int = 0
    total: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, ok: bool, problem: str) -> None:
        self.total += 1
        self.passed += bool(ok)
        if not ok:
            self.problems.append(problem)


def _state(step: int, size: int = 200_000) -> tuple[dict, dict]:
    """Files and manifest of a checkpoint in which every number says the step."""
    weights = torch.full((size,), float(step))
    moments = {"exp_avg.weight": weights, "exp_avg_sq.weight": weights, "step.weight": torch.tensor(float(step))}
    files = {"model": {"weight": weights}, "ema": {"weight": weights}, "optimizer": moments}
    manifest = {"epoch": 0.0, "metrics": {}, "training": {}, "config": {"model": {"num_classes": 1}}}
    manifest |= {"class_names": ["a"], "category_ids": [1]}
    return files, manifest


def _save_for_ever(run_dir: str, started: str) -> None:
    torch.set_num_threads(1)
    writer = checkpoints.Writer(run_dir)
    last = checkpoints.latest(run_dir)
    step = last.step if last else 0
    while True:
        step += 1
        files, manifest = _state(step)
        writer.save(step, files, manifest)
        writer.wait()
        Path(started).write_text(str(step))


def kills_during_saves(folder: Path, count: int, seed: int = 0) -> Tally:
    """kill -9 of a process that does nothing but save: the newest checkpoint that it called done must load, unchanged."""
    tally, chance = Tally(), random.Random(seed)
    run_dir, done = folder / "kills", folder / "done"
    (run_dir / "checkpoints").mkdir(parents=True)
    for turn in range(count):
        done.unlink(missing_ok=True)
        process = tiny.start(_save_for_ever, str(run_dir), str(done))
        tiny.wait_for(lambda: done.exists() and bool(done.read_text()))
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        promised = int(done.read_text() or 0)
        found = checkpoints.latest(run_dir)
        ok = found is not None and found.step >= promised
        for name in ("model", "optimizer", "ema") if ok else ():
            ok = ok and all(bool((tensor == found.step).all()) for tensor in found.tensors(name).values())
        tally.add(ok, f"kill {turn}: {promised} was saved, {found and found.step} loads")
    return tally


def _save_with_limit(run_dir: str, limit: int, outcome: str) -> None:
    torch.set_num_threads(1)
    writer = checkpoints.Writer(run_dir)
    files, manifest = _state(2)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        writer.save(2, files, manifest)
        writer.wait()
        message = "saved"
    except CheckpointError as error:
        message = f"CheckpointError: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    Path(outcome).write_text(message)


def full_disk(folder: Path, count: int) -> Tally:
    """No file may grow beyond an offset: saving must be an error that says so, and the checkpoint before it must load."""
    tally = Tally()
    run_dir = folder / "full"
    files, manifest = _state(1)
    checkpoints.write(run_dir / "checkpoints" / "step_00000001", files, {"step": 1, **manifest})
    largest = (run_dir / "checkpoints" / "step_00000001" / "model.safetensors").stat().st_size
    for turn in range(count):
        outcome = folder / f"outcome_{turn}"
        limit = turn * largest // count
        process = tiny.start(_save_with_limit, str(run_dir), limit, str(outcome))
        tiny.finish([process])
        message = outcome.read_text() if outcome.exists() else "no outcome"
        found = checkpoints.latest(run_dir)
        clean = [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000001"]
        tally.add(
            message.startswith("CheckpointError") and "cannot be written" in message and found.step == 1 and clean,
            f"limit {limit}: {message}, {found.step} loads",
        )
    return tally


def damaged_files(folder: Path, truncations: int, flips: int, seed: int = 0) -> Tally:
    """A file cut short, or one bit of one file flipped: the checkpoint must be refused."""
    tally, chance = Tally(), random.Random(seed)
    good, bad = folder / "step_00000007", folder / "copy" / "step_00000007"
    files, manifest = _state(7, size=300)
    checkpoints.write(good, files, {"step": 7, **manifest})
    names = sorted(path.name for path in good.iterdir())
    for turn in range(truncations + flips):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        path = bad / chance.choice(names)
        data = bytearray(path.read_bytes())
        if turn < truncations:
            position = chance.randrange(len(data))
            path.write_bytes(data[:position])
        else:
            position = chance.randrange(8 * len(data))
            data[position // 8] ^= 1 << position % 8
            path.write_bytes(data)
        try:
            checkpoints.verify(bad)
            refused = False
        except CheckpointError:
            refused = True
        tally.add(refused, f"{path.name} at {position}: accepted")
    return tally


def resumed_runs(folder: Path, data: Path, stops: list[int], ranks: int, ema: float) -> Tally:
    """Stopping after each of ``stops`` steps and resuming must give what never stopping gives, bit for bit."""
    tally = Tally()
    config = tiny.config(data, train__ema_decay=ema, train__checkpoint_every=0.25)
    name = f"ranks{ranks}_ema{ema:g}"
    whole = folder / f"{name}_whole"
    assert tiny.train_in_processes(whole, config, ranks, environment={"KEEP": "100"}) == [0] * ranks
    expected = {path.name: tiny.fingerprint(checkpoints.verify(path)) for path in checkpoints.available(whole)}
    order = [tiny.samples(whole, rank) for rank in range(ranks)]
    for stop in stops:
        parts = folder / f"{name}_{stop}"
        (parts / "checkpoints").mkdir(parents=True)
        shutil.copytree(whole / "checkpoints" / f"step_{stop:08d}", parts / "checkpoints" / f"step_{stop:08d}")
        status = tiny.train_in_processes(parts, config, ranks, environment={"KEEP": "100"})
        found = {path.name: tiny.fingerprint(checkpoints.verify(path)) for path in checkpoints.available(parts)}
        rest = [{step: ids for step, ids in whole_order.items() if step >= stop} for whole_order in order]
        same_images = [tiny.samples(parts, rank) for rank in range(ranks)] == rest
        different = [step for step, prints in found.items() if prints != expected[step]]
        tally.add(
            status == [0] * ranks and same_images and not different and len(found) == 13 - stop,
            f"{name}, stopped after {stop}: status {status}, same images {same_images}, different {different}",
        )
        shutil.rmtree(parts)
    return tally


def terminations(folder: Path, data: Path, count: int, seed: int = 0) -> Tally:
    """SIGTERM at a random moment: exit 143 within 30 s, saved at the step it stopped at, and the rest as if nothing was."""
    tally, chance = Tally(), random.Random(seed)
    config = tiny.config(data, train__checkpoint_every=0)
    whole = folder / "whole"
    assert tiny.train_in_processes(whole, config) == [0]
    expected = tiny.fingerprint(checkpoints.latest(whole))
    for turn in range(count):
        run_dir = folder / f"terminated_{turn}"
        [process] = tiny.start_training(run_dir, config, environment={"PAUSE": "0.03"})
        after = chance.randrange(0, 11)
        tiny.wait_for_step(run_dir, after)
        start = time.monotonic()
        process.terminate()  # SIGTERM, and nothing where it has ended already
        status = tiny.finish([process], timeout=30)
        seconds = time.monotonic() - start
        done = len(tiny.samples(run_dir))
        saved = checkpoints.latest(run_dir)
        on_time = status == [143] and saved is not None and saved.step == done
        if done == 12 and status in ([0], [-signal.SIGTERM]):
            on_time = True  # it was at its last step: finished before it could stop, or as it ended
        resumed = tiny.train_in_processes(run_dir, config)
        same = tiny.fingerprint(checkpoints.latest(run_dir)) == expected
        tally.add(
            on_time and resumed == [0] and same,
            f"SIGTERM after step {after}: status {status} in {seconds:.1f} s, {done} steps done, "
            f"{saved and saved.step} saved, same {same}",
        )
    return tally


def killed_ranks(folder: Path, data: Path, count: int, seed: int = 0) -> Tally:
    """kill -9 of one of two gloo ranks, after its first checkpoint: the other must end, with an error, within 30 s, and the
    run must resume."""
    tally, chance = Tally(), random.Random(seed)
    config = tiny.config(data, train__epochs=50)
    for turn in range(count):
        run_dir = folder / f"rank_{turn}"
        processes = tiny.start_training(run_dir, config, ranks=2)
        after = chance.randrange(4, 12)
        tiny.wait_for_step(run_dir, after)
        tiny.wait_for(
            lambda run_dir=run_dir: checkpoints.latest(run_dir) is not None
        )  # it is written in the background
        victim = turn % 2
        start = time.monotonic()
        os.kill(processes[victim].pid, signal.SIGKILL)
        status = tiny.finish(processes, timeout=60)
        seconds = time.monotonic() - start
        reason = run_dir / f"error_{1 - victim}.txt"
        named = reason.exists() and "another rank has died" in reason.read_text()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            saved = checkpoints.latest(run_dir)
        tally.add(
            seconds < 30 and status[1 - victim] == 1 and named and saved is not None and saved.step >= 4,
            f"rank {victim} killed after {after}: status {status} after {seconds:.1f} s, reason named {named}, "
            f"{saved and saved.step} loads",
        )
    return tally
