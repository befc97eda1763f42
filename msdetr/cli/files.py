"""Data sets and weights as files: ``msdetr check-data | convert | export | verify``."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import CheckpointError, ConfigError, InputError
from ..files import save_figure, write_atomically
from .app import Argument, Count, Index, command
from .output import new_folder, number, require_file, require_folder

if TYPE_CHECKING:
    from torch import Tensor


@command("check-data")
def check_data(
    path: Argument[Path], images: Path | None = None, decode: bool = False, thumbnails: Path | None = None
) -> None:
    """Check a data set before training on it: counts, classes, box sizes, suspicious annotations. Exits 1 on errors.

    For example:
        msdetr check-data data/mine
        msdetr check-data annotations.json --images photos --decode

    Args:
        path: Folder in COCO's, YOLO's or Pascal VOC's layout, or one COCO annotation file.
        images: The folder with the images of an annotation file.
        decode: Decode every image, rather than look at its header only.
        thumbnails: Folder for pictures of the most suspicious annotations.
    """
    from ..data import check

    require_folder(thumbnails, "--thumbnails")
    report = check(path, images, decode=decode)
    print(report)
    if thumbnails is not None:
        from ..viz.suspicions import suspicion_figure

        for split in report.splits:
            if split.suspicions:
                target = thumbnails / f"{split.split or split.file.stem}.png"
                save_figure(suspicion_figure(split), target, dpi=120)
                print(f"pictures of what is suspicious: {target}")
    if not report.ok:
        raise SystemExit(1)


@command("convert")
def convert(
    source: Argument[Path],
    target: Argument[Path],
    recipe: str = "coco/ms-detr-pp-300",
    annotations: Path | None = None,
    to_released: bool = False,
) -> None:
    """Turn a released file (.pth) into a checkpoint of this package, or back.

    For example:
        msdetr convert ms_detr_300.pth runs/released --recipe coco/ms-detr-300
        msdetr convert runs/mine mine.pth --to-released

    Files of MS-DETR, Deformable DETR, H-DETR, DETA, DN-DETR and DINO. Nothing in one is executed: it is read with
    weights_only=True.

    Args:
        source: The .pth file; or a run or checkpoint with --to-released.
        target: Run directory to make; or the .pth file to write with --to-released.
        recipe: The recipe of the released file, or a .yaml file.
        annotations: COCO annotation file with the names of the classes.
        to_released: The other direction.
    """
    import torch

    from ..engine import checkpoint as checkpoints
    from ..model.convert import to_released as released_names

    if not to_released:
        with new_folder(target, "target"):
            written, report = _from_released(source, target, recipe, annotations)
        print(f"{written}: {report}")
        return
    require_file(target, "target")
    found = checkpoints.find(source, checkpoints.verify_weights)
    try:
        released = released_names(found.weights(), found.config)
    except InputError as error:
        raise ConfigError(f"{source}: {error}") from error
    content = io.BytesIO()  # torch writes a file itself, and a full disk is then none of Python's errors
    torch.save({"model": released}, content)
    write_atomically(target, content.getbuffer())
    print(f"{target}: the weights of {found.directory} under the released names")


def _from_released(source: Path, target: Path, recipe: str, annotations: Path | None) -> tuple[Path, str]:
    """Writes the checkpoint of a released file; where it is, and what was taken over. Raises ConfigError naming the recipes that
    fit a file which does not fit its own."""
    from ..data import Categories, read_annotations
    from ..engine import checkpoint as checkpoints
    from ..methods import build_detector
    from ..model.convert import from_released, read_released
    from ..recipes import resolve

    config = resolve(recipe)
    state = read_released(source)
    detector = build_detector(config.override({"model.pretrained": "none"}))
    try:
        taken = checkpoints.load_weights(detector, from_released(state, config))
    except (InputError, CheckpointError) as error:
        fitting = [f"--recipe {name}" for name in _fitting(state) if name != recipe]
        if fitting:
            advice = f"it fits {' or '.join(fitting)}"
        elif isinstance(error, InputError):
            raise ConfigError(f"{source}: {error}") from error
        else:
            advice = "nor does it fit another one: give --recipe its .yaml file"
        raise ConfigError(f"{source}: does not fit the recipe {recipe}; {advice} ({error})") from error
    names, ids = [f"category {i}" for i in range(config.model.num_classes)], list(range(config.model.num_classes))
    if annotations is not None:
        make = Categories.raw if config.data.raw_category_ids else Categories.contiguous
        categories = make(read_annotations(annotations)[0])
        names, ids = list(categories.names), list(categories.category_ids)
    written = checkpoints.write(
        target / "checkpoints" / f"step_{0:08d}",
        {"model": detector.state_dict()},
        {
            "step": 0,
            "epoch": 0.0,
            "config": config.to_dict(),
            "class_names": names,
            "category_ids": ids,
            "metrics": {},
            "training": {},
        },
    )
    return written.directory, taken.report()


def _fitting(state: Mapping[str, Tensor]) -> Iterator[str]:
    """The recipes that a released file fits, by the names and shapes of its tensors."""
    import torch

    from .. import recipes
    from ..methods import build_detector
    from ..model.convert import from_released

    for name in recipes.names():
        if not name.startswith("coco/"):
            continue
        config = recipes.get(name)
        try:
            given = {key: tensor.shape for key, tensor in from_released(state, config).items()}
        except InputError:  # names that this recipe's model does not have
            continue
        with torch.device("meta"):
            wanted = build_detector(config.override({"model.pretrained": "none"})).state_dict()
        if given == {key: tensor.shape for key, tensor in wanted.items()}:
            yield name


@command("export")
def export_model(
    model: Argument[Path],
    output: Path,
    to: Literal["onnx", "pt2", "weights"] = "onnx",
    operator: Literal["gather", "grid-sample"] = "gather",
    raw: bool = False,
    max_detections: Count | None = None,
    opset: Count = 18,
    check: Index = 100,
    overwrite: bool = False,
) -> None:
    """Write a trained detector as a file for other programs, for any batch and image size, and prove that it predicts the same.

    For example:
        msdetr export runs/mine --output mine.onnx
        msdetr export runs/mine --to weights --output mine-weights

    An ONNX or pt2 file takes images [B, 3, H, W] (uint8 RGB), a mask [B, H, W] (True on padding) and sizes [B, 2] (height, width);
    it gives scores, labels and boxes, the best first.

    Args:
        model: Finished run (its best checkpoint), or a checkpoint.
        output: File to write; for weights, a folder.
        to: onnx; pt2, for torch.export.load; weights, a small checkpoint to share, which every command here reads.
        operator: Deformable attention as Gather, which means the same in every engine, or as GridSample.
        raw: Normalised images in, class logits and relative boxes out: no pre- and post-processing.
        max_detections: Kept per image; the run's own by default.
        opset: Of ONNX.
        check: Random inputs to compare on, of mixed sizes and paddings; 0: do not compare.
        overwrite: Replace a file that is there, or a folder of such weights.
    """
    from ..export import Graph, compare, export
    from ..export.check import onnx_function, program_function, require_onnxruntime
    from ..predictor import load

    if to != "weights":
        require_file(output, "--output")
    if to == "onnx" and check:
        require_onnxruntime()
    written = export(
        model, to, output, operator=operator, raw=raw, max_detections=max_detections, opset=opset, overwrite=overwrite
    )
    size = sum(path.stat().st_size for path in ([written] if written.is_file() else written.iterdir()))
    print(f"{written}: {size / 2**20:.1f} MiB")
    if to == "weights" or not check:
        return
    predictor = load(model, "cpu")
    graph = Graph(predictor, raw, max_detections).eval()
    function = onnx_function(written) if to == "onnx" else program_function(written)
    compared = compare(graph, function, check, predictor.config.data.test_size or 320, progress=True)
    print(compared)
    if not compared.passed:
        raise ConfigError(f"{written}: does not predict what {model} does; do not use it, and tell us with its recipe")


@command("verify")
def verify(path: Argument[Path], config: bool = False) -> None:
    """Say what a run or checkpoint holds, and verify every byte of its checkpoints. Exits 1 if one is damaged.

    Args:
        path: Run directory or checkpoint directory.
        config: Show the whole configuration.
    """
    from ..engine import checkpoint as checkpoints
    from ..engine.run import read_results
    from ..methods import variant_of

    directories = checkpoints.available(path) or [path]
    damaged, last = 0, None
    try:
        if state := read_results(path):
            print(f"{path}: {state.get('status')}" + (f" ({state['error']})" if state.get("error") else ""))
    except CheckpointError as error:
        damaged += 1
        print(f"results.json: DAMAGED: {error}")
    for directory in directories:
        try:
            found = checkpoints.verify(directory)
        except CheckpointError as error:
            damaged += 1
            print(f"{directory.name}: DAMAGED: {error}")
            with contextlib.suppress(CheckpointError):
                last = checkpoints.verify_weights(directory)
                print(f"{directory.name}: its weights alone are intact: it can predict and be evaluated, not resumed")
            continue
        size, files = found.bytes / 2**20, ", ".join(sorted(found.files))
        score = f", AP {number(found.metrics['AP'])}" if "AP" in found.metrics else ""
        print(f"{directory.name}: verified, epoch {found.epoch:.2f}{score}, {size:.1f} MiB ({files})")
        last = found
    if last is not None:
        model = last.config.model
        print(f"recipe {last.config.recipe}, variant {variant_of(last.config)}, {model.num_queries} queries, {len(last.class_names)} classes: "
              + ", ".join(last.class_names[:10]) + (" ..." if len(last.class_names) > 10 else ""))  # fmt: skip
        if config:
            print(json.dumps(last.config.to_dict(), indent=1))
    if damaged:
        raise SystemExit(1)
