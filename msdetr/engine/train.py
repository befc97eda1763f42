"""A run: training that can stop anywhere and go on, with everything about it in its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import environment
from ..config import RunConfig
from ..errors import CheckpointError
from . import checkpoint as checkpoints
from .classes import classes_were_given
from .distributed import join, leave
from .progress import style
from .run import RunDirectory
from .signals import StopRequest, StopRequested
from .start import FINISHED, starting_point
from .tracking import require
from .training import Observer, Training


def train(
    config: RunConfig,
    run_dir: str | Path,
    device: str = "auto",
    resume: str | Path = "auto",
    progress: bool = True,
    *,
    init_from: str | Path | None = None,
    reset_class_head: bool = False,
    init_partial: bool = False,
    allow_config_change: bool = False,
    given_classes: bool | None = None,
    recorder: Callable[[Path, Any, RunConfig, int], Observer | None] | None = None,
    on_step: Observer | None = None,
) -> dict[str, Any]:
    """Trains a detector and leaves everything about it in ``run_dir``; returns what results.json says.

    device: "auto" (this rank's GPU, else the CPU), "cpu", "cuda" or "cuda:N".
    resume: "auto" continues from the newest checkpoint in ``run_dir`` if there is one (a run that is finished is
        returned as it is, or goes on where ``config`` has more epochs); "never" insists on a fresh directory; a path
        continues from that checkpoint; the run's later ones are kept in ``run_dir/abandoned_1`` and not gone back to.
    init_from: checkpoint, run, released .pth file or folder of transformers' Deformable DETR whose weights the training starts from; ``reset_class_head`` starts
        the class heads, and the label embedding of denoising, anew, for other classes than the file's, ``init_partial`` to take whatever fits. Does not apply to a run that resumes.
    allow_config_change: resume although the configuration differs from the checkpoint's.
    given_classes: whether the data must have ``model.num_classes`` classes; False: the model gets as many as the data has.
        By default it must where that number is another than the recipe's.
    recorder: makes an observer as ``recorder(run_dir, validation set, config, total steps)``, None where nothing is to be
        recorded; e.g. ``msdetr.analysis.stability.MatchRecorder.of_run``, which notes who is matched to whom.
    on_step: called on the first rank as ``on_step(detector, steps done, epoch)``, before the first step and after each.

    Under torchrun every rank calls this. On SIGTERM, SIGHUP or Ctrl-C the step is finished and saved first, and so it is
    where anything but the step itself fails: reading, logging, an evaluation, ``on_step``.
    Raises ConfigError, EngineError (see ``msdetr.errors``), the data set's errors, and Terminated (exit 143).
    """
    if str(resume) not in ("auto", "never") and not Path(resume).exists():
        raise CheckpointError(f"resume: {resume} does not exist; give auto, never or a checkpoint directory")
    restarted = environment.whole("TORCHELASTIC_RESTART_COUNT", 0, 0, 10**9) > 0  # by torchrun, after a rank died
    if restarted and checkpoints.available(run_dir):
        resume = "auto"
    if config.train.tensorboard:
        require("tensorboard", "train.tensorboard", "TensorBoard")
    if config.train.mlflow:
        require("mlflow", "train.mlflow", "MLflow")
    if progress:
        style()  # raises where MSDETR_PROGRESS is mistyped, before anything is done
    given_classes = classes_were_given(config) if given_classes is None else given_classes
    world = join(device)
    with StopRequest(watchdog=world.size > 1) as stop, RunDirectory(run_dir, world) as run:
        start = world.on_main(lambda: starting_point(config, run, resume, allow_config_change, given_classes))
        if start == FINISHED:
            results = world.on_main(run.results)
        else:
            weights_to_come = start is not None or (init_from is not None and not init_partial)
            try:
                with stop.interrupting():
                    training = Training(config, run, world, start, stop, progress, weights_to_come, given_classes)
                    if init_from is not None and start is None:
                        training.initialize(init_from, reset_class_head, init_partial)
                    if recorder is not None:
                        training.add_recorder(recorder)
            except StopRequested:
                raise stop.exit("stopped before a step was taken") from None
            if on_step is not None:
                training.observers["on_step"] = on_step
            training.learn()
            results = training.finish()
    leave()
    return results
