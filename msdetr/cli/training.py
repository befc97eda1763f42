"""``msdetr train``."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

from ..config import parse_overrides
from ..errors import MSDETRError
from ..recipes import requested, run_name
from .app import Argument, Count, Index, Pairs, command, listed
from .output import first_rank, number, show_metrics


@command("train")
def train(
    recipe: Argument[str],
    run_dir: Path | None = None,
    set: Pairs = (),
    data: Path | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    nproc: Count = 1,
    resume: str = "auto",
    init_from: Path | None = None,
    reset_class_head: bool = False,
    init_partial: bool = False,
    allow_config_change: bool = False,
    record_matching: Index = 0,
    quiet: bool = False,
) -> None:
    """Train a detector.

    For example:
        msdetr train photos/ms-detr-c --data my-photographs
        msdetr train shapes/ms-detr-c --run-dir runs/d --set ms_detr.variant=d train.lr=5e-4
        msdetr train photos/ms-detr-pp-300 --data my-photographs --init-from ms_detr_pp_300.pth --reset-class-head
        msdetr train photos/deformable-detr --data my-photographs --init-from deformable-detr-folder --reset-class-head
        msdetr train coco/ms-detr-pp-300 --data data/coco --nproc 8
        torchrun --nproc-per-node 8 -m msdetr train coco/ms-detr-pp-300 --data data/coco

    The run directory gets config.yaml, metrics.jsonl, results.json, checkpoints/ and README.md, a model card. The same command again goes on from
    the last checkpoint. SIGTERM, a closed terminal and Ctrl-C finish the step and save first. A run
    that is finished goes on where --epochs asks for more.

    Args:
        recipe: Name of a recipe (see `msdetr recipes`), or a .yaml file such as a run's config.yaml.
        run_dir: Where to leave everything; runs/RECIPE-seedN by default.
        set: Any fields of the configuration, e.g. train.lr=1e-4 model.num_queries=100.
        data: Folder with the data set, in COCO's, YOLO's or Pascal VOC's layout; short for --set data.root=...
        epochs: Short for --set train.epochs=...
        seed: Short for --set seed=...
        device: auto, cpu, cuda or cuda:N.
        nproc: Processes on this machine, e.g. one per GPU; starts torchrun.
        resume: auto: go on from the newest checkpoint if there is one. never: insist on a fresh directory. Or a checkpoint.
        init_from: Checkpoint, run, released file (.pth; MS-DETR, Deformable DETR, H-DETR, DETA, DN-DETR, DINO), or folder of
            transformers' Deformable DETR (config.json, model.safetensors) whose weights to start from.
        reset_class_head: With --init-from: start class heads and denoising's labels anew, for other classes, be they as many or not.
        init_partial: With --init-from: take over whatever fits and report the rest.
        allow_config_change: Resume although the configuration differs from the checkpoint's.
        record_matching: On how many validation images to record who is matched to whom as it learns, for notebook 08; e.g. 16.
        quiet: No progress.
    """
    from ..analysis.stability import MatchRecorder
    from ..engine import train as run
    from ..engine.launch import launch

    config = requested(recipe, data, epochs, seed, listed(set))
    run_dir = run_dir or Path("runs") / run_name(recipe, config)
    given_classes = "model.num_classes" in parse_overrides(listed(set))
    if nproc > 1:
        flags = {
            "--reset-class-head": reset_class_head,
            "--init-partial": init_partial,
            "--allow-config-change": allow_config_change,
            "--quiet": quiet,
        }
        arguments = [flag for flag, given in flags.items() if given]
        arguments += ["--init-from", str(init_from)] if init_from is not None else []
        arguments += ["--set", f"model.num_classes={config.model.num_classes}"] if given_classes else []
        arguments += ["--record-matching", str(record_matching)] if record_matching else []
        results = launch(config, run_dir, nproc, device, resume, arguments=arguments)
    else:
        results = run(
            config,
            run_dir,
            device,
            resume,
            progress=not quiet,
            init_from=init_from,
            reset_class_head=reset_class_head,
            init_partial=init_partial,
            allow_config_change=allow_config_change,
            given_classes=given_classes or None,
            recorder=partial(MatchRecorder.of_run, images=record_matching) if record_matching else None,
        )
    if first_rank() and nproc == 1:
        _complete_card(run_dir, device)
        show_metrics(results["metrics"])
        if early := results.get("stopped_early"):
            print(early["text"])
        if best := results.get("best"):
            print(
                f"best: AP {number(best['AP'])} after epoch {best['epoch']:.2f}; eval, predict and export use that checkpoint"
            )
        print(f"everything about the run is in {run_dir}")


def _complete_card(run_dir: Path, device: str) -> None:
    """Adds the candidate figure to the model card; a run that cannot have one is finished all the same."""
    from ..model_card import complete

    try:
        complete(run_dir, device)
    except MSDETRError as error:
        warnings.warn(f"{run_dir}: the model card has no candidate figure: {error}", stacklevel=2)
