"""A run so small that it can be repeated many times: 16 generated images, a detector of half a million weights."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small import SMALL

from msdetr.config import RunConfig
from msdetr.engine import checkpoint as checkpoints

STEPS_PER_EPOCH = 4


def config(root: Path, **overrides: Any) -> RunConfig:
    """12 steps of 4 images on the generated shapes; dropout on, so that the random generators matter."""
    return RunConfig().override(
        SMALL
        | {
            "recipe": "tiny",
            "model.num_classes": 8,
            "model.backbone": "conv",
            "model.pretrained": "none",
            "model.trainable_layers": 5,
            "model.ffn_dim": 64,
            "model.num_queries": 20,
            "model.num_levels": 3,
            "model.dropout": 0.1,
            "data.root": str(root),
            "data.generate": "shapes",
            "data.train_split": "train",
            "data.val_split": "val",
            "data.num_train": 16,
            "data.num_val": 6,
            "data.augment": "flip",
            "data.test_size": 0,
            "data.workers": 0,
            "train.epochs": 3,
            "train.batch_size": 4,
            "train.micro_batch": 2,
            "train.lr": 1e-3,
            "train.ema_decay": 0.9,
            "train.log_every": 1,
            "train.eval_every": 0,
            "train.checkpoint_every": 1,
            "train.precision": "fp32",
        }
        | {name.replace("__", "."): value for name, value in overrides.items()}
    )


def fingerprint(checkpoint: checkpoints.Checkpoint) -> dict[str, str]:
    """A hash of each file's tensors: weights, moving average, optimiser, random generators."""
    result = {}
    for file in checkpoint.files:
        digest = hashlib.sha256()
        for name, tensor in sorted(checkpoint.tensors(file).items()):
            digest.update(name.encode())
            digest.update(
                tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else str(tensor).encode()
            )
        result[file] = digest.hexdigest()
    return result


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in metrics.jsonl."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def train_rank(run_dir: str, config_file: str, environment: dict[str, str], options: dict[str, Any]) -> None:
    """One process that trains. The image ids of every step go to samples_RANK.jsonl in the run directory, an error's text
    to error_RANK.txt."""
    os.environ.update({"MSDETR_PROGRESS": "off", **environment})
    torch.set_num_threads(1)
    from msdetr import config as configs
    from msdetr.engine import EngineError, train
    from msdetr.engine.trainer import Trainer

    log = Path(run_dir, f"samples_{environment.get('RANK', '0')}.jsonl")
    step = Trainer.step

    poisoned = environment.get("POISON", "").split(":")  # RANK:STEP at which a gradient becomes NaN

    def logged(self, micro_batches, num_boxes=None):
        if poisoned == [environment.get("RANK", "0"), str(self.steps_done)]:
            self.detector.level_embedding.register_hook(lambda gradient: gradient * float("nan"))
        result = step(self, micro_batches, num_boxes)
        with open(log, "a") as file:
            file.write(json.dumps([result.index, result.image_ids]) + "\n")
        if pause := environment.get("PAUSE"):
            time.sleep(float(pause))
        return result

    Trainer.step = logged
    checkpoints.Writer.keep = int(environment.get("KEEP", checkpoints.Writer.keep))
    try:
        train(configs.load(config_file), run_dir, device="cpu", progress=False, **options)
    except (EngineError, configs.ConfigError) as error:
        Path(run_dir, f"error_{environment.get('RANK', '0')}.txt").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def samples(run_dir: Path, rank: int = 0) -> dict[int, list[int]]:
    """Step -> image ids that a rank trained on; a step done twice must have had the same images."""
    found: dict[int, list[int]] = {}
    for line in (run_dir / f"samples_{rank}.jsonl").read_text().splitlines():
        step, image_ids = json.loads(line)
        assert found.setdefault(step, image_ids) == image_ids
    return found


_processes = multiprocessing.get_context("forkserver")  # forked from a clean process that has everything imported
_processes.set_forkserver_preload(["tiny", "msdetr.engine.train", "msdetr.data", "msdetr.model", "msdetr.losses"])


def start(target: Callable, *arguments: Any) -> multiprocessing.Process:
    """A process that runs ``target``, started in a fraction of a second."""
    process = _processes.Process(target=target, args=arguments)
    process.start()
    return process


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_training(run_dir: Path, config: RunConfig, ranks: int = 1, environment: dict | None = None, **options: Any):
    """Processes that train ``config`` in ``run_dir``, one per rank."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config_file = run_dir / "wanted.yaml"
    config.save(config_file)
    shared = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    shared |= environment or {}
    return [
        start(train_rank, str(run_dir), str(config_file), {**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, options)
        for r in range(ranks)
    ]


def train_in_processes(
    run_dir: Path, config: RunConfig, ranks: int = 1, timeout: float = 300, **options: Any
) -> list[int]:
    """Trains to the end and returns the exit statuses."""
    return finish(start_training(run_dir, config, ranks, **options), timeout)


def finish(processes: list[multiprocessing.Process], timeout: float = 300) -> list[int]:
    """Exit statuses, once all have ended; those that have not by then are killed and fail the test."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {len(processes)} processes still ran after {timeout:.0f} s"
    return [process.exitcode for process in processes]


def wait_for(condition: Callable[[], bool], timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


def wait_for_step(run_dir: Path, step: int) -> None:
    """Until rank 0 has done that step."""
    wait_for(lambda: (run_dir / "samples_0.jsonl").exists() and len(samples(run_dir)) > step)
