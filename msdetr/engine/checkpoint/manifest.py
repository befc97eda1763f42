"""The manifest of a checkpoint: how it is written, and the check of every part of it when it is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import RunConfig, flatten, from_dict
from ...errors import CheckpointError, ConfigError
from ...files import json_text, parse_json

FORMAT = "msdetr-checkpoint/1"
MANIFEST = "manifest.json"


def to_text(manifest: Mapping[str, Any]) -> str:
    """The one way to write a manifest, with the SHA-256 of all the rest in it."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return json_text({**body, "sha256": hashlib.sha256(json_text(body).encode()).hexdigest()}) + "\n"


def from_text(text: bytes, path: Path) -> dict[str, Any]:
    """The manifest in a file's contents, every part checked. Raises CheckpointError naming ``path`` and the part."""
    manifest = parse_json(text, path, CheckpointError)
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: is damaged: holds a {type(manifest).__name__}, not an object")
    if "format" in manifest and manifest["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {_shown(manifest['format'])}; this version reads {FORMAT!r}")
    if to_text(manifest).encode() != text:
        raise CheckpointError(f"{path}: is damaged (its contents and its own SHA-256 differ)")
    check(manifest, path)
    return manifest


def check(manifest: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError naming the first part of a manifest that is missing or cannot be.

    Parts that this version does not know are left alone.
    """

    def demand(good: bool, name: str, value: Any, expected: str) -> None:
        if not good:
            found = "is missing" if value is None else f"is {_shown(value)}"
            raise CheckpointError(f"{path}: {name} {found}; it must be {expected}. Use another checkpoint")

    get = manifest.get
    demand(get("format") == FORMAT, "format", get("format"), repr(FORMAT))
    demand(_whole(get("step"), 0), "step", get("step"), "a whole number from 0")
    demand(_number(get("epoch")) and get("epoch") >= 0, "epoch", get("epoch"), "a number from 0")
    demand(isinstance(get("config"), dict), "config", get("config"), "the run's configuration")
    try:
        config = from_dict(manifest["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: config: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: config: is nested too deeply") from error
    classes = config.model.num_classes
    names, ids = get("class_names"), get("category_ids")
    demand(_texts(names) and len(names) == classes, "class_names", names, f"a list of {classes} names")
    demand(
        isinstance(ids, list) and len(ids) == classes and all(value is None or _whole(value, -(2**63)) for value in ids),
        "category_ids", ids, f"a list of {classes} whole numbers or null",
    )  # fmt: skip
    known = [value for value in ids if value is not None]
    demand(len(set(known)) == len(known), "category_ids", ids, "a list without repetitions")
    demand(_numbers(get("metrics")), "metrics", get("metrics"), "numbers by name")
    demand(isinstance(get("training"), dict), "training", get("training"), "an object")
    for name, value in manifest["training"].items():
        good, expected = _training_part(name, value)
        demand(good, f"training.{name}", value, expected)
    for name in ("optimizer", "world_size", "seconds", "evaluations") if manifest["training"] else ():
        demand(name in manifest["training"], f"training.{name}", None, "there where training can be resumed")

    files = get("files")
    demand(isinstance(files, dict) and len(files) > 0, "files", files, "the checkpoint's files")
    for file, entry in files.items():
        demand(re.fullmatch(r"[a-z_]+\.safetensors", file) is not None, "files", file, "names of files in it")
        demand(isinstance(entry, dict), f"files.{file}", entry, "an object")
        digest, size, aliases = (entry.get(name) for name in ("sha256", "bytes", "aliases"))
        demand(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None,
               f"files.{file}.sha256", digest, "64 hexadecimal digits")  # fmt: skip
        demand(_whole(size, 0), f"files.{file}.bytes", size, "a whole number from 0")
        demand(isinstance(aliases, dict) and _texts(list(aliases.values())),
               f"files.{file}.aliases", aliases, "names of tensors by their other names")  # fmt: skip
    demand(
        bool(files.keys() & {"model.safetensors", "ema.safetensors"}),
        "files",
        list(files),
        "at least model.safetensors",
    )


def _training_part(name: str, value: Any) -> tuple[bool, str]:
    """Whether a part of ``training`` is what it must be, and what that is."""
    if name == "optimizer":
        groups = isinstance(value, list) and all(isinstance(group, dict) for group in value)
        good = groups and all(
            _texts(group.get("names"))
            and isinstance(group.get("name", ""), str)
            and (group.get("untouched") is None or _texts(group["untouched"]))
            for group in value
        )
        return good, "a list of parameter groups with the names of their parameters"
    if name == "world_size":
        return _whole(value, 1), "a whole number from 1"
    if name == "micro_batch":
        return value is None or _whole(value, 1), "a whole number from 1, or null"
    if name == "seconds":
        return _number(value) and value >= 0, "a number from 0"
    if name == "evaluations":
        records = isinstance(value, list) and all(isinstance(record, dict) for record in value)
        good = records and all(
            _whole(record.get("step"), 0)
            and _number(record.get("epoch"))
            and "AP" in record
            and (record["AP"] is None or _number(record["AP"]))
            for record in value
        )
        return good, "a list of evaluations with step, epoch and AP"
    return True, ""


def _whole(value: Any, lowest: int) -> bool:
    return type(value) is int and lowest <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or _number(number) for number in value.values())


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old value, new value) of every field that differs."""
    after = flatten(new)
    return {path: (before, after[path]) for path, before in flatten(old).items() if before != after[path]}
