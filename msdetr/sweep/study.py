"""A study as a YAML file: what is to be trained, and what is compared with what."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import files, recipes
from ..analysis.cells import MEASURES, Cell
from ..config import DataConfig, RunConfig, nearest
from ..data.parts import Role
from ..engine import location
from ..engine.classes import classes_were_given
from ..errors import ConfigError, RunError
from ..notebook import project_root


@dataclass(frozen=True)
class PlannedCell:
    """One configuration with one seed. recipe, data, change: the names that the study gives them ("" for the only one).

    source: the recipe's name or file. overrides: all that the study changes of it. folder: of the data, absolute.
    """

    name: str
    recipe: str
    data: str
    change: str
    seed: int
    source: str
    overrides: dict[str, Any]
    folder: Path
    config: RunConfig


@dataclass(frozen=True)
class Study:
    """What a study file says.

    recipes: name -> recipe or YAML file. data: name -> folder, empty for the recipes' own. changes: name -> settings, each of
    which is tried with every recipe. settings: of every cell. seeds: of every row. reference: the recipe, or the
    change, that others are compared with. run: each cell a papermill run of notebook 05, or ``msdetr.train`` alone.
    measures: columns of the tables, of ``analysis.cells.MEASURES``.
    """

    path: Path
    title: str
    recipes: dict[str, str]
    seeds: tuple[int, ...]
    data: dict[str, str] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    run: Literal["notebook", "train"] = "notebook"
    measures: tuple[str, ...] = tuple(MEASURES)

    def cells(self) -> list[PlannedCell]:
        """All cells, those of the first seed first. Raises ConfigError where a configuration is none, or two are the same."""
        planned = [
            self._cell(recipe, data, change, seed)
            for seed in self.seeds
            for data in self.data or {"": ""}
            for recipe in self.recipes
            for change in self.changes or {"": {}}
        ]
        named: dict[str, PlannedCell] = {}
        for cell in planned:
            other = named.setdefault(cell.name.casefold(), cell)
            if other is not cell:
                raise ConfigError(
                    f"{self.path}: {_title(other)} and {_title(cell)} would both be kept as {cell.name}; give one of them "
                    "another name"
                )
        seen: dict[str, PlannedCell] = {}
        for cell in planned:
            other = seen.setdefault(repr(cell.config.override({"recipe": "any"})), cell)
            if other is not cell:
                raise ConfigError(
                    f"{self.path}: {_title(other)} and {_title(cell)} are one configuration with one seed; leave one out"
                )
        return planned

    def _cell(self, recipe: str, data: str, change: str, seed: int) -> PlannedCell:
        source, overrides = self.recipes[recipe], self.settings | self.changes.get(change, {})
        parts = [recipe, data, change, f"s{seed}"]
        name = "-".join(filter(None, (re.sub(r"[^\w.]+", "-", part).strip("-").lower() for part in parts)))
        try:
            config = recipes.requested(source, seed=seed, overrides=overrides)
            folder = Path(self.data[data]) if data else project_root() / config.data.root
            config = config.override({"data.root": str(folder)})
        except ConfigError as error:
            where = f"{recipe}, {change}" if change else recipe
            raise ConfigError(f"{self.path}: {where}: {error}") from error
        return PlannedCell(name, recipe, data, change, seed, source, overrides, folder, config)


def _title(cell: PlannedCell) -> str:
    return f"'{', '.join(filter(None, (cell.recipe, cell.data, cell.change)))}', seed {cell.seed}"


Digests = Callable[[DataConfig, Path], Mapping[Role, str]]


def digests_once() -> Digests:
    """``location.label_digests`` that reads each data set once; of large ones that takes seconds."""
    return functools.cache(location.label_digests)


def kept(cell: PlannedCell, folder: Path, digests: Digests = location.label_digests) -> Cell | None:
    """The finished cell, None where it is still to be trained. Raises RunError where it was trained otherwise, or on other
    labels than the data set has now (where that is there)."""
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return None
    found = Cell.load(path)
    different = found.differs_from(cell.config)
    if not classes_were_given(cell.config):
        different.pop("model.num_classes", None)  # the data decided
    if different:
        changes = ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in different.items())
        raise RunError(
            f"{path}: trained with other settings than the study has now ({changes}); change the study back, or move "
            "this file and the run of that name away, and the cell is trained again"
        )
    now = digests(cell.config.data, cell.folder) if found.labels else {}
    for role, digest in found.labels.items():
        if now[role] not in ("", digest):
            raise RunError(
                f"{path}: trained on other data than {cell.folder} has now (labels of the {role} split differ); sweep into "
                "another folder (--out), or move this file and the run of that name away, and the cell is trained again"
            )
    return found


# ---------------------------------------------------------------- the file

_KEYS = ("title", "recipes", "data", "changes", "settings", "seeds", "reference", "run", "measures")


def load_study(path: str | Path, *, trains: bool = True) -> Study:
    """Reads a study. Recipe files and data folders that it names are looked for beside it.

    trains: False where only what is finished is to be read: the data may be gone, or on another machine.

    Raises ConfigError naming the entry that is missing, unknown or no value of its kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such study file")
    found = files.read_yaml(path, ConfigError)
    for key in found:
        if key not in _KEYS:
            raise ConfigError(f"{path}: '{key}': unknown; {nearest(str(key), _KEYS)}")
    for key in ("recipes", "seeds"):
        if not found.get(key):
            raise ConfigError(f"{path}: {key}: missing; a study needs at least one")
    read = _Reader(path, found)
    study = Study(
        path,
        title=read.text("title", path.stem),
        recipes={name: read.recipe(name, source) for name, source in read.named("recipes").items()},
        seeds=read.seeds(),
        data={name: read.folder(name, place, trains) for name, place in read.named("data").items()},
        changes={name: read.settings(f"changes: {name}", values) for name, values in read.mapping("changes").items()},
        settings=read.settings("settings", found.get("settings")),
        reference=read.text("reference", None),
        run=read.choice("run", ("notebook", "train")),
        measures=read.measures(),
    )
    known = [*study.recipes, *study.changes]
    if study.reference is not None and study.reference not in known:
        raise read.wrong(
            "reference", f"'{study.reference}' is none of the recipes and changes; {nearest(study.reference, known)}"
        )
    study.cells()
    return study


class _Reader:
    """Entries of a study file, checked one by one."""

    def __init__(self, path: Path, found: Mapping[str, Any]):
        self.path, self.found = path, found

    def wrong(self, entry: str, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: {entry}: {what}")

    def text(self, key: str, default: str | None) -> Any:
        value = self.found.get(key, default)
        if value is not default and (not isinstance(value, str) or not value.strip()):
            raise self.wrong(key, f"expected text, got {value!r}")
        return value

    def choice(self, key: str, known: Sequence[str]) -> Any:
        value = self.found.get(key, known[0])
        if value not in known:
            raise self.wrong(key, f"{value!r} is none of {', '.join(known)}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.found.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"expected names with their settings, got {value!r}")
        return {self._name(key, name): given for name, given in value.items()}

    def named(self, key: str) -> dict[str, str]:
        """Name -> text, from a mapping, or from a list of things that are their own names."""
        value = self.found.get(key) or {}
        if isinstance(value, list):
            texts = [self._name(key, item) for item in value]
            if twice := {text for text in texts if texts.count(text) > 1}:
                raise self.wrong(key, f"{min(twice)!r} is given twice")
            return {text: text for text in texts}
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"expected a list, or names with what they stand for, got {value!r}")
        return {self._name(key, name): self._name(f"{key}: {name}", given) for name, given in value.items()}

    def _name(self, entry: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(entry, f"expected text, got {value!r}")
        return value

    def recipe(self, name: str, source: str) -> str:
        if source.endswith((".yaml", ".yml")):
            file = (self.path.parent / source).absolute()
            if not file.is_file():
                raise self.wrong(f"recipes: {name}", f"there is no file {file}")
            return str(file)
        try:
            recipes.get(source)
        except ConfigError as error:
            raise self.wrong("recipes", str(error)) from error
        return source

    def folder(self, name: str, place: str, needed: bool) -> str:
        folder = (self.path.parent / Path(place).expanduser()).absolute()
        if needed and not folder.is_dir():
            raise self.wrong(
                f"data: {name}", f"there is no folder {folder}; paths are beside the study file. --report needs none"
            )
        return str(folder)

    def settings(self, entry: str, values: Any) -> dict[str, Any]:
        if values is not None and not isinstance(values, Mapping):
            raise self.wrong(entry, f"expected settings, e.g. {{train.epochs: 2}}, got {values!r}")
        for taken, instead in (("seed", "seeds"), ("data.root", "data")):
            if taken in (values or {}):
                raise self.wrong(entry, f"{taken} belongs under '{instead}'")
        return {str(setting): value for setting, value in (values or {}).items()}

    def seeds(self) -> tuple[int, ...]:
        value = self.found["seeds"]
        if not isinstance(value, list) or any(type(seed) is not int or not 0 <= seed < 2**32 for seed in value):
            raise self.wrong("seeds", f"expected a list of whole numbers from 0, e.g. [0, 1, 2], got {value!r}")
        if len(set(value)) < len(value):
            raise self.wrong("seeds", f"{value} has one twice: that is one result, not two")
        return tuple(value)

    def measures(self) -> tuple[str, ...]:
        value = self.found.get("measures", list(MEASURES))
        if not isinstance(value, list) or not value:
            raise self.wrong("measures", f"expected a list of some of {', '.join(MEASURES)}, got {value!r}")
        for measure in value:
            if measure not in MEASURES:
                raise self.wrong("measures", f"'{measure}': unknown; {nearest(str(measure), MEASURES)}")
        return tuple(value)
