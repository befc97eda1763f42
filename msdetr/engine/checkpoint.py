"""Checkpoints: a directory of safetensors files and a manifest that vouches for every byte of them.

    checkpoints/step_00001200/
        model.safetensors       weights and buffers
        ema.safetensors         their moving average, where one is kept
        optimizer.safetensors   AdamW's moments, keyed "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME"
        rng.safetensors         random generator states, keyed "cpu.RANK" and "cuda.RANK"
        manifest.json           SHA-256 and size of each file, step, config, class names, category ids, metrics

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a name without a leading dot is
always complete. It is verified when it is read. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors.torch import load as deserialize
from torch import Tensor, nn

from ..config import RunConfig, flatten, from_dict
from ..errors import CheckpointError

FORMAT = "msdetr-checkpoint/1"
MANIFEST = "manifest.json"
KEEP = 2  # newest checkpoints kept, beside the best one
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest has been verified; its files are verified as they are read."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.manifest["step"]

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

    def has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.manifest["files"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file ("model", "ema", "optimizer", "rng"), verified.

        Raises CheckpointError where the file is missing or differs by a single bit from what was written.
        """
        file = f"{name}.safetensors"
        if not self.has(name):
            raise CheckpointError(f"{self.directory}: has no {file}")
        entry = self.manifest["files"][file]
        data = _read(self.directory / file)
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{self.directory / file}: is damaged ({len(data)} bytes, {entry['bytes']} were written; SHA-256 differs); "
                "use an earlier checkpoint or a copy of this one"
            )
        try:
            tensors = deserialize(data)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{self.directory / file}: is not a safetensors file ({error})") from error
        return tensors | {alias: tensors[original] for alias, original in entry["aliases"].items()}

    def weights(self, ema: bool | None = None) -> dict[str, Tensor]:
        """The weights to predict with: the moving average where there is one, unless ``ema=False``."""
        return self.tensors("ema" if (self.has("ema") if ema is None else ema) else "model")


def write(directory: Path, files: Mapping[str, Tensors], manifest: Mapping[str, Any]) -> Checkpoint:
    """Writes a checkpoint at ``directory``: all of it, or nothing under that name.

    files: name -> tensors on the host. manifest: the fields beside the files' own.
    Raises CheckpointError where it cannot be written (a full disk, no permission); what was there before is intact.
    """
    directory = Path(directory)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        _remove(staging)
        staging.mkdir(parents=True)
        entries = {}
        for name, tensors in files.items():
            unique, aliases = _unaliased(tensors)
            data = safetensors.torch.save(unique)
            _write_durably(staging / f"{name}.safetensors", data)
            digest = hashlib.sha256(data).hexdigest()
            entries[f"{name}.safetensors"] = {"sha256": digest, "bytes": len(data), "aliases": aliases}
        manifest = {"format": FORMAT, **manifest, "files": entries}
        _write_durably(staging / MANIFEST, _manifest_text(manifest).encode())
        _sync_directory(staging)
        if directory.exists():  # written before and not usable, or about to be written again after a fall-back
            replaced = directory.with_name(f".{directory.name}.{os.getpid()}.old")
            _remove(replaced)
            directory.rename(replaced)
            staging.rename(directory)
            _remove(replaced)
        else:
            staging.rename(directory)
        _sync_directory(directory.parent)
    except OSError as error:
        _remove(staging)
        raise CheckpointError(
            f"{directory}: cannot be written: {error.strerror or error}. Earlier checkpoints in {directory.parent} are "
            "intact; make room or choose another run directory, and resume"
        ) from error
    return Checkpoint(directory, json.loads(_manifest_text(manifest)))


def read(directory: str | Path) -> Checkpoint:
    """Opens a checkpoint and verifies its manifest. Raises CheckpointError saying what is wrong with it."""
    directory = Path(directory)
    path = directory / MANIFEST
    text = _read(path)
    try:
        manifest = json.loads(text)
        intact = isinstance(manifest, dict) and manifest["sha256"] and _manifest_text(manifest).encode() == text
    except (ValueError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path}: is damaged (its contents and its own SHA-256 differ)")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: has format {manifest.get('format')!r}; this version reads {FORMAT!r}")
    return Checkpoint(directory, manifest)


def verify(directory: str | Path) -> Checkpoint:
    """Opens a checkpoint and verifies every byte of it."""
    checkpoint = read(directory)
    for file in checkpoint.manifest["files"]:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{checkpoint.directory}: {file!r} is not the name of a file in it")
        checkpoint.tensors(file.removesuffix(".safetensors"))
    return checkpoint


def available(run_dir: str | Path) -> list[Path]:
    """The checkpoint directories of a run, oldest first."""
    found = Path(run_dir, "checkpoints").glob("step_*")
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name)), key=lambda path: int(path.name[5:]))


def latest(run_dir: str | Path) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, None where there is none at all.

    A damaged one is passed over with a warning. Raises CheckpointError if every one is damaged.
    """
    problems = []
    for directory in reversed(available(run_dir)):
        try:
            checkpoint = verify(directory)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}. Falling back to {checkpoint.directory}", stacklevel=2)
        return checkpoint
    if problems:
        raise CheckpointError("no checkpoint of the run can be used:\n  " + "\n  ".join(problems))
    return None


def best(run_dir: str | Path) -> Checkpoint | None:
    """The checkpoint with the highest AP that verifies; the latest one where none was evaluated."""
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
            return verify(checkpoint.directory)
        except CheckpointError as error:
            warnings.warn(f"{error}. Falling back to another checkpoint", stacklevel=2)
    return latest(run_dir)


def find(path: str | Path) -> Checkpoint:
    """A checkpoint from its own directory, or the best one of a run directory. Raises CheckpointError."""
    path = Path(path)
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file; a checkpoint is a directory with a {MANIFEST}. Turn a released .pth file into one with "
            "`msdetr convert`"
        )
    if (path / MANIFEST).exists() or re.fullmatch(r"step_\d+", path.name):
        return verify(path)
    checkpoint = best(path) if path.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(f"{path}: is neither a checkpoint nor a run directory with checkpoints in it")
    return checkpoint


class Writer:
    """Saves in the background, one checkpoint at a time, and keeps the newest two and the best.

    ``save`` returns as soon as the tensors are copied to host memory. An error of the background work is raised by the
    next ``save`` or by ``wait``.
    """

    def __init__(self, run_dir: str | Path):
        self.directory = Path(run_dir, "checkpoints")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        for leftover in self.directory.glob(".step_*"):  # of a process that was killed while it saved
            _remove(leftover)

    def save(self, step: int, files: Mapping[str, Tensors], manifest: Mapping[str, Any]) -> None:
        self.wait()
        copies = copy_to_host(files)
        arguments = (self.directory / f"step_{step:08d}", copies, {"step": step, **manifest})
        self._thread = threading.Thread(target=self._work, args=arguments, name="checkpoint")
        self._thread.start()

    def _work(self, *arguments) -> None:
        try:
            write(*arguments)
            self._prune()
        except BaseException as error:  # noqa: BLE001 (raised again by wait)
            self._error = error

    def wait(self) -> None:
        """Until the last save is on disk. Raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _prune(self) -> None:
        scores = {}
        for directory in available(self.directory.parent):
            try:
                scores[directory] = read(directory).metrics.get("AP")
            except CheckpointError:
                scores[directory] = None
        keep = set(list(scores)[-KEEP:])
        scored = [directory for directory, score in scores.items() if score is not None]
        if scored:
            keep.add(max(scored, key=lambda directory: (scores[directory], directory.name)))
        for directory in scores.keys() - keep:
            gone = directory.with_name(f".{directory.name}.{os.getpid()}.old")
            directory.rename(gone)  # so that an interrupted removal never looks like a checkpoint
            _remove(gone)


def copy_to_host(files: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
    """Copies that training does not change any more, aliases kept; waits for the device once."""
    copies: dict[tuple, Tensor] = {}
    on_gpu = False

    def copy(tensor: Tensor) -> Tensor:
        nonlocal on_gpu
        key = _identity(tensor)
        if key not in copies:
            if tensor.is_cuda:
                on_gpu = True
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[key] = host.copy_(tensor.detach(), non_blocking=True)
            else:
                copies[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
        return copies[key]

    result = {name: {key: copy(tensor) for key, tensor in tensors.items()} for name, tensors in files.items()}
    if on_gpu:
        torch.cuda.synchronize()
    return result


def optimizer_files(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as flat tensors keyed by parameter name, and its groups' settings as plain values."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
    plain = (str, int, float, bool, list, tuple, type(None))
    settings = [
        {k: v for k, v in group.items() if k != "params" and isinstance(v, plain)} for group in optimizer.param_groups
    ]
    return tensors, settings


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, settings: list[dict[str, Any]]) -> None:
    """Puts back what ``optimizer_files`` took. Raises CheckpointError where the parameters are not the same."""
    saved, here = (
        {name for group in groups for name in group["names"]} for groups in (settings, optimizer.param_groups)
    )
    if saved != here:
        raise CheckpointError(
            "the optimiser's state is of other parameters: " + _listing(missing=here - saved, unexpected=saved - here)
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        moment, name = key.split(".", 1)
        moments.setdefault(name, {})[moment] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            if name in moments:
                # AdamW's fused step keeps the step count beside the parameter, as it does the moments
                optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in moments[name].items()}


@dataclass(frozen=True)
class TakenOver:
    """What loading weights into a detector took over, by parameter name."""

    taken: tuple[str, ...]
    missing: tuple[str, ...] = ()  # of the detector, not in the file: keep their initial values
    unexpected: tuple[str, ...] = ()  # in the file, not of the detector: ignored
    misshapen: tuple[str, ...] = ()  # "name: shape in the file, shape in the detector": keep their initial values

    def report(self) -> str:
        lines = [f"{len(self.taken)} tensors taken over"]
        for what in ("missing", "unexpected", "misshapen"):
            names = getattr(self, what)
            if names:
                lines.append(f"{len(names)} {what}: " + _shortened(names))
        return "; ".join(lines)


def load_weights(
    detector: nn.Module, tensors: Tensors, reset_class_head: bool = False, partial: bool = False
) -> TakenOver:
    """Copies weights into a detector.

    reset_class_head: class heads of another number of classes keep their initial values.
    partial: whatever fits is taken, the rest keeps its initial values.

    Raises CheckpointError listing the keys that are missing, unexpected or misshapen, unless those options cover them.
    """
    own = detector.state_dict()
    shared = own.keys() & tensors.keys()
    misshapen = sorted(name for name in shared if own[name].shape != tensors[name].shape)
    heads = [name for name in misshapen if _is_class_head(name, own[name], tensors[name])]
    taken = sorted(shared - set(misshapen))
    result = TakenOver(
        taken=tuple(taken),
        missing=tuple(sorted(own.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - own.keys())),
        misshapen=tuple(f"{name}: {list(tensors[name].shape)}, here {list(own[name].shape)}" for name in misshapen),
    )
    covered = set(heads) if reset_class_head else set()
    if not partial and (result.missing or result.unexpected or set(misshapen) - covered):
        advice = "build the model from the checkpoint's own configuration"
        if heads and not (result.missing or result.unexpected or set(misshapen) - set(heads)):
            ours, theirs = len(own[heads[0]]), len(tensors[heads[0]])
            advice = f"the model has {ours} classes, the weights {theirs}: give reset_class_head to start the class heads anew"
        raise CheckpointError(
            "the weights do not fit the model: "
            + _listing(missing=result.missing, unexpected=result.unexpected, misshapen=result.misshapen)
            + f". {advice}"
        )
    if not taken:
        raise CheckpointError("the weights do not fit the model: not one tensor has a name and shape in common")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(tensors[name])
    return result


def _is_class_head(name: str, own: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one class head for different numbers of classes: only the output dimension differs."""
    return "class_head" in name and own.dim() == other.dim() and own.shape[1:] == other.shape[1:]


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old value, new value) of every field that differs."""
    after = flatten(new)
    return {path: (before, after[path]) for path, before in flatten(old).items() if before != after[path]}


def _listing(**keys) -> str:
    return "; ".join(f"{len(names)} {what}: {_shortened(names)}" for what, names in keys.items() if names)


def _shortened(names, limit: int = 12) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")


def _identity(tensor: Tensor) -> tuple:
    empty = id(tensor) if tensor.numel() == 0 else None  # has no memory to share
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, empty


def _unaliased(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The distinct tensors, and alias -> name for parameters that several modules share."""
    unique, aliases, names = {}, {}, {}
    for name, tensor in tensors.items():
        first = names.setdefault(_identity(tensor), name)
        if first == name:
            unique[name] = tensor.contiguous()
        else:
            aliases[name] = first
    return unique, aliases


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    """The one way to write a manifest, with the SHA-256 of all the rest in it."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(body, indent=1, allow_nan=False)
    return json.dumps({**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, allow_nan=False) + "\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
