"""A detector's ONNX file against the detector itself, on random inputs of mixed sizes and paddings.

    python benchmarks/export.py RUN [--inputs 1000] [--size PIXELS]

RUN: a finished run. Both ways of writing the operator are exported; results go to results/export.json, after each of them.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import machine

import msdetr
from msdetr.export import Graph, compare, export
from msdetr.export.check import onnx_function


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument(
        "--size", type=int, default=0, help="images have sides of 0.75 to 1.5 times this; the run's by default"
    )
    options = parser.parse_args()
    predictor = msdetr.load(options.run, "cpu")
    size = options.size or predictor.config.data.test_size or 128
    settings = argparse.Namespace(inputs=options.inputs, recipe=predictor.config.recipe, size=size)
    graph, results = Graph(predictor).eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        for operator in ("gather", "grid-sample"):
            path = export(options.run, "onnx", Path(folder) / f"{operator}.onnx", operator=operator)
            compared = compare(graph, onnx_function(path), options.inputs, size)
            print(f"{operator}: {path.stat().st_size / 2**20:.1f} MiB, {compared}", flush=True)
            results[operator] = asdict(compared) | {"bytes": path.stat().st_size, "passed": compared.passed}
            machine.save("export", __doc__, "cpu", settings, {"tolerance": 1e-4, "operators": results})


if __name__ == "__main__":
    main()
