"""The course's notebooks as files: in a checkout those of its root, in an installed package those it brought along."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import ConfigError, NotebookError

PARTS = ("notebooks", "data", "docs", "benchmarks")  # what notebooks link to, and the results that they show


def root() -> Path:
    """The folder with ``notebooks/``, and the samples and pages that they refer to.

    Raises NotebookError for an installation without them.
    """
    brought, sources = Path(__file__).parent, Path(__file__).resolve().parents[2]
    for folder in (brought, sources):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise NotebookError(
        f"this installation of msdetr has no notebooks (looked in {brought} and {sources}); reinstall it"
    )


def results(study: str) -> Path | None:
    """The folder with a study's committed results, e.g. ``ablations``; None for an installation without them."""
    try:
        folder = root() / "benchmarks" / "results" / study
    except NotebookError:
        return None
    return folder if folder.is_dir() else None


def find(name: str | Path) -> Path:
    """A notebook by its path, or one of the course by its name or number: ``05_train``, ``5``.

    Raises NotebookError where there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = sorted((root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for notebook in known:
        if str(name) in (notebook.name, notebook.stem) or (
            str(name).isdigit() and int(str(name)) == int(notebook.name[:2])
        ):
            return notebook
    names = ", ".join(notebook.stem for notebook in known)
    raise NotebookError(f"{name}: there is no such file, and no notebook of the course has that name: {names}")


def copy(target: str | Path) -> list[Path]:
    """Copies the course into a folder, made where it is missing; the notebooks copied.

    Raises ConfigError, before anything is copied, where a file of the same name is there with other contents: a notebook
    that somebody worked in is never overwritten.
    """
    source, target = root(), Path(target)
    files = [path for part in PARTS for path in sorted((source / part).rglob("*")) if _belongs(path, source)]
    wanted = {path: target / path.relative_to(source) for path in files}
    changed = [copied for path, copied in wanted.items() if copied.exists() and not _same(path, copied)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ConfigError(f"{changed[0]}{more}: there already, with other contents; give another folder")
    for path, copied in wanted.items():
        if copied.exists():  # the same
            continue
        try:
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        except OSError as error:
            raise ConfigError(f"{copied}: cannot be written ({error.strerror}); give another folder") from error
    return [copied for copied in wanted.values() if copied.suffix == ".ipynb"]


def _belongs(path: Path, source: Path) -> bool:
    """Whether a file is part of the course: in a checkout the folders hold other things beside it."""
    part, *rest = path.relative_to(source).parts
    solution = rest[0] == "solutions" and path.suffix == ".py"
    page = path.suffix == ".md" and (len(rest) == 1 or rest[0] == "teaching")
    result = (
        rest[0] == "results" and path.suffix == ".json" and "runs" not in rest
    )  # a sweep leaves its runs beside its cells
    parts = {"notebooks": path.suffix == ".ipynb" or solution, "docs": page, "benchmarks": result}
    hidden = any(name.startswith(".") for name in rest)
    return path.is_file() and not hidden and parts.get(part, rest[0] in ("samples", "README.md"))


def _same(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()
