"""What is done with a trained detector: ``msdetr eval | predict | candidates``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import json_text, replacing, save_figure
from ..streams import is_unread
from .app import Argument, Count, Paths, Share, command
from .output import number, require_file, require_folder, show_metrics, write

if TYPE_CHECKING:
    from ..predictor import NamedDetections


@command("eval")
def evaluate(
    model: Argument[Path],
    data: Path | None = None,
    split: str | None = None,
    max_detections: Count | None = None,
    limit: Count | None = None,
    device: str = "auto",
    output: Path | None = None,
    detections: Path | None = None,
) -> None:
    """Evaluate a run or checkpoint: the twelve COCO numbers and the AP of each class.

    For example:
        msdetr eval runs/first
        msdetr eval runs/first --data data/mine --split test --detections found.json

    Args:
        model: Run directory (its best checkpoint) or checkpoint directory.
        data: Folder with another data set, in any layout that `msdetr train` takes; the run's own by default.
        split: Its split; the run's validation images by default.
        max_detections: Kept per image; the run's own by default (100, or 300 in the 900-query recipes).
        limit: Only so many images, the first; all by default.
        device: auto, cpu, cuda or cuda:N.
        output: Also write the numbers to this JSON file.
        detections: Also write what was detected to this JSON file, in COCO's results format.
    """
    from .. import evaluate as run
    from ..results import evaluated_detections

    for path, option in ((output, "--output"), (detections, "--detections")):
        require_file(path, option)
    result = run(model, data, split, max_detections=max_detections, limit=limit, device=device)
    show_metrics(result.metrics)
    width = max(map(len, result.per_class), default=0)
    print("\nAP per class")
    for name, value in result.per_class.items():
        print(f"  {name:{width}}  {number(value)}")
    print("\n" + "\n".join(result.summary().splitlines()[1:]))
    if output:
        write(output, json_text(result.to_dict()) + "\n")
    if detections:
        write(detections, json_text(evaluated_detections(result), indent=None) + "\n")


@command("predict")
def predict(
    model: Argument[Path],
    images: Argument[Paths],
    min_score: Share = 0.3,
    max_detections: Count | None = None,
    device: str = "auto",
    output: Path | None = None,
    draw: Path | None = None,
    coco: Path | None = None,
    annotations: Path | None = None,
    table: Path | None = None,
) -> None:
    """Detect objects in images, one line per object: score, class, box (left, top, right, bottom in pixels).

    For example:
        msdetr predict runs/first photo.jpg --min-score 0.5
        msdetr predict runs/first photos --draw drawn --table found.csv
        msdetr predict runs/first data/mine/val --min-score 0 --coco results.json --annotations data/mine/annotations/instances_val.json

    Args:
        model: Run directory (its best checkpoint) or checkpoint directory.
        images: Image files, or folders of them.
        min_score: Leave out weaker detections.
        max_detections: Kept per image.
        device: auto, cpu, cuda or cuda:N.
        output: Write JSON to this file instead.
        draw: Folder for the images with the detections drawn in.
        coco: Write COCO JSON: with --annotations the list that COCO's evaluation reads, else a file of images, categories
            and scored annotations, as FiftyOne and labeling tools read it.
        annotations: COCO annotation file that has the ids of the images, and by name those of classes that the detector has no ids of.
        table: Write CSV with a line per object.
    """
    from .. import load, results
    from ..data import image_files
    from ..engine.progress import Progress

    for path, option in ((output, "--output"), (coco, "--coco"), (table, "--table")):
        require_file(path, option)
    require_folder(draw, "--draw")
    if annotations and not coco:
        raise ConfigError("--annotations: gives --coco its image ids; name the file to write with --coco")
    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    ids = results.image_ids(annotations, files) if annotations else None
    predictor = load(model, device)
    categories = results.category_ids(predictor, annotations)
    if not (output or draw or coco or table):
        for detections in predictor.stream(files, max_detections, min_score):
            _show(detections, min_score)
            sys.stdout.flush()
            if is_unread():  # and nothing else is made of them
                break
        return
    found = []
    with contextlib.closing(Progress(len(files), title="predict", unit="image")) as progress:
        for detections in predictor.stream(files, max_detections, min_score):
            found.append(detections)
            if draw:
                _draw(detections, draw / f"{len(found):0{len(str(len(files)))}}-{detections.path.stem}.png")
            progress.advance()
    if output:
        write(output, json_text({str(detections.path): _rows(detections) for detections in found}) + "\n")
    if coco:
        content = (
            results.coco_dataset(found, categories) if ids is None else results.coco_results(found, ids, categories)
        )
        write(coco, json_text(content) + "\n")
    if table:
        write(table, results.table(found))
    written = [str(path) for path in (output, draw, coco, table) if path]
    print(f"{sum(map(len, found)):,} detections in {len(files):,} images: {', '.join(written)}")


def _rows(detections: NamedDetections) -> list[dict[str, Any]]:
    return [
        {"score": round(score, 4), "class": name, "box": [round(x, 2) for x in box]}
        for score, name, box in zip(detections.scores.tolist(), detections.names, detections.boxes.tolist())
    ]


def _show(detections: NamedDetections, min_score: float) -> None:
    print(f"{detections.path}: {len(detections)} detections with a score of at least {min_score:g}")
    for row in _rows(detections):
        print(f"  {row['score']:.3f}  {row['class']:20}  " + "  ".join(f"{x:7.1f}" for x in row["box"]))


def _draw(detections: NamedDetections, target: Path) -> None:
    from ..data import to_pixels
    from ..viz.detections import drawn

    with replacing(target) as staging:
        drawn(to_pixels(detections.path), detections).save(staging)


@command("candidates")
def candidates(
    runs: Argument[Paths],
    data: Path | None = None,
    split: str | None = None,
    limit: Count | None = None,
    device: str = "auto",
    output: Path = Path("runs/candidates"),
) -> None:
    """Measure candidate quality (Figures 1 and 2 of the paper) of one run or several side by side.

    For example:
        msdetr candidates runs/baseline runs/ms-detr-c

    Args:
        runs: Run or checkpoint directories.
        data: Folder with another data set; each run's own validation images by default.
        split: Its split.
        limit: Only so many images, the first; all by default.
        device: auto, cpu, cuda or cuda:N.
        output: Folder for the figure and one JSON file per run.
    """
    from ..analysis.candidates import measure_run
    from ..viz.candidates import candidate_figure

    require_folder(output, "--output")
    tables = {}
    for run in runs:
        quality = measure_run(run, data, split, limit, device)
        name = _name(run, tables)
        quality.save(output / f"{name.strip('./').replace('/', '-')}.json")
        tables[name] = quality.result()
        print(name)
        for what, value in tables[name].summary().items():
            print(f"  {what:28} {value if isinstance(value, int) else number(value)}")
    save_figure(candidate_figure(tables), output / "candidates.png", dpi=150)
    print(f"figure and numbers are in {output}")


def _name(run: Path, taken: Container[str]) -> str:
    """What to call a run: as its folder, or by its path where another has that name."""
    folder = run.resolve()
    return folder.name if folder.name not in taken else str(run if run.name.strip(".") else folder)
