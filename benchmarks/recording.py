"""What recording the matching costs a real training run.

    python benchmarks/recording.py [--steps 400] [--images 160]

Trains ``shapes/ms-detr-c`` with the recorder that notebook 05 uses, at its defaults, and says which share of the run's time it
took. Writes results/recording.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import machine

from msdetr import recipes
from msdetr.analysis.stability import MatchRecorder
from msdetr.data import build_datasets
from msdetr.engine import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=160)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = recipes.get("shapes/ms-detr-c")
        changes = {"data.root": f"{folder}/shapes", "data.num_train": options.images, "data.num_val": 20}
        changes |= {"train.epochs": options.steps * config.train.batch_size / options.images, "train.eval_every": 0}
        config = config.override(changes)
        _, validation = build_datasets(config)
        run_dir = Path(folder) / "run"
        recorder = MatchRecorder.of_run(run_dir, validation, config, total_steps=options.steps)
        results = train(config, run_dir, device="cpu", progress=False, on_step=recorder)
        records = len(list((run_dir / "matching").glob("step_*.npz")))
    result = {
        "records": records,
        "seconds of recording": recorder.seconds,
        "seconds of the run": results["seconds"],
        "share": recorder.seconds / results["seconds"],
    }
    print(
        f"{records} records took {recorder.seconds:.2f} s of {results['seconds']:.1f} s: {100 * result['share']:.2f} %"
    )
    machine.save("recording", __doc__, "cpu", options, result)


if __name__ == "__main__":
    main()
