"""A run: training that can stop anywhere and go on, with everything about it in its directory."""

from __future__ import annotations

import contextlib
import platform
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from .. import files
from ..config import RunConfig, harmless_on_resume
from ..errors import (
    CheckpointError,
    ConfigError,
    EvaluationStopped,
    RunDirectoryError,
    StepError,
    Terminated,
    TrainingError,
    WriteError,
)
from . import checkpoint as checkpoints
from . import location
from .classes import classes_were_given, resolve_classes
from .distributed import World, join, leave
from .evaluate import EvalResult, evaluate
from .optim import MovingAverage
from .progress import Progress, style
from .run import RunDirectory
from .signals import StopRequest, leave_signals_to_parent
from .tensorboard import require_tensorboard
from .trainer import MicroBatch, Step, Trainer, mixed_seed

FINISHED = "finished"
SIGNS_OF_A_DEAD_RANK = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "timed out")


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
    on_step: Callable[[nn.Module, int, float], Any] | None = None,
) -> dict[str, Any]:
    """Trains a detector and leaves everything about it in ``run_dir``; returns what results.json says.

    device: "auto" (this rank's GPU, else the CPU), "cpu", "cuda" or "cuda:N".
    resume: "auto" continues from the newest checkpoint in ``run_dir`` if there is one (a run that is finished is
        returned as it is); "never" insists on a fresh directory; a path continues from that checkpoint.
    init_from: checkpoint or run whose weights the training starts from; ``reset_class_head`` where the number of
        classes differs, ``init_partial`` to take whatever fits. Does not apply to a run that resumes.
    allow_config_change: resume although the configuration differs from the checkpoint's.
    given_classes: whether the data must have ``model.num_classes`` classes; False: the model gets as many as the data has.
        By default it must where that number is another than the recipe's.
    on_step: called on the first rank as ``on_step(detector, steps done, epoch)``, before the first step and after each,
        e.g. ``msdetr.analysis.stability.MatchRecorder``.

    Under torchrun every rank calls this. On SIGTERM, or Ctrl-C, the step is finished and saved first.
    Raises ConfigError, EngineError (see ``msdetr.errors``), the data set's errors, and Terminated (exit 143).
    """
    if str(resume) not in ("auto", "never") and not Path(resume).exists():
        raise CheckpointError(f"resume: {resume} does not exist; give auto, never or a checkpoint directory")
    if config.train.tensorboard:
        require_tensorboard()
    if progress:
        style()  # raises where MSDETR_PROGRESS is mistyped, before anything is done
    given_classes = classes_were_given(config) if given_classes is None else given_classes
    world = join(device)
    with RunDirectory(run_dir, world) as run:
        start = world.on_main(lambda: _starting_point(config, run, resume, allow_config_change, given_classes))
        if start == FINISHED:
            results = run.results()
        else:
            weights_to_come = start is not None or (init_from is not None and not init_partial)
            observer = on_step if world.main else None
            training = Training(config, run, world, start, progress, observer, weights_to_come, given_classes)
            if init_from is not None and start is None:
                training.initialize(init_from, reset_class_head, init_partial)
            training.learn()
            results = training.finish()
    leave()
    return results


class Training:
    """A run while it goes on.

    start: directory of the checkpoint to go on from, None for a new run. weights_to_come: all weights will be replaced, so
    none are fetched for the backbone. The other arguments are as for ``train``.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        world: World,
        start: str | None,
        progress: bool = True,
        on_step: Callable[[nn.Module, int, float], Any] | None = None,
        weights_to_come: bool = False,
        given_classes: bool = True,
    ):
        self.config, self.run, self.world, self.progress, self.on_step = config, run, world, progress, on_step
        if start is None:
            run.write_config(config)
        run.write_results(status="running", error=None, recipe=config.recipe, seed=config.seed)
        located = config if start is None else location.resumed(run.path, config)
        needed = located.override({"model.pretrained": "none"}) if weights_to_come else located
        built, notes, self.train_set, self.val_set, self.trainer = _build(needed, world, given_classes)
        self.config = config.override({"model.num_classes": built.model.num_classes})
        if start is None and self.config != config:
            run.write_config(self.config)
        run.write_data_location(config, located.data.root)
        self.result: EvalResult | None = None  # of the last evaluation
        self.evaluations: list[dict[str, Any]] = []
        self.saved_at, self.began = -1, time.perf_counter()
        if start is not None:
            self._restore(start)
        if config.train.tensorboard:
            run.log_to_tensorboard(self.trainer.steps_done)
        self.bar = Progress(
            self.trainer.total_steps, self.trainer.steps_done, title=run.path.name, enabled=progress and world.main
        )
        for note in notes:
            self.bar.say(note)
        self.window = _Window(world)
        self.writer = checkpoints.Writer(run.path) if world.main else None
        self.stop = StopRequest(watchdog=world.size > 1)

    def _restore(self, start: str) -> None:
        checkpoint = checkpoints.read(start)
        self.trainer.restore(checkpoint)
        self.saved_at = self.trainer.steps_done
        self.run.forget_after(self.trainer.steps_done)
        self.began -= checkpoint.training["seconds"]
        self.evaluations = checkpoint.training["evaluations"]
        self.run.write_config(self.config)

    def initialize(self, path: str | Path, reset_class_head: bool, partial: bool) -> None:
        """Starts from the weights of a checkpoint or run, and reports what was taken over."""
        detector = self.trainer.detector
        found = checkpoints.find(path, checkpoints.verify_weights)
        taken = checkpoints.load_weights(detector, found.weights(), reset_class_head, partial)
        if self.trainer.average:
            self.trainer.average = MovingAverage(detector, self.config.train.ema_decay)
        self.run.write_results(init_from={"path": str(path), "report": taken.report(), **asdict(taken)})
        self.run.log("init", step=0, path=str(path), report=taken.report())
        self.bar.say(f"initialised from {path}: {taken.report()}")

    @property
    def epoch(self) -> float:
        return self.trainer.steps_done / self.trainer.steps_per_epoch

    def learn(self) -> None:
        """Steps to the end, with the evaluations and checkpoints that are due in between.

        Raises Terminated or KeyboardInterrupt, once all is saved, where a signal asked for it.
        """
        with _deaths_named(self.world), self.stop:
            data = iter(_loader(self.train_set, self.config, self.trainer))
            if self.trainer.steps_done == 0:
                self._tell_observer()
            while self.trainer.steps_done < self.trainer.total_steps:
                self._step(data)
                self._after_step()
            if not self._is_evaluated:
                self._evaluate()  # only the numbers are missing
            if self.saved_at != self.trainer.steps_done:
                self._save(self.result.metrics if self._is_evaluated else {})
            if not self._is_evaluated:
                self._leave()
            if self.writer:
                self.writer.wait()

    def _step(self, data: Iterator[list[MicroBatch]]) -> None:
        with self.window.waiting_for_data():
            micro_batches = next(data)
        objects, stopping = self.world.sum([sum(len(t) for _, t in micro_batches), self.stop.signal is not None])
        if stopping:
            if self.saved_at != self.trainer.steps_done:
                self._save({})
            self._leave()
        with _written_down(self.run, self.world):
            self.window.steps.append(self.trainer.step(micro_batches, max(objects / self.world.size, 1.0)))
        self._tell_observer()

    def _after_step(self) -> None:
        """Whatever is due: a line in the log, an evaluation, a checkpoint."""
        settings, epoch_steps = self.config.train, self.trainer.steps_per_epoch
        done, last = self.trainer.steps_done, self.trainer.steps_done == self.trainer.total_steps
        self.bar.advance(1, self._log() if last or done % settings.log_every == 0 else "")
        best, metrics = max((e["AP"] or 0 for e in self.evaluations), default=-1), {}
        if last or _due(done, settings.eval_every, epoch_steps):
            metrics = self._evaluate()
        is_best = metrics.get("AP") is not None and metrics["AP"] > best
        if last or is_best or _due(done, settings.checkpoint_every, epoch_steps):
            self._save(metrics)
        if metrics:
            self.window.clear()  # the time of an evaluation is not the time of a step

    def _tell_observer(self) -> None:
        if self.on_step:
            self.on_step(self.trainer.detector, self.trainer.steps_done, self.epoch)

    def _log(self) -> str:
        """Writes the means over the steps since the last line; returns what the progress bar shows of it."""
        with _written_down(self.run, self.world):
            self.trainer.check()
        summary = self.window.summary()
        rates = {group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups}
        self.run.log("train", step=self.trainer.steps_done, epoch=self.epoch, lr=rates, **summary)
        self.window.clear()
        return f"loss {summary['loss']:.3f}"

    def _evaluate(self) -> dict[str, float | None]:
        """The metrics of the weights as they are; {} where a signal interrupted: the next step saves and stops."""
        try:
            result = evaluate(
                self.trainer.evaluated,
                self.val_set,
                max_detections=self.config.train.max_detections,
                batch_size=max(self.config.train.micro_batch, 1),
                workers=self.config.data.workers,
                precision=self.config.train.precision,
                world=self.world,
                progress=self.progress,
                stop=lambda: self.stop.signal is not None,
            )
        except EvaluationStopped:
            return {}
        record = {"step": self.trainer.steps_done, "epoch": self.epoch, **result.metrics}
        self.result = result
        self.evaluations.append(record)
        self.run.log("eval", **record, seconds=result.seconds, num_detections=result.num_detections)
        self.bar.say(f"epoch {self.epoch:.2f}, step {record['step']}: {result.summary().splitlines()[0]}")
        return result.metrics

    @property
    def _is_evaluated(self) -> bool:
        return self.result is not None and self.evaluations[-1]["step"] == self.trainer.steps_done

    def _save(self, metrics: dict[str, float | None]) -> None:
        self.saved_at = self.trainer.steps_done
        files, training = self.trainer.files()
        if self.writer is None:
            return
        training |= {"seconds": time.perf_counter() - self.began, "evaluations": self.evaluations}
        manifest = {
            "epoch": self.epoch,
            "config": self.config.to_dict(),
            "class_names": list(self.train_set.class_names),
            "category_ids": list(self.train_set.categories.category_ids),
            "metrics": metrics,
            "training": training,
        }
        self.writer.save(self.trainer.steps_done, files, manifest)

    def _leave(self) -> NoReturn:
        """Ends the run as the signal asked, after its checkpoint is on the disk."""
        if self.writer:
            self.writer.wait()
        message = f"stopped after step {self.trainer.steps_done} and saved; resume to go on"
        raise KeyboardInterrupt(message) if self.stop.signal == signal.SIGINT else Terminated(message)

    def finish(self) -> dict[str, Any]:
        """Writes and returns the results."""
        remarks = _image_remarks(self.train_set, self.world)
        for remark in remarks:
            self.bar.say(remark)
        self.bar.close()
        on_gpu = self.world.device.type == "cuda"
        scored = [e for e in self.evaluations if e["AP"] is not None]
        return self.run.write_results(
            status="finished",
            error=None,
            metrics=self.result.metrics,
            per_class=self.result.per_class,
            protocol=self.result.protocol,
            best=max(scored, key=lambda e: (e["AP"], e["step"])) if scored else None,
            evaluations=self.evaluations,
            steps=self.trainer.steps_done,
            epochs=self.epoch,
            seconds=time.perf_counter() - self.began,
            parameters=count_parameters(self.trainer.detector),
            world_size=self.world.size,
            device=torch.cuda.get_device_name(self.world.device) if on_gpu else platform.processor() or "cpu",
            torch=torch.__version__,
            class_names=list(self.train_set.class_names),
            image_remarks=remarks,
        )


class _Window:
    """Sums of what the steps since the last line of metrics reported; the device is waited for once per line."""

    def __init__(self, world: World):
        self.world = world
        self.clear()

    def clear(self) -> None:
        self.steps: list[Step] = []
        self.start, self.waiting = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waiting += time.perf_counter() - start

    def summary(self) -> dict[str, Any]:
        """Means over the steps and ranks, as plain values."""
        names = list(self.steps[0].terms)
        rows = [torch.cat([s.loss[None], s.grad_norm[None], *(s.terms[name] for name in names)]) for s in self.steps]
        values = iter(self.world.mean_(torch.stack(rows).mean(0).float()).tolist())
        loss, grad_norm = next(values), next(values)
        terms = {name: [next(values) for _ in range(len(self.steps[0].terms[name]))] for name in names}

        branches = list(self.steps[0].positives)
        sums = self.world.sum(
            [sum(s.num_objects for s in self.steps), sum(s.num_images for s in self.steps)]
            + [sum(s.positives[branch] for s in self.steps) for branch in branches]
        )
        seconds = time.perf_counter() - self.start
        objects, images = sums[:2]
        return {
            "loss": loss,
            "terms": terms,
            "grad_norm": grad_norm,
            "positives_per_object": {branch: n / max(objects, 1) for branch, n in zip(branches, sums[2:])},
            "objects_per_image": objects / images,
            "seconds_per_step": seconds / len(self.steps),
            "data_seconds_per_step": self.waiting / len(self.steps),
            "images_per_second": images / seconds,
            "memory_mb": _memory_mb(self.world.device),
        }


def _memory_mb(device: torch.device) -> float:
    """Peak memory: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _starting_point(
    config: RunConfig, run: RunDirectory, resume, allow_config_change: bool, given_classes: bool
) -> str | None:
    """The directory of the checkpoint to resume from, None to start anew, FINISHED where all is done."""
    if str(resume) == "never":
        if checkpoints.available(run.path):
            raise RunDirectoryError(
                f"{run.path}: already has checkpoints and resume is 'never'; choose another run name, or resume=auto"
            )
        return None
    found = checkpoints.latest(run.path) if str(resume) == "auto" else checkpoints.find(resume)
    if found is None:
        return None
    harmless = harmless_on_resume() | (set() if given_classes else {"model.num_classes"})
    different = {k: v for k, v in checkpoints.changes(found.config, config).items() if k not in harmless}
    if different and not allow_config_change:
        lines = [f"  {path}: {old!r} in the checkpoint, {new!r} now" for path, (old, new) in different.items()]
        raise ConfigError(
            f"{found.directory}: was saved under another configuration:\n" + "\n".join(lines) + "\nResume with the "
            "checkpoint's configuration, allow the change (--allow-config-change), or start a run of another name "
            "with init_from"
        )
    finished = run.results().get("status") == "finished" and str(resume) == "auto" and not different
    return FINISHED if finished else str(found.directory)


def _build(config: RunConfig, world: World, given_classes: bool):
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


def _loader(dataset, config: RunConfig, trainer: Trainer) -> torch.utils.data.DataLoader:
    """The lists of micro-batches of this rank, from the trainer's next step to the end of its last epoch."""
    from ..data import build_train_loader

    epoch, step = divmod(trainer.steps_done, trainer.steps_per_epoch)
    epochs = max(-(-trainer.total_steps // trainer.steps_per_epoch) - epoch, 1)
    try:
        loader = build_train_loader(dataset, config, trainer.world.rank, trainer.world.size, epoch, step, epochs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    loader.worker_init_fn = leave_signals_to_parent
    return loader


@contextlib.contextmanager
def _deaths_named(world: World) -> Iterator[None]:
    """The death of a data worker or of another rank, which PyTorch raises at whatever line this process has reached, as
    an error that says what happened and what to do."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise TrainingError(
                f"a data worker died ({error}). It may have run out of memory: lower data.workers or data.max_size, "
                "switch data.cache off; then resume"
            ) from error
        if world.size > 1 and any(sign in str(error) for sign in SIGNS_OF_A_DEAD_RANK):
            raise TrainingError(
                f"rank {world.rank}: another rank has died or cannot be reached; its own output says why. The last "
                "checkpoint is intact: start the ranks again to go on from it, or let torchrun do so (--max-restarts). "
                f"({str(error).splitlines()[0]})"
            ) from error
        raise


@contextlib.contextmanager
def _written_down(run: RunDirectory, world: World) -> Iterator[None]:
    """Leaves a file in the run directory about a step that failed: which images this rank had in it, and why."""
    try:
        yield
    except StepError as error:
        report = {"step": error.step, "rank": world.rank, "image_ids": error.image_ids, "error": str(error)}
        with contextlib.suppress(WriteError):  # the step's error is the one to tell
            files.write_json(run.path / f"failed_step_{error.step}_rank{world.rank}.json", report)
        raise


def _image_remarks(dataset, world: World) -> list[str]:
    """What was out of the ordinary about images that any rank read, e.g. "3 × image unreadable and left out, image 4, 7, 9"."""
    from ..data.validate import Note

    found: dict[str, set[int]] = {}
    for report in world.gather(dataset.remarks()):
        for note in report.notes:
            found.setdefault(note.kind, set()).update(note.ids)
    return [str(Note(kind, tuple(sorted(ids)))) for kind, ids in found.items()]


def _due(step: int, every: float, epoch_steps: int) -> bool:
    """Whether something that happens every so many epochs (0: never) happens after this step."""
    return every > 0 and step % max(1, round(every * epoch_steps)) == 0


def count_parameters(detector: nn.Module) -> dict[str, int]:
    """How many parameters there are in all, and how many of them learn; shared ones count once."""
    return {
        "total": sum(p.numel() for p in detector.parameters()),
        "trainable": sum(p.numel() for p in detector.parameters() if p.requires_grad),
    }
