"""The model card of a run with its candidate figure, which takes another look at the validation images."""

from __future__ import annotations

from pathlib import Path

from . import files
from .analysis.candidates import measure_run
from .config import load
from .engine import checkpoint as checkpoints
from .engine.card import CANDIDATES, known_candidates, write_card
from .engine.run import read_results
from .errors import RunDirectoryError
from .viz.candidates import candidate_figure

IMAGES = 500  # validation images that are looked at
NEEDED = ("data", "per_class", "class_names", "parameters", "epochs", "steps", "seconds", "device")  # of results.json


def complete(run_dir: str | Path, device: str = "auto", images: int = IMAGES, again: bool = False) -> Path:
    """Measures the candidates of the run's best checkpoint on its first validation images, draws them, and writes the card.

    again: also where they were measured at this checkpoint before.

    Raises RunDirectoryError for a run that is not finished, and the data set's errors.
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir) if run_dir.is_dir() else {}
    if results.get("status") != "finished" or any(results.get(name) is None for name in NEEDED):
        raise RunDirectoryError(
            f"{run_dir}: is no run that this version finished; a model card tells of one that is: train it to its end first"
        )
    if again or known_candidates(run_dir, results) is None:
        best = checkpoints.find(run_dir, checkpoints.verify_weights)
        table = measure_run(best.directory, limit=images, device=device).result()
        files.save_figure(candidate_figure({run_dir.resolve().name: table}), run_dir / f"{CANDIDATES}.png", dpi=150)
        files.write_json(run_dir / f"{CANDIDATES}.json", {"step": best.step, "numbers": table.summary()})
    return write_card(run_dir, load(run_dir / "config.yaml"), results)
