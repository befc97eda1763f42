"""Configurations as YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml

from ..errors import ConfigError
from .parse import plain
from .schema import RunConfig, from_dict


def load(path: str | Path) -> RunConfig:
    """Reads a YAML file that ``RunConfig.save`` or a person wrote. Raises ConfigError."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    return from_dict(values or {})


def to_yaml(config: RunConfig) -> str:
    """A configuration as YAML text that ``load`` reads back."""
    return yaml.safe_dump(plain(config.to_dict()), sort_keys=False)
