"""The model card of a run, README.md in its directory: data, classes, settings, numbers, with the header that model hubs read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import files
from ..config import RunConfig, flatten
from ..data import CocoDetection
from ..data.public import record_of
from ..errors import DataError, FileError
from .metric import unique_names

CARD = "README.md"
CANDIDATES = "figures/candidates"  # .json with the numbers, .png with the figure, where they were measured
_SETTINGS = (
    "model.backbone model.pretrained model.hidden_dim model.encoder_layers model.decoder_layers model.num_queries data.augment "
    "data.test_size data.max_size train.batch_size train.lr train.lr_backbone train.schedule train.weight_decay train.ema_decay"
)


def described_data(train_set: CocoDetection, val_set: CocoDetection, root: str | Path) -> dict[str, Any]:
    """What results.json says of the data: layout, source; of training and validation split, images, objects by class.

    Classes have the names of ``EvalResult.per_class``, each its own. Crowds, which are not trained on, do not count.
    """
    found: dict[str, Any] = {"name": Path(root).resolve().name}
    if train_set.part is not None:
        found["layout"] = train_set.part.layout.title
    with contextlib.suppress(DataError):
        found["source"] = record_of(root)
    for role, dataset in (("train", train_set), ("val", val_set)):
        table = dataset.annotations
        names = unique_names(dict(zip(table.category_ids.tolist(), table.category_names)))
        counts = np.bincount(table.category[~table.crowd], minlength=len(names)).tolist()
        found[role] = {
            "split": str(dataset.part) if dataset.part is not None else role,
            "images": len(dataset),
            "objects": dict(zip(names, counts)),
        }
    return found


def write_card(run_dir: str | Path, config: RunConfig, results: Mapping[str, Any]) -> Path:
    """Writes the card of a finished run; with the candidates, where they were measured at the best checkpoint. Raises WriteError."""
    run_dir = Path(run_dir)
    path, name = run_dir / CARD, run_dir.resolve().name
    try:
        files.write_atomically(path, card(name, config, results, known_candidates(run_dir, results)))
    except OSError as error:
        raise files.write_error(path, error) from error
    return path


def card(name: str, config: RunConfig, results: Mapping[str, Any], candidates: Mapping[str, Any] | None = None) -> str:
    """The text: a YAML header with the metrics, as hubs of models read it, and Markdown for people."""
    data, best = results["data"], results.get("best") or results["metrics"]
    val = data["val"]
    lines = [f"# {name}", "", _about(config, results), ""]
    lines += [
        "## Use",
        "",
        "```",
        f"msdetr predict {name} photograph.jpg   # or --draw, --coco, --table; in Python: msdetr.load",
    ]
    lines += [f"msdetr eval {name}", f"msdetr export {name} --output {name}.onnx", "```", ""]
    lines += [
        "## Numbers",
        "",
        f"On {val['split']}, {val['images']:,} images that also chose the checkpoint, so a test on others may come out lower.",
    ]
    if results.get("stopped_early"):
        lines += ["", f"The run {results['stopped_early']['text']}."]
    lines += ["", *_table(("", "AP", "AP50", "AP75", "small", "medium", "large"), _rows(results)), ""]
    lines += _classes(data, results) + _about_candidates(candidates)
    lines += ["## Data", "", *_about_data(data), "", "## Settings", ""]
    values = flatten(config)
    lines += _table(("setting", "value"), [(path, values[path]) for path in _SETTINGS.split()])
    lines += [
        "",
        "All of them: [config.yaml](config.yaml). Every line of the log: metrics.jsonl. All numbers: results.json.",
        "",
    ]
    lines += ["## Limits", "", _limits(data, best)]
    return _header(name, config, data, best) + "\n".join(lines).rstrip() + "\n"


def _header(name: str, config: RunConfig, data: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    tags = ["object-detection", "detr", "ms-detr" if config.ms_detr is not None else "deformable-detr"]
    dataset = {"name": data["name"], "type": data["name"], "split": data["val"]["split"]}
    metrics = [
        {"type": "map", "name": key, "value": round(best[key], 4)}
        for key in ("AP", "AP50", "AP75")
        if best.get(key) is not None
    ]
    result = {"task": {"type": "object-detection", "name": "Object detection"}, "dataset": dataset, "metrics": metrics}
    header = {"library_name": "msdetr", "pipeline_tag": "object-detection", "tags": tags}
    header["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n"


def _about(config: RunConfig, results: Mapping[str, Any]) -> str:
    methods = ", ".join(config.methods) or "none"
    classes, parameters = len(results["class_names"]), results["parameters"]["total"]
    return (
        f"A detector of {classes} {'class' if classes == 1 else 'classes'} of objects, trained with `{config.recipe}` (methods: {methods}; "
        f"{parameters / 1e6:.1f} million parameters while training), seed {config.seed}: {results['epochs']:g} epochs, "
        f"{results['steps']:,} steps, {results['seconds'] / 60:.0f} minutes on {results['device']}."
    )


def _rows(results: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    names, best = ("AP", "AP50", "AP75", "APs", "APm", "APl"), results.get("best")
    rows = (
        [
            (
                f"the best checkpoint (epoch {best['epoch']:.2f}), which all commands use",
                *(_share(best.get(n)) for n in names),
            )
        ]
        if best
        else []
    )
    return [*rows, ("the last", *(_share(results["metrics"].get(n)) for n in names))]


def _classes(data: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    train, val, scores = data["train"]["objects"], data["val"]["objects"], results["per_class"]
    rows = [(name, f"{number:,}", f"{val.get(name, 0):,}", _share(scores.get(name))) for name, number in train.items()]
    head = ("class", "objects in training", "in validation", "AP of the last checkpoint")
    return ["## Classes", "", *_table(head, rows), ""]


def _about_candidates(candidates: Mapping[str, Any] | None) -> list[str]:
    if candidates is None:
        return []
    rows = [(name, value if isinstance(value, int) else _share(value)) for name, value in candidates["numbers"].items()]
    about = "How many good boxes the decoder's last layer has for each object (the paper's Figures 1 and 2):"
    return [
        "## Candidates",
        "",
        about,
        "",
        f"![Candidate quality]({CANDIDATES}.png)",
        "",
        *_table(("", "value"), rows),
        "",
    ]


def _about_data(data: Mapping[str, Any]) -> list[str]:
    layout = f", in {data['layout']}'s layout" if data.get("layout") else ""
    lines = [f"- `{data['name']}`{layout}"]
    for role, part in (("training", data["train"]), ("validation", data["val"])):
        lines.append(f"- {role}: {part['split']}, {part['images']:,} images, {sum(part['objects'].values()):,} objects")
    source = data.get("source")
    if source:
        lines.append(f"- {source.get('source')}; licence: {source.get('licence')}; {source.get('attribution')}")
    return lines


def _limits(data: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    return (
        f"It has seen {data['train']['images']:,} images of one source; on others, other cameras, or objects of other sizes it may do worse "
        f"than AP {_share(best.get('AP'))}. Scores rank detections and are not calibrated probabilities: choose the threshold on images of "
        "your own. The weights come under the terms of the data and of the weights that training started from."
    )


def known_candidates(run_dir: Path, results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The numbers that were measured at the checkpoint that is the best now."""
    try:
        found = files.read_json(run_dir / f"{CANDIDATES}.json")
    except (FileError, OSError):
        return None
    step = (results.get("best") or {}).get("step", results.get("steps"))
    known = isinstance(found, dict) and found.get("step") == step and isinstance(found.get("numbers"), dict)
    return found if known else None


def forget_candidates(run_dir: Path, first: int) -> None:
    """Removes figure and numbers that were measured after ``first`` steps or more, of a model that is no more."""
    figure, numbers = run_dir / f"{CANDIDATES}.png", run_dir / f"{CANDIDATES}.json"
    try:
        kept = files.read_json(numbers)["step"] < first
    except (FileError, KeyError, TypeError):
        kept = False
    if not kept:
        numbers.unlink(missing_ok=True)
        figure.unlink(missing_ok=True)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
