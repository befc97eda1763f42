"""The command line: ``msdetr train | eval | predict | candidates | recipes | doctor | check-data | convert | inspect |
notebook | demo``. Every command has ``--help``; ``--debug`` shows the traceback of an error."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from . import __version__
from .config import parse_overrides
from .errors import ConfigError, MSDETRError
from .notebook import run_notebook

Argument = tyro.conf.Positional
Pairs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]
app = tyro.extras.SubcommandApp()


@app.command(name="train")
def train(
    recipe: Argument[str],
    run_dir: Path | None = None,
    set: Pairs = (),
    data: Path | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    nproc: int = 1,
    resume: str = "auto",
    init_from: Path | None = None,
    reset_class_head: bool = False,
    init_partial: bool = False,
    allow_config_change: bool = False,
    quiet: bool = False,
) -> None:
    """Train a detector.

    For example:
        msdetr train shapes/ms-detr-c
        msdetr train shapes/ms-detr-c --run-dir runs/d --set model.variant=d train.lr=5e-4
        msdetr train coco/ms-detr-pp-300 --data data/coco --nproc 8
        torchrun --nproc-per-node 8 -m msdetr train coco/ms-detr-pp-300 --data data/coco

    The run directory gets config.yaml, metrics.jsonl, results.json and checkpoints/. The same command again goes on from
    the last checkpoint. SIGTERM and Ctrl-C finish the step and save first.

    Args:
        recipe: Name of a recipe (see `msdetr recipes`), or a .yaml file such as a run's config.yaml.
        run_dir: Where to leave everything; runs/RECIPE-seedN by default.
        set: Any fields of the configuration, e.g. train.lr=1e-4 model.num_queries=100.
        data: Folder with the data set in COCO's layout; short for --set data.root=...
        epochs: Short for --set train.epochs=...
        seed: Short for --set seed=...
        device: auto, cpu, cuda or cuda:N.
        nproc: Processes on this machine, e.g. one per GPU; starts torchrun.
        resume: auto: go on from the newest checkpoint if there is one. never: insist on a fresh directory. Or a checkpoint.
        init_from: Checkpoint or run whose weights to start from.
        reset_class_head: With --init-from: start the class heads anew where the number of classes differs.
        init_partial: With --init-from: take over whatever fits and report the rest.
        allow_config_change: Resume although the configuration differs from the checkpoint's.
        quiet: No progress.
    """
    from .engine import train as run
    from .engine.launch import launch
    from .notebook import parameters

    asked = parameters(recipe, str(data) if data else None, epochs, seed, device, parse_overrides(set))
    run_dir = run_dir or asked.run_dir
    if nproc > 1:
        flags = {
            "--reset-class-head": reset_class_head,
            "--init-partial": init_partial,
            "--allow-config-change": allow_config_change,
            "--quiet": quiet,
        }
        arguments = [flag for flag, given in flags.items() if given]
        arguments += ["--init-from", str(init_from)] if init_from is not None else []
        results = launch(asked.config, run_dir, nproc, device, resume, arguments=arguments)
    else:
        results = run(
            asked.config,
            run_dir,
            device,
            resume,
            progress=not quiet,
            init_from=init_from,
            reset_class_head=reset_class_head,
            init_partial=init_partial,
            allow_config_change=allow_config_change,
        )
    if _first_rank() and nproc == 1:
        _show_metrics(results["metrics"])
        print(f"everything about the run is in {run_dir}")


@app.command(name="eval")
def evaluate(
    model: Argument[Path],
    data: Path | None = None,
    split: str | None = None,
    max_detections: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    output: Path | None = None,
) -> None:
    """Evaluate a run or checkpoint: the twelve COCO numbers and the AP of each class.

    For example:
        msdetr eval runs/first
        msdetr eval runs/first --data data/mine --split test

    Args:
        model: Run directory (its best checkpoint) or checkpoint directory.
        data: COCO-format folder; the run's own by default.
        split: Images in DATA/SPLIT, annotations in DATA/annotations/instances_SPLIT.json.
        max_detections: Kept per image; the run's own by default (100, or 300 in the 900-query recipes).
        limit: Only the first images.
        device: auto, cpu, cuda or cuda:N.
        output: Also write the numbers to this JSON file.
    """
    from . import evaluate as run

    result = run(model, data, split, max_detections=max_detections, limit=limit, device=device)
    _show_metrics(result.metrics)
    width = max(map(len, result.per_class), default=0)
    print("\nAP per class")
    for name, value in result.per_class.items():
        print(f"  {name:{width}}  {_number(value)}")
    print("\n" + "\n".join(result.summary().splitlines()[1:]))
    if output:
        _write(output, json.dumps(result.to_dict(), indent=1) + "\n")


@app.command(name="predict")
def predict(
    model: Argument[Path],
    images: Argument[tuple[Path, ...]],
    min_score: float = 0.3,
    max_detections: int | None = None,
    device: str = "auto",
    output: Path | None = None,
) -> None:
    """Detect objects in images, one line per object: score, class, box (left, top, right, bottom in pixels).

    For example:
        msdetr predict runs/first photo.jpg --min-score 0.5
        msdetr predict runs/first photos --output found.json

    Args:
        model: Run directory (its best checkpoint) or checkpoint directory.
        images: Image files, or folders of them.
        min_score: Leave out weaker detections.
        max_detections: Kept per image.
        device: auto, cpu, cuda or cuda:N.
        output: Write JSON to this file instead.
    """
    from . import load
    from .data import image_files

    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    predictor = load(model, device)
    found = {}
    for detections in predictor.stream(files, max_detections, min_score):
        found[str(detections.path)] = [
            {"score": round(score, 4), "class": name, "box": [round(x, 1) for x in box]}
            for score, name, box in zip(detections.scores.tolist(), detections.names, detections.boxes.tolist())
        ]
    if output:
        _write(output, json.dumps(found, indent=1) + "\n")
        return
    for path, rows in found.items():
        print(f"{path}: {len(rows)} detections with a score of at least {min_score:g}")
        for row in rows:
            print(f"  {row['score']:.3f}  {row['class']:20}  " + "  ".join(f"{x:7.1f}" for x in row["box"]))


@app.command(name="candidates")
def candidates(
    runs: Argument[tuple[Path, ...]],
    data: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    output: Path = Path("runs/candidates"),
) -> None:
    """Measure candidate quality (Figures 1 and 2 of the paper) of one run or several side by side.

    For example:
        msdetr candidates runs/baseline runs/ms-detr-c

    Args:
        runs: Run or checkpoint directories.
        data: COCO-format folder; each run's own validation set by default.
        split: Its split.
        limit: Only the first images.
        device: auto, cpu, cuda or cuda:N.
        output: Folder for the figure and one JSON file per run.
    """
    from .analysis.candidates import measure
    from .data import build_dataset, build_eval_loader
    from .predictor import check_classes, evaluation_config, load
    from .viz.candidates import candidate_figure

    output.mkdir(parents=True, exist_ok=True)
    tables = {}
    for run in runs:
        predictor = load(run, device)
        config = evaluation_config(predictor.config, predictor.source, data, split, limit)
        dataset = build_dataset(config, "val")
        check_classes(predictor, dataset)
        loader = build_eval_loader(dataset, config.train.micro_batch, workers=config.data.workers)
        quality = measure(predictor.detector, loader, predictor.device)
        name = run.name if run.name not in tables else str(run)
        quality.save(output / f"{name.replace('/', '-')}.json")
        tables[name] = quality.result()
        print(name)
        for what, value in tables[name].summary().items():
            print(f"  {what:28} {value if isinstance(value, int) else _number(value)}")
    candidate_figure(tables).savefig(output / "candidates.png", dpi=150)
    print(f"figure and numbers are in {output}")


@app.command(name="recipes")
def list_recipes(name: Argument[str] = "") -> None:
    """List the recipes, or show one in full.

    Args:
        name: Recipe to show as YAML; save it to a file, change it and train that.
    """
    import yaml

    from . import recipes

    if name:
        print(yaml.safe_dump(json.loads(json.dumps(recipes.get(name).to_dict())), sort_keys=False), end="")
        return
    described = recipes.describe()
    width = max(map(len, described))
    for recipe, text in described.items():
        print(f"{recipe:{width}}  {text}")
    print("\n`msdetr recipes NAME` shows one in full; `msdetr train NAME` trains it.")


@app.command(name="doctor")
def doctor() -> None:
    """Report what is installed, which devices and operator backends are used, and what would make training faster."""
    import platform

    import torch
    import torchvision

    from . import ops
    from .engine.evaluate import check_metric, metric_backend

    print(f"msdetr {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} CPU threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            print(f"cuda:{index}  {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}")
    else:
        print("no CUDA device: training runs on the CPU, in fp32")
    for found in ops.describe():
        print(f"deformable attention on {found.device}: {found.backend} ({found.reason})")
        if found.advice:
            print(f"  faster: {found.advice}")
    evaluator = metric_backend()
    check_metric(evaluator)
    advice = (
        "; with hotcoco (`pip install hotcoco`) the same numbers take a fraction of the time"
        if evaluator.name == "pycocotools"
        else ""
    )
    print(f"COCO metric: {evaluator.name}, self-test passed{advice}")


@app.command(name="check-data")
def check_data(
    path: Argument[Path], images: Path | None = None, decode: bool = False, thumbnails: Path | None = None
) -> None:
    """Check a data set before training on it: counts, classes, box sizes, suspicious annotations. Exits 1 on errors.

    For example:
        msdetr check-data data/mine
        msdetr check-data annotations.json --images photos --decode

    Args:
        path: Folder in COCO's layout, or one annotation file.
        images: The images of an annotation file.
        decode: Decode every image, rather than look at its header only.
        thumbnails: Folder for pictures of the most suspicious annotations.
    """
    from .data import check

    report = check(path, images, decode=decode)
    print(report)
    if thumbnails is not None:
        from .viz.suspicions import suspicion_figure

        thumbnails.mkdir(parents=True, exist_ok=True)
        for split in report.splits:
            if split.suspicions:
                target = thumbnails / f"{split.file.stem}.png"
                suspicion_figure(split).savefig(target, dpi=120)
                print(f"pictures of what is worth a look: {target}")
    if not report.ok:
        raise SystemExit(1)


@app.command(name="convert")
def convert(
    source: Argument[Path],
    target: Argument[Path],
    recipe: str = "coco/ms-detr-pp-300",
    annotations: Path | None = None,
    to_released: bool = False,
) -> None:
    """Turn a released MS-DETR file (.pth) into a checkpoint of this package, or back.

    For example:
        msdetr convert ms_detr_300.pth runs/released --recipe coco/ms-detr-300
        msdetr convert runs/mine mine.pth --to-released

    Nothing in a released file is executed: it is read with weights_only=True.

    Args:
        source: The .pth file; or a run or checkpoint with --to-released.
        target: Run directory to make; or the .pth file to write with --to-released.
        recipe: The recipe of the released file, or a .yaml file.
        annotations: COCO annotation file with the names of the classes.
        to_released: The other direction.
    """
    import torch

    from .data import Categories, read_annotations
    from .engine import checkpoint as checkpoints
    from .model import build_model
    from .model.convert import load_released
    from .model.convert import to_released as released_names
    from .predictor import resolve

    if to_released:
        found = checkpoints.find(source)
        try:
            released = released_names(found.weights(), found.config.model)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from error
        torch.save({"model": released}, target)
        print(f"{target}: the weights of {found.directory} under the released names")
        return
    config = resolve(recipe)
    try:
        weights = load_released(source, config.model)
    except (ValueError, pickle.UnpicklingError, RuntimeError) as error:
        raise ConfigError(f"{source}: {error}") from error
    detector = build_model(replace(config.model, pretrained="none"))
    taken = checkpoints.load_weights(detector, weights)
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
    print(f"{written.directory}: {taken.report()}")


@app.command(name="inspect")
def inspect(
    run: Argument[Path],
    image: str | None = None,
    out: Path | None = None,
    object: int | None = None,
    query: int | None = None,
    layer: int = 0,
    threshold: float | None = None,
    k: int | None = None,
    alpha: float | None = None,
    score_threshold: float = 0.5,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> None:
    """The matching microscope: why a detector matched, kept or lost the objects of an image, in words and pictures.

    For example:
        msdetr inspect runs/mine
        msdetr inspect runs/mine --image 7 --object 0 --query 12 --out runs/mine/inspect

    Args:
        run: Run or checkpoint directory.
        image: Image id or file name of the validation set; the first image with objects by default.
        out: Folder for the figures; none are written without.
        object: Object to look at in detail, counted from 0.
        query: Query to look at in detail; with an object: why the one does not serve the other.
        layer: Decoder layer counted from 1; 0 is the last.
        threshold: Try another tau than the run's.
        k: Try another number of queries per object.
        alpha: Try another share of the class probability in the score.
        score_threshold: Detections count from this score on.
        data: Folder with another data set in COCO's layout.
        split: Its split; the run's validation split by default.
        device: auto, cpu, cuda or cuda:N.
    """
    from .viz.inspect import inspect as look

    chosen = int(image) if image is not None and image.lstrip("-").isdigit() else image
    found = look(
        run, chosen, out, object=object, query=query, layer=layer, threshold=threshold, k=k, alpha=alpha,
        score_threshold=score_threshold, data=data, split=split, device=device,
    )  # fmt: skip
    print(found.text)
    if out is not None:
        print(f"figures: {out}")


@app.command(name="verify")
def verify(path: Argument[Path], config: bool = False) -> None:
    """Say what a run or checkpoint holds, and verify every byte of its checkpoints. Exits 1 if one is damaged.

    Args:
        path: Run directory or checkpoint directory.
        config: Show the whole configuration.
    """
    from .engine import checkpoint as checkpoints
    from .errors import CheckpointError

    directories = checkpoints.available(path) or [path]
    results = path / "results.json"
    if results.exists():
        state = json.loads(results.read_text())
        print(f"{path}: {state.get('status')}" + (f" ({state['error']})" if state.get("error") else ""))
    damaged = 0
    for directory in directories:
        try:
            found = checkpoints.verify(directory)
        except CheckpointError as error:
            damaged += 1
            print(f"{directory.name}: DAMAGED: {error}")
            continue
        size = sum(entry["bytes"] for entry in found.manifest["files"].values()) / 2**20
        files = ", ".join(sorted(file.removesuffix(".safetensors") for file in found.manifest["files"]))
        score = f", AP {_number(found.metrics['AP'])}" if "AP" in found.metrics else ""
        print(f"{directory.name}: verified, epoch {found.manifest['epoch']:.2f}{score}, {size:.1f} MiB ({files})")
        last = found
    if damaged < len(directories):
        model = last.config.model
        print(f"recipe {last.config.recipe}, variant {model.variant}, {model.num_queries} queries, {len(last.class_names)} classes: "
              + ", ".join(last.class_names[:10]) + (" ..." if len(last.class_names) > 10 else ""))  # fmt: skip
        if config:
            print(json.dumps(last.config.to_dict(), indent=1))
    if damaged:
        raise SystemExit(1)


@app.command(name="notebook")
def notebook(
    path: Argument[Path],
    output: Path | None = None,
    parameters: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-p"], metavar="NAME=VALUE ...")] = (),
    kernel: str | None = None,
    quiet: bool = False,
) -> None:
    """Execute a notebook with papermill: parameters checked first, success only if every cell ran to its end.

    For example:
        msdetr notebook notebooks/05_train.ipynb -p recipe=shapes/ms-detr-c epochs=2 --output runs/first/05_train.ipynb

    Args:
        path: The notebook.
        output: The executed notebook; runs/NAME.ipynb by default.
        parameters: Values for its parameters cell.
        kernel: Jupyter kernel; the notebook's own by default.
        quiet: Do not repeat what the notebook writes.
    """
    values = {name: _literal(value) for name, value in parse_overrides(parameters).items()}
    print(f"executed: {run_notebook(path, output, values, progress=not quiet, kernel=kernel)}")


DEMO = ("shapes/baseline", "shapes/ms-detr-c")


@app.command(name="demo")
def demo(runs: Path = Path("runs"), notebooks: Path = Path("notebooks"), overrides: str = "", seed: int = 0) -> None:
    """Train the baseline and MS-DETR (c) on the embedded data set through their notebooks, compare them, draw the figures.

    Goes on where an earlier call was interrupted. Under 15 minutes on two CPU cores.

    Args:
        runs: Where to leave everything.
        notebooks: The folder of the notebooks.
        overrides: Any settings of both recipes, e.g. "train.epochs=1".
        seed: Seed of both runs.
    """
    runs, folders = (
        runs.absolute(),
        [],
    )  # a notebook's relative paths are those of the project, not of the current folder
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
    import yaml

    value = yaml.safe_load(text) if text else ""
    return value if isinstance(value, (bool, int, float, type(None))) else text


def _show_metrics(metrics: dict[str, float | None]) -> None:
    print("  ".join(f"{name} {_number(value)}" for name, value in metrics.items()))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 for an error, 2 for a mistyped command, 130 for Ctrl-C, 143 for SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments in (["--version"], ["-V"]):
        print(f"msdetr {__version__}")
        return 0
    try:
        app.cli(args=arguments, prog="msdetr", description=__doc__)
    except KeyboardInterrupt as error:
        print(f"msdetr: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130
    except SystemExit as error:
        if getattr(error, "message", None):
            print(f"msdetr: {error.message}", file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if debug or not isinstance(error, (MSDETRError, OSError)):
            raise
        print(f"msdetr: {error}", file=sys.stderr)
        return 1
    return 0
