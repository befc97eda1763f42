"""Where a run's data set is: written down while training, found again from any folder.

A configuration may say ``data.root: data/shapes``, which means something only to the process that started the run. So a run
directory keeps ``data.json``: the data set's place seen from the run (a project may be moved as a whole), its absolute place
(a run may be copied elsewhere), and digests of the labels: of those that validate, so that another data set that happens to
lie at one of these places is not taken for it, and of those that train, so that runs on other ones are not taken for
repetitions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .. import files
from ..config import DataConfig, RunConfig
from ..data.parts import Role
from ..data.settings import part
from ..errors import ConfigError, DataError, FileError

RECORD = "data.json"
LATER = {"train_split": "auto", "train_digest": ""}  # what records of earlier versions do not have
ROLES: tuple[Role, ...] = ("train", "val")
REMEDY = "name its folder with --data (in Python and in notebooks: data=...)"


def record(run_dir: str | Path, config: RunConfig, place: str | Path) -> dict[str, str]:
    """What ``data.json`` of a run says: the data set that its configuration calls ``data.root`` is at ``place``."""
    run, data = Path(os.path.abspath(run_dir)), Path(os.path.abspath(place))
    return {
        "root": config.data.root,
        "from_run": os.path.relpath(data, run),
        "absolute": str(data),
        "train_split": config.data.train_split,
        "val_split": config.data.val_split,
        **{f"{role}_digest": digest for role, digest in label_digests(config.data, data).items()},
    }


def find(source: str | Path) -> Path | None:
    """The data set of a run, a run's directory or one of its checkpoints, as an absolute path.

    None where nothing was written down: a converted checkpoint, or one copied out of its run. Raises DataError where the
    data set is at neither of its two places, or another one is.
    """
    for run in _run_directories(Path(source)):
        path = run / RECORD
        if path.is_file():
            return _find(run, _read(path))
    return None


def label_digests(data: DataConfig, place: str | Path) -> dict[Role, str]:
    """SHA-256 of the labels that a data set at ``place`` has to train on and to validate on; "" where they cannot be read."""
    splits = {"train_split": data.train_split, "val_split": data.val_split}
    return {role: _digest(splits, Path(place), role) or "" for role in ROLES}


def digests(run_dir: str | Path) -> dict[Role, str]:
    """``label_digests`` of a run as they were when it began; "" where none was written down. Raises DataError for a damaged
    record."""
    path = Path(run_dir) / RECORD
    record = _read(path) if path.is_file() else {}
    return {role: record.get(f"{role}_digest", "") for role in ROLES}


def root(source: str | Path | None, config: RunConfig) -> str:
    """Where to read the data of a configuration that came with ``source``, a run or checkpoint: as written down, else as the
    configuration says. Raises DataError where it is at neither place."""
    found = None if source is None else find(source)
    if found is None and source is not None and not Path(config.data.root).is_dir():
        raise DataError(
            f"{source}: its configuration says data.root = {config.data.root!r}, which is no folder of "
            f"{Path.cwd()}, and no run directory around it says more; {REMEDY}"
        )
    return config.data.root if found is None else str(found)


def resumed(run_dir: str | Path, config: RunConfig) -> RunConfig:
    """The configuration with which a run goes on: its data is where it was, unless a person now names another folder.

    Raises DataError where it is not there any more; a generated set is made again instead.
    """
    run = Path(os.path.abspath(run_dir))
    if not (run / RECORD).is_file():
        return config
    record = _read(run / RECORD)
    if record["root"] != config.data.root:
        return config
    try:
        place = _find(run, record)
    except DataError:
        if config.data.generate == "none":
            raise
        place = Path(os.path.normpath(run / record["from_run"]))  # it is generated again there
    return config.override({"data.root": str(place)})


def _run_directories(source: Path) -> list[Path]:
    """Where the record of a run may lie: in ``source``, or around it where that is ``RUN/checkpoints/step_N``; with and
    without symbolic links followed."""
    named, real = Path(os.path.abspath(source)), Path(os.path.realpath(source))
    return [named, real] + [path.parent.parent for path in (named, real) if path.parent.name == "checkpoints"]


def _find(run: Path, record: dict[str, str]) -> Path:
    relative = record["from_run"]
    near = Path(os.path.normpath(run / relative))
    places = [near, Path(os.path.realpath(run), relative).resolve(), Path(record["absolute"])]
    others = []
    for place in places:
        if place.is_dir():
            digest = _digest(record, place, "val")
            if digest == (record["val_digest"] or None):
                return place
            others.append(place)
    if others:
        raise DataError(
            f"{run}: the data set at {others[0]} is not as it was when this run was trained "
            f"(labels of {record['val_split']!r} differ or are missing); to use it all the same, or another, {REMEDY}"
        )
    raise DataError(
        f"{run}: its data set is neither at {near} (as seen from the run) nor at {record['absolute']} (where it was); {REMEDY}"
    )


def _digest(splits: Mapping[str, str], data: Path, role: Role) -> str | None:
    """Of the labels that train or validate: of the split named, or, where it is "auto", of what is chosen or held out."""
    names = {f"{role}_split": splits[f"{role}_split"] for role in ROLES}
    try:
        return part(DataConfig(root=str(data), **names), role).digest()
    except (OSError, ConfigError, DataError):
        return None


def _read(path: Path) -> dict[str, str]:
    try:
        found = files.read_json(path)
        names = ("root", "from_run", "absolute", "train_split", "val_split", "train_digest", "val_digest")
        values = {name: {**LATER, **found}[name] for name in names}
        if all(isinstance(value, str) for value in values.values()):
            return values
    except (FileError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: cannot be read; {REMEDY}, or delete this file to go by config.yaml")
