"""The command line's parts: commands are functions, their parameters the arguments, with the ranges beside the types."""

from __future__ import annotations

import errno
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import NonEmpty, Range
from ..errors import ConfigError

Argument = tyro.conf.Positional
# one option may have several pairs, and be given several times: --set a=1 b=2 --set c=3
Pairs = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE ...")]
Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Paths = Annotated[tuple[Path, ...], NonEmpty()]
app = tyro.extras.SubcommandApp()


def listed(pairs: Pairs) -> list[str]:
    """All pairs of an option, in the order in which they were typed."""
    return [pair for given in pairs for pair in given]


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function the command of this name. Its arguments are checked before it runs, against the ranges in their
    annotations, and paths by asking whether something is there; the ConfigError names the option as it was typed."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def checked(*positional: Any, **named: Any) -> None:
            hints = typing.get_type_hints(function, include_extras=True)
            for parameter, value in inspect.signature(function).bind(*positional, **named).arguments.items():
                for marker in _markers(hints[parameter]):
                    if value is not None:
                        marker.check(value, _option(parameter, hints[parameter]))
                for path in value if isinstance(value, tuple) else (value,):
                    if isinstance(path, Path):
                        _require_reachable(path, _option(parameter, hints[parameter]))
            function(*positional, **named)

        app.command(checked, name=name)
        return checked

    return register


def _option(parameter: str, declared: Any) -> str:
    """The name of an argument as it is typed."""
    positional = tyro.conf.Positional[int].__metadata__[0] in getattr(declared, "__metadata__", ())
    return parameter if positional else f"--{parameter.replace('_', '-')}"


def _require_reachable(path: Path, option: str) -> None:
    """Raises ConfigError for a path that cannot even be asked about; whether something is there is for the command to say."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            raise ConfigError(f"{option}: {path} cannot be reached ({error.strerror}); give another path") from error


def _markers(declared: Any) -> list[Any]:
    """The ranges of a type: its own, or those of a part of ``X | None``."""
    own = [marker for marker in getattr(declared, "__metadata__", ()) if hasattr(marker, "check")]
    return own + [marker for option in typing.get_args(declared) if option is not None for marker in _markers(option)]
