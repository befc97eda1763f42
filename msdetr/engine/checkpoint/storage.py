"""Checkpoints on the disk: written whole, found, and verified before anything in them is used."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ...config import RunConfig, from_dict
from ...errors import CheckpointError
from ...files import JSON_BYTES, read_bytes, sync_directory, write_atomically, write_durably
from .manifest import FORMAT, MANIFEST, from_text, to_text
from .optimizer import check_generator_states, check_moments
from .tensors import parse_tensors
from .weights import check_finite, misfits

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest has been checked; its files are verified as they are read."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.manifest["step"]

    @property
    def epoch(self) -> float:
        return self.manifest["epoch"]

    @property
    def config(self) -> RunConfig:
        return from_dict(self.manifest["config"])

    @property
    def class_names(self) -> list[str]:
        return self.manifest["class_names"]

    @property
    def category_ids(self) -> list[int | None]:
        """Class index -> category id of the annotation file it was trained on; None for a class that raw ids leave unused."""
        return self.manifest["category_ids"]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The evaluation at this step, empty where there was none."""
        return self.manifest["metrics"]

    @property
    def training(self) -> dict[str, Any]:
        """What training goes on with: "optimizer", its groups; "world_size"; "seconds"; "evaluations".

        Raises CheckpointError where the checkpoint holds weights alone.
        """
        if not self.manifest["training"]:
            raise CheckpointError(
                f"{self.directory}: holds weights alone and cannot be resumed; start a run from them with --init-from"
            )
        return self.manifest["training"]

    @property
    def files(self) -> list[str]:
        """The names of its files: "model", "optimizer", ..."""
        return [file.removesuffix(".safetensors") for file in self.manifest["files"]]

    @property
    def bytes(self) -> int:
        """The size of its files together."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.manifest["files"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file ("model", "ema", "optimizer", "rng"), verified.

        Raises CheckpointError where the file is missing or differs by a single bit from what was written.
        """
        file = f"{name}.safetensors"
        if not self.has(name):
            raise CheckpointError(f"{self.directory}: has no {file}")
        entry, path = self.manifest["files"][file], self.directory / file
        size = _size(path)
        if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise CheckpointError(f"{path}: has {size:,} bytes, more than this machine's memory ({memory:,})")
        data = read_bytes(path, CheckpointError) if size == entry["bytes"] else b""
        if size != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{path}: is damaged ({size} bytes, {entry['bytes']} were written; SHA-256 differs); "
                "use an earlier checkpoint or a copy of this one"
            )
        tensors = parse_tensors(data, path)
        for alias, original in entry["aliases"].items():
            if original not in tensors or alias in tensors:
                raise CheckpointError(
                    f"{path}: the manifest calls {alias!r} another name of {original!r}, which it cannot be"
                )
        return tensors | {alias: tensors[original] for alias, original in entry["aliases"].items()}

    def weights(self, ema: bool | None = None) -> dict[str, Tensor]:
        """The weights to predict with: the moving average where there is one, unless ``ema=False``.

        Where its file was deleted, the weights themselves with a warning. Nothing else needs to be there.
        """
        if ema is None:
            ema = self.has("ema")
            if ema and not (self.directory / "ema.safetensors").exists() and self.has("model"):
                warnings.warn(
                    f"{self.directory}: ema.safetensors, the moving average, is gone; the weights themselves are used",
                    stacklevel=2,
                )
                ema = False
        return self.tensors("ema" if ema else "model")


def write(directory: Path, files: Mapping[str, Tensors], manifest: Mapping[str, Any]) -> Checkpoint:
    """Writes a checkpoint at ``directory``: all of it, or nothing under that name.

    files: name -> tensors on the host. manifest: the fields beside the files' own.
    Raises CheckpointError where it cannot be written (a full disk, no permission) or where the manifest is not what
    ``read`` accepts; what was there before is intact.
    """
    directory = Path(directory)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        remove(staging)
        staging.mkdir(parents=True)
        entries = {}
        for name, tensors in files.items():
            unique, aliases = _unaliased(tensors)
            data = safetensors.torch.save(unique)
            write_durably(staging / f"{name}.safetensors", data)
            digest = hashlib.sha256(data).hexdigest()
            entries[f"{name}.safetensors"] = {"sha256": digest, "bytes": len(data), "aliases": aliases}
        text = to_text({"format": FORMAT, **manifest, "files": entries}).encode()
        checked = from_text(text, directory / MANIFEST)
        write_durably(staging / MANIFEST, text)
        sync_directory(staging)
        if directory.exists():  # written before and not usable, or about to be written again after a fall-back
            replaced = directory.with_name(f".{directory.name}.{os.getpid()}.old")
            remove(replaced)
            directory.rename(replaced)
            staging.rename(directory)
            remove(replaced)
        else:
            staging.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be written: {error.strerror or error}. Earlier checkpoints in {directory.parent} are "
            "intact; make room or choose another run directory, and resume"
        ) from error
    finally:
        remove(staging)
    return Checkpoint(directory, checked)


def amend(directory: Path, **changes: Any) -> None:
    """Changes fields of a checkpoint's manifest, all of them or none. Raises CheckpointError and WriteError."""
    path = directory / MANIFEST
    text = to_text(read(directory).manifest | changes)
    from_text(text.encode(), path)
    write_atomically(path, text)


def read(directory: str | Path) -> Checkpoint:
    """Opens a checkpoint and checks its manifest. Raises CheckpointError saying what is wrong with it."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir() or not (path.exists() or re.fullmatch(r"step_\d+", directory.name)):
        raise CheckpointError(_not_a_checkpoint(directory))
    _size(path)
    return Checkpoint(directory, from_text(read_bytes(path, CheckpointError, JSON_BYTES), path))


def verify(directory: str | Path) -> Checkpoint:
    """Opens a checkpoint and verifies all of it: every byte, and that its parts fit together. Raises CheckpointError."""
    checkpoint = read(directory)
    training = checkpoint.manifest["training"]
    model: Tensors = {}
    for name in sorted(checkpoint.files, key=lambda name: name != "model"):
        tensors = checkpoint.tensors(name)
        path = checkpoint.directory / f"{name}.safetensors"
        if name == "model":
            model = {key: value.to("meta") for key, value in tensors.items()}
        if name in ("model", "ema"):
            check_finite(tensors, path)
        if name == "ema" and model and (problem := misfits(tensors, model)):
            raise CheckpointError(f"{path}: is not the moving average of model.safetensors: {problem}")
        if name == "optimizer":
            check_moments(tensors, model, training.get("optimizer", ()), checkpoint.step, path)
        if name == "rng":
            check_generator_states(tensors, path, training.get("world_size", 0))
    for name in ("model", "optimizer", "rng") if training else ():
        if not checkpoint.has(name):
            raise CheckpointError(
                f"{checkpoint.directory}: has no {name}.safetensors, without which it cannot be resumed"
            )
    return checkpoint


def verify_weights(directory: str | Path) -> Checkpoint:
    """Opens a checkpoint and verifies what predicting needs: manifest and weights. Raises CheckpointError."""
    checkpoint = read(directory)
    check_finite(checkpoint.weights(), checkpoint.directory)
    return checkpoint


Verify = Callable[[str | Path], Checkpoint]


def available(run_dir: str | Path) -> list[Path]:
    """The checkpoint directories of a run, oldest first."""
    found = Path(run_dir, "checkpoints").glob("step_*")
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name)), key=lambda path: int(path.name[5:]))


def latest(run_dir: str | Path, check: Verify = verify) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, None where there is none at all.

    check: ``verify``, or ``verify_weights`` where only the weights are wanted.
    A damaged one is passed over with a warning. Raises CheckpointError if every one is damaged.
    """
    problems = []
    for directory in reversed(available(run_dir)):
        try:
            checkpoint = check(directory)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}. Falling back to {checkpoint.directory}", stacklevel=2)
        return checkpoint
    if problems:
        raise CheckpointError("no checkpoint of the run can be used:\n  " + "\n  ".join(problems))
    return None


def best(run_dir: str | Path, check: Verify = verify) -> Checkpoint | None:
    """The checkpoint with the highest AP that verifies; the latest one where none was evaluated. check: as for ``latest``."""
    scored = []
    for directory in available(run_dir):
        try:
            checkpoint = read(directory)
        except CheckpointError:
            continue
        if checkpoint.metrics.get("AP") is not None:
            scored.append(checkpoint)
    for checkpoint in sorted(scored, key=lambda checkpoint: (checkpoint.metrics["AP"], checkpoint.step), reverse=True):
        try:
            return check(checkpoint.directory)
        except CheckpointError as error:
            warnings.warn(f"{error}. Falling back to another checkpoint", stacklevel=2)
    return latest(run_dir, check)


def find(path: str | Path, check: Verify = verify) -> Checkpoint:
    """A checkpoint from its own directory, or the best one of a run directory. Raises CheckpointError.

    check: ``verify``, or ``verify_weights`` where only the weights are wanted.
    """
    path = Path(path)
    if path.is_dir() and ((path / MANIFEST).exists() or re.fullmatch(r"step_\d+", path.name)):
        return check(path)
    checkpoint = best(path, check) if path.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(_not_a_checkpoint(path))
    return checkpoint


def _not_a_checkpoint(path: Path) -> str:
    """What a path is instead of a checkpoint, and what to do."""
    if path.is_dir():
        return (
            f"{path}: is neither a checkpoint nor a run directory with checkpoints in it; a checkpoint is a directory with "
            f"a {MANIFEST}"
        )
    if path.is_file():
        return (
            f"{path}: is a file; a checkpoint is a directory with a {MANIFEST}. Turn a released .pth file into one with "
            "`msdetr convert`"
        )
    return f"{path}: there is no such directory; it is neither a checkpoint nor a run directory with checkpoints in it"


def _size(path: Path) -> int:
    """The size of a file of a checkpoint. Raises CheckpointError where it is missing or leads out of its directory."""
    try:
        if path.resolve(strict=True).parent != path.parent.resolve():
            raise CheckpointError(f"{path}: leads out of the checkpoint; put the file itself there")
        return path.stat().st_size
    except (OSError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def identity(tensor: Tensor) -> tuple:
    """What two tensors have in common that are one: memory, shape, stride and dtype."""
    empty = id(tensor) if tensor.numel() == 0 else None  # has no memory to share
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, empty


def _unaliased(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The distinct tensors, and alias -> name for parameters that several modules share."""
    unique, aliases, names = {}, {}, {}
    for name, tensor in tensors.items():
        first = names.setdefault(identity(tensor), name)
        if first == name:
            unique[name] = tensor.contiguous()
        else:
            aliases[name] = first
    return unique, aliases


def remove(path: Path) -> None:
    """Removes a directory, if it can."""
    shutil.rmtree(path, ignore_errors=True)
