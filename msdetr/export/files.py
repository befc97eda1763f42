"""Writes a detector as ONNX, as an exported program of PyTorch, or as a checkpoint of nothing but what predicts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from ..checks import count
from ..engine import checkpoint as checkpoints
from ..errors import ConfigError, FileError
from ..files import json_text, make_folder, parse_json, read_json, replacing, write_atomically
from ..ops import backend
from ..predictor import Predictor, load
from .graph import Graph

Kind = Literal["onnx", "pt2", "weights"]
Operator = Literal["gather", "grid-sample"]
OPSETS = range(18, 24)  # that the exporter writes
METADATA = "msdetr"  # the name of the metadata in a file
_BACKENDS = {"gather": "gather", "grid-sample": "plain"}


def export(
    model: str | Path,
    to: Kind,
    output: str | Path,
    *,
    operator: Operator = "gather",
    raw: bool = False,
    max_detections: int | None = None,
    opset: int = 18,
    overwrite: bool = False,
) -> Path:
    """Writes the detector of a finished run, or of a checkpoint; the path written.

    to: "onnx" and "pt2" hold a ``Graph`` of any batch and image size; "weights" is a checkpoint directory without what only
    training needs, which ``msdetr.load`` and all commands read.
    operator: deformable attention as row gathers, or as GridSample.
    raw, max_detections: see ``Graph``.

    Raises ConfigError for a run that is not finished, an unsupported opset, a missing extra, and what is there already: a file
    unless ``overwrite``, of folders any but an empty one or, with ``overwrite``, earlier weights; CheckpointError; WriteError.
    """
    output = Path(output).absolute()
    if to not in ("onnx", "pt2", "weights"):
        raise ConfigError(f"to: {to!r} is none of onnx, pt2, weights")
    _require_place(output, to, overwrite)
    if to == "onnx":
        require_onnx(opset)
    require_finished(Path(model))
    make_folder(output.parent)
    if to == "weights":
        return _export_weights(model, output)
    if operator not in _BACKENDS:
        raise ConfigError(f"operator: {operator!r} is none of {', '.join(_BACKENDS)}")
    predictor = load(model, "cpu")
    graph = Graph(predictor, raw, max_detections).eval()
    metadata = json_text(describe(predictor, graph, operator), indent=None)
    with _quiet(), backend(_BACKENDS[operator]), torch.no_grad():
        program = torch.export.export(graph, example(graph), dynamic_shapes=dynamic_shapes(graph), strict=False)
        if to == "pt2":
            content = io.BytesIO()  # torch writes a file itself, and a full disk is then none of Python's errors
            torch.export.save(program, content, extra_files={METADATA: metadata})
            write_atomically(output, content.getbuffer())
        else:
            names = {"input_names": graph.inputs, "output_names": graph.outputs}
            converted = torch.onnx.export(program, opset_version=opset, verbose=False, optimize=False, **names)
            converted.model.metadata_props[METADATA] = metadata
            with replacing(output) as staging:
                converted.save(staging, external_data=False)
    return output


def _is_exported(folder: Path) -> bool:
    """Whether a folder is what "weights" wrote, and nothing else is in it."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    content = read_json(manifest, FileError)
    known = {"manifest.json", *content.get("files", ())}
    return bool(content.get("stripped")) and {path.name for path in folder.iterdir()} <= known


def _require_place(output: Path, to: str, overwrite: bool) -> None:
    """Raises ConfigError where something would be lost: of folders only an empty one is taken, or exported weights are replaced."""
    if output.is_dir():
        if to != "weights":
            raise ConfigError(f"{output}: is a folder; name a file to write, e.g. {output / f'detector.{to}'}")
        if not any(output.iterdir()):
            return
        if not _is_exported(output):
            raise ConfigError(
                f"{output}: is a folder with other things in it; name a new one, e.g. {output / 'weights'}"
            )
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give another name, or overwrite=True (--overwrite)")


def _export_weights(model: str | Path, output: Path) -> Path:
    """A checkpoint with the weights that predict: the moving average, where there is one."""
    checkpoint = checkpoints.find(model, checkpoints.verify_weights)
    predictor = load(checkpoint.directory, "cpu")
    kept = {name: value for name, value in checkpoint.manifest.items() if name not in ("files", "sha256", "format")}
    weights = {name: tensor.contiguous() for name, tensor in predictor.detector.state_dict().items()}
    checkpoints.write(output, {"model": weights}, kept | {"stripped": True})
    return output


def require_finished(model: Path) -> None:
    """Raises ConfigError for a run directory whose training has not ended: its best checkpoint is not its last word."""
    results = model / "results.json"
    if not results.is_file():
        return
    status = read_json(results, FileError).get("status")
    if status != "finished":
        raise ConfigError(
            f"{model}: this run is not finished (status: {status}); resume it, or export one of its checkpoints as it is: "
            f"{model / 'checkpoints'}/step_…"
        )


def require_onnx(opset: int) -> None:
    """Raises ConfigError where the extra is missing or the opset is none that is written."""
    if count(opset, "opset") not in OPSETS:
        raise ConfigError(f"opset: {opset} is not supported; use one from {OPSETS[0]} to {OPSETS[-1]}")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'exporting ONNX needs onnxscript ({error}); pip install "msdetr[onnx]"') from error


def describe(predictor: Predictor, graph: Graph, operator: str) -> dict[str, Any]:
    """What a program that uses the file needs to know beside its tensors."""
    data = predictor.config.data
    return {
        "msdetr": __version__,
        "recipe": predictor.config.recipe,
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "resize": {"shortest_side": data.test_size, "longest_side": data.max_size},
        "max_detections": None if graph.raw else graph.max_detections,
        "raw": graph.raw,
        "operator": operator,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
    }


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What ``describe`` said of an exported file. Raises FileError for one that is not there or was not written here, and
    ConfigError where ONNX is asked for and not installed."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: there is no such file")
    if path.suffix == ".onnx" and importlib.util.find_spec("onnx") is None:
        raise ConfigError('reading ONNX needs onnx; pip install "msdetr[onnx]"')
    found: str | None = None
    with contextlib.suppress(Exception):  # whatever the file is, it was not written here
        found = _READERS[path.suffix](path)
    if found is None:
        raise FileError(f"{path}: is no file that `msdetr export` wrote")
    return parse_json(found.encode(), path, FileError)


def _read_onnx(path: Path) -> str | None:
    import onnx

    properties = onnx.load(path, load_external_data=False).metadata_props
    return next((entry.value for entry in properties if entry.key == METADATA), None)


def _read_pt2(path: Path) -> str | None:
    extra = {METADATA: ""}
    torch.export.load(path, extra_files=extra)
    return extra[METADATA] or None


_READERS: Mapping[str, Callable[[Path], str | None]] = {".onnx": _read_onnx, ".pt2": _read_pt2}


def example(graph: Graph) -> tuple[torch.Tensor, ...]:
    """Inputs of odd sizes, so that no size is taken for a constant or for another one."""
    height, width = 203, 331
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, :, 290:] = True
    images = torch.zeros(2, 3, height, width, dtype=torch.float32 if graph.raw else torch.uint8)
    return (images, mask) if graph.raw else (images, mask, torch.tensor([[height, width], [height, 290]]))


def dynamic_shapes(graph: Graph) -> dict[str, Any]:
    free = torch.export.Dim.DYNAMIC
    axes = {"images": {0: free, 2: free, 3: free}, "mask": {0: free, 1: free, 2: free}, "sizes": {0: free}}
    return {name: axes[name] for name in graph.inputs}


@contextlib.contextmanager
def _quiet():
    """Without what the exporter says about itself; its errors are raised."""
    import logging

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
