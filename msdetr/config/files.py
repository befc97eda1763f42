"""Configurations as YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml

from .. import files
from ..errors import ConfigError
from .parse import plain
from .schema import RunConfig, from_dict


def load(path: str | Path) -> RunConfig:
    """Reads a YAML file that ``RunConfig.save`` or a person wrote.

    Raises ConfigError where it cannot be read, is empty or no mapping, gives a name twice, or holds what is no setting.
    """
    return from_dict(files.read_yaml(path, ConfigError))


def to_yaml(config: RunConfig) -> str:
    """A configuration as YAML text that ``load`` reads back."""
    return yaml.safe_dump(plain(config.to_dict()), sort_keys=False)
