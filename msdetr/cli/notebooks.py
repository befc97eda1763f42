"""Notebooks: ``msdetr course | notebook | demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import course
from ..config import parse_overrides
from ..files import parse_scalar
from ..notebook import run_notebook
from .app import Argument, Index, Pairs, command, listed
from .output import require_file, require_folder


@command("course")
def copy_course(folder: Argument[Path] = Path("msdetr-course"), slides: bool = False) -> None:
    """Copy the course's notebooks, with the samples they use and the answers to their exercises, into a folder to work in.

    Args:
        folder: Where to; files that were changed there are never overwritten.
        slides: Also make slides of every notebook, in FOLDER/slides, which need no network (pip install msdetr[slides]).
    """
    if slides:
        from ..course.slides import build

        made = build(folder / "slides")
        print(f"slides of {len(made)} notebooks; open {folder / 'slides' / 'index.html'} in a browser")
    copied = course.copy(folder)
    print(f"{len(copied)} notebooks in {folder / 'notebooks'}; open them with: jupyter lab {folder / 'notebooks'}")


@command("notebook")
def notebook(
    path: Argument[Path],
    output: Path | None = None,
    parameters: Annotated[Pairs, tyro.conf.arg(aliases=["-p"], metavar="NAME=VALUE ...")] = (),
    kernel: str | None = None,
    quiet: bool = False,
) -> None:
    """Execute a notebook with papermill: parameters checked first, success only if every cell ran to its end.

    For example:
        msdetr notebook 05_train -p recipe=shapes/ms-detr-c epochs=2 --output runs/first/05_train.ipynb

    Args:
        path: The notebook: a file, or one of the course by its name.
        output: The executed notebook; runs/NAME.ipynb by default.
        parameters: Values for its parameters cell.
        kernel: Jupyter kernel; the notebook's own by default.
        quiet: Do not repeat what the notebook writes.
    """
    require_file(output, "--output")
    values = {name: _literal(value) for name, value in parse_overrides(listed(parameters)).items()}
    print(f"executed: {run_notebook(course.find(path), output, values, progress=not quiet, kernel=kernel)}")


DEMO = ("shapes/baseline", "shapes/ms-detr-c")


@command("demo")
def demo(runs: Path = Path("runs"), notebooks: Path | None = None, overrides: str = "", seed: Index = 0) -> None:
    """Train the baseline and MS-DETR (c) on the embedded data set through their notebooks, compare them, draw the figures.

    Goes on where an earlier call was interrupted. Takes ten to thirty minutes on two CPU cores.

    Args:
        runs: Where to leave everything.
        notebooks: The folder of the notebooks; those of the course by default.
        overrides: Any settings of both recipes, e.g. "train.epochs=1".
        seed: Seed of both runs.
    """
    require_folder(runs, "--runs")
    notebooks = notebooks or course.root() / "notebooks"
    runs, folders = runs.absolute(), []  # a relative path in a notebook is one of the project, not of this folder
    for recipe in DEMO:
        folders.append(runs / f"{recipe.replace('/', '-')}-seed{seed}")
        print(f"\n=== training {recipe} in {folders[-1]}", flush=True)
        wanted = {
            "recipe": recipe,
            "seed": seed,
            "overrides": overrides,
            "runs": str(runs),
            "run_name": folders[-1].name,
        }
        run_notebook(notebooks / "05_train.ipynb", folders[-1] / "05_train.ipynb", wanted)
    both = [str(folder) for folder in folders]
    results = [folder / "05_train.ipynb" for folder in folders]
    for name, folder in (("06_compare_runs", runs / "compare"), ("07_candidate_quality", runs / "candidates")):
        print(f"\n=== {name}", flush=True)
        results.append(
            run_notebook(notebooks / f"{name}.ipynb", folder / f"{name}.ipynb", {"runs": both, "output": str(folder)})
        )
    print("\n" + (runs / "compare" / "comparison.md").read_text())
    print("executed notebooks:", *results, f"tables and figures: {runs / 'compare'}, {runs / 'candidates'}", sep="\n  ")


def _literal(text: str) -> Any:
    """true, 3, 1e-4 and null as values, anything else as text: what papermill's own -p does."""
    return parse_scalar(text)
