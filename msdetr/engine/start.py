"""How a run begins: where it goes on from, and what it needs: data sets, detector, trainer, loader."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import RunConfig, TrainConfig, harmless_on_resume
from ..data import CocoDetection
from ..errors import ConfigError, InputError, RunDirectoryError
from . import checkpoint as checkpoints
from .classes import resolve_classes
from .distributed import World
from .patience import out_of_patience
from .run import RunDirectory
from .trainer import Trainer, mixed_seed

FINISHED = "finished"


def starting_point(
    config: RunConfig, run: RunDirectory, resume: str | Path, allow_config_change: bool, given_classes: bool
) -> str | None:
    """The directory of the checkpoint to resume from, None to start anew, FINISHED where all is done.

    A run may go on for more epochs than it was begun with, and with more patience than it was ended early with. Raises
    ConfigError for any other change that counts, and RunDirectoryError for a finished run without checkpoints, whose
    results would be lost. Where a checkpoint is named, those of the run that do not lead to it are set aside, lest
    ``auto`` goes back to them later.
    """
    results = run.results()
    finished = results.get("status") == "finished"
    if finished and not checkpoints.available(run.path):
        raise RunDirectoryError(
            f"{run.path}: is finished, its checkpoints are gone; choose another name, or move results.json away"
        )
    if str(resume) == "never":
        if checkpoints.available(run.path):
            raise RunDirectoryError(
                f"{run.path}: already has checkpoints and resume is 'never'; choose another run name, or resume=auto"
            )
        return None
    found = checkpoints.latest(run.path) if str(resume) == "auto" else checkpoints.find(resume)
    if found is None:
        return None
    evaluations = found.training["evaluations"]  # raises for weights alone, before anything is moved
    harmless = harmless_on_resume() | (set() if given_classes else {"model.num_classes"})
    different = {k: v for k, v in checkpoints.changes(found.config, config).items() if k not in harmless}
    longer = set(different) == {"train.epochs"} and config.train.epochs > found.config.train.epochs
    if different and not longer and not allow_config_change:
        lines = [f"  {path}: {old!r} in the checkpoint, {new!r} now" for path, (old, new) in different.items()]
        raise ConfigError(
            f"{found.directory}: was saved under another configuration:\n" + "\n".join(lines) + "\nResume with the "
            "checkpoint's configuration, allow the change (--allow-config-change), or start a run of another name "
            "with init_from"
        )
    if str(resume) != "auto":
        own = run.owns(found.directory)
        others = [d for d in checkpoints.available(run.path) if not own or int(d.name[5:]) > found.step]
        if others:
            run.set_aside(others, found.step)
    if results.get("stopped_early"):
        finished = finished and out_of_patience(evaluations, config.train.patience)
    return FINISHED if finished and str(resume) == "auto" and not different else str(found.directory)


def build(config: RunConfig, world: World, given_classes: bool):
    """The configuration with the number of classes that the data has, what to say about it, the data sets, and a trainer
    around a freshly initialised detector that is the same on all ranks."""
    from ..data import build_datasets
    from ..data.settings import check_folders
    from ..methods import build_criterion, build_detector

    check_folders(config, given_classes)
    if world.size > 1:
        world.on_main(lambda: build_datasets(config) and None)  # generates the embedded data once
    train_set, val_set = build_datasets(config)
    config, notes = resolve_classes(config, given_classes, train_set)
    notes = described(config, train_set, val_set) + notes + drop_explained(config.train)
    epoch_steps = len(train_set) // config.train.batch_size
    if config.train.batch_size < world.size:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images per step cannot be shared by {world.size} ranks"
        )
    total_steps = max(1, round(config.train.epochs * epoch_steps)) if config.train.epochs > 0 else 0
    torch.manual_seed(mixed_seed(config.seed, 0))
    detector = build_detector(config)
    criterion = build_criterion(config)
    trainer = Trainer(detector, criterion, config.train, total_steps, epoch_steps, world)
    torch.manual_seed(mixed_seed(config.seed, 1, world.rank))  # dropout differs from rank to rank
    return config, notes, train_set, val_set, trainer


HELD_OUT = "held_out.txt"


def described(config: RunConfig, train_set: CocoDetection, val_set: CocoDetection) -> list[str]:
    """What to say about a person's own data: the layout that was recognized, and what is trained and validated on."""
    if config.data.generate != "none" or train_set.part is None or val_set.part is None:
        return []
    trained, validated = f"{train_set.part} ({len(train_set)} images)", f"{val_set.part} ({len(val_set)} images)"
    lines = [f"{train_set.part.layout}: training on {trained}, validating on {validated}"]
    if val_set.part.held_out:
        lines.append(
            f"there is no validation split: a fifth of the images was held out, the same ones in every run ({HELD_OUT} lists "
            "them)"
        )
    return lines


def drop_explained(train: TrainConfig) -> list[str]:
    """What to say where the drop of the learning rates is not near the end of the training, as it is not once only the number
    of epochs was changed. Published schedules drop at 10 or 11 of 12 epochs, 20 of 24, 40 of 50."""
    if train.schedule != "step" or not train.epochs:
        return []
    after = train.epochs - train.drop_epoch
    if after <= 0:
        fault = f"the learning rates never fall, as training ends at epoch {train.epochs:g}"
    elif after > train.epochs / 3:
        fault = f"{after:g} of {train.epochs:g} epochs are trained at a tenth of the learning rates"
    else:
        return []
    return [
        f"train.drop_epoch = {train.drop_epoch:g}: {fault}; train.drop_epoch={train.epochs * 5 / 6:.3g} suits this length"
    ]


def train_loader(dataset, config: RunConfig, trainer: Trainer) -> torch.utils.data.DataLoader:
    """The lists of micro-batches of this rank, from the trainer's next step to the end of its last epoch."""
    from ..data import build_train_loader

    epoch, step = divmod(trainer.steps_done, trainer.steps_per_epoch)
    epochs = max(-(-trainer.total_steps // trainer.steps_per_epoch) - epoch, 1)
    try:
        return build_train_loader(dataset, config, trainer.world.rank, trainer.world.size, epoch, step, epochs)
    except InputError as error:
        raise ConfigError(str(error)) from error
