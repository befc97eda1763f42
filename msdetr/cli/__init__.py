"""The command line: ``msdetr train | sweep | eval | predict | candidates | inspect | failures | verify | card | recipes | doctor |
check-data | data | convert | export | course | notebook | demo``. Every command has ``--help``; ``--debug`` shows the traceback of an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from .. import __version__
from ..errors import MSDETRError
from ..streams import forgiving_output
from .app import app

from . import training, sweep, using, card, looking, failures, files, datasets, about, notebooks  # noqa: F401  # isort: skip  (each adds its commands, in this order)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 for an error (e.g. a full disk under what was printed), 2 for a mistyped command, 130 for
    Ctrl-C, 143 for SIGTERM."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *given, **more: _own_warning(*given) or usual(*given, **more)
    try:
        with forgiving_output() as output:
            status = _run(list(sys.argv[1:] if arguments is None else arguments))
            output.flush()
            if output.broke:
                print(f"msdetr: not all that was printed could be written: {output.error.strerror}", file=sys.stderr)
                return status or 1
            return status
    finally:
        warnings.formatwarning = usual


def _own_warning(message: Warning | str, category: type[Warning], filename: str, *_) -> str | None:
    """A warning of this package as a line to read, without the line of code that gave it; None for one of another."""
    own = category.__module__.startswith("msdetr") or Path(filename).is_relative_to(Path(__file__).parents[1])
    return f"msdetr: warning: {message}\n" if own else None


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments in (["--version"], ["-V"]):
        print(f"msdetr {__version__}")
        return 0
    try:
        app.cli(args=arguments, prog="msdetr", description=__doc__)
    except KeyboardInterrupt as error:
        print(f"msdetr: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130
    except SystemExit as error:
        if getattr(error, "message", None):
            print(f"msdetr: {error.message}", file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if debug or not isinstance(error, MSDETRError):
            raise
        print(f"msdetr: {error}", *getattr(error, "__notes__", ()), file=sys.stderr)
        return 1
    return 0
