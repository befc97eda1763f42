"""The configuration of a run: frozen dataclasses, one source for the command line, YAML files and papermill parameters.

schema: the sections and ``RunConfig``; a field's range stands beside it. fields: what a field can say about itself.
sections: optional sections that methods register. parse: from text and mappings to checked values. files: YAML.
"""

from ..errors import ConfigError
from .fields import Harmless, NonEmpty, Range
from .files import load, to_yaml
from .parse import Setting, nearest, parse_overrides, plain
from .schema import (
    DataConfig,
    LossConfig,
    MatchingConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    all_paths,
    all_settings,
    flatten,
    from_dict,
    harmless_in_comparison,
    harmless_on_resume,
)
from .sections import register_section, registered_sections, unregister_section

__all__ = [
    "ConfigError",
    "DataConfig",
    "Harmless",
    "LossConfig",
    "MatchingConfig",
    "ModelConfig",
    "NonEmpty",
    "Range",
    "RunConfig",
    "Setting",
    "TrainConfig",
    "all_paths",
    "all_settings",
    "flatten",
    "from_dict",
    "harmless_in_comparison",
    "harmless_on_resume",
    "load",
    "nearest",
    "parse_overrides",
    "plain",
    "register_section",
    "registered_sections",
    "to_yaml",
    "unregister_section",
]
