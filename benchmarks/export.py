"""A detector's ONNX file against the detector itself, on random inputs of mixed sizes and paddings.

    python benchmarks/export.py RUN [--inputs 1000]

RUN: a finished run. Both ways of writing the operator are exported; results go to results/export.json.
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
    options = parser.parse_args()
    predictor = msdetr.load(options.run, "cpu")
    graph, results = Graph(predictor).eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        for operator in ("gather", "grid-sample"):
            path = export(options.run, "onnx", Path(folder) / f"{operator}.onnx", operator=operator)
            compared = compare(graph, onnx_function(path), options.inputs, predictor.config.data.test_size or 128)
            print(f"{operator}: {path.stat().st_size / 2**20:.1f} MiB, {compared}", flush=True)
            results[operator] = asdict(compared) | {"bytes": path.stat().st_size, "passed": compared.passed}
    settings = argparse.Namespace(inputs=options.inputs, recipe=predictor.config.recipe)
    machine.save("export", __doc__, "cpu", settings, {"tolerance": 1e-4, "operators": results})


if __name__ == "__main__":
    main()
