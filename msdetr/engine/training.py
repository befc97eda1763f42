"""A run while it goes on: steps, evaluations and checkpoints, and what becomes of a failure in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ..config import RunConfig
from ..errors import EngineError, EvaluationStopped, TrainingError
from ..methods import build_postprocess
from ..model.convert import load_released
from . import checkpoint as checkpoints
from . import location
from .card import described_data, write_card
from .distributed import World
from .evaluate import evaluate
from .failures import explaining_dead_ranks, reporting_failed_step
from .memory import micro_batch
from .metric import EvalResult
from .mlflow import MLflowRun
from .optim import MovingAverage
from .outcome import image_remarks, outcome
from .patience import out_of_patience, stopping
from .postprocess import postprocess
from .progress import Progress
from .run import RunDirectory
from .signals import StopRequest, StopRequested
from .start import HELD_OUT, build, train_loader
from .tensorboard import EventFiles
from .trainer import MicroBatch
from .transformers_folder import is_transformers_folder, transformers_weights
from .window import Window

Observer = Callable[[nn.Module, int, float], Any]  # (detector, steps done, epoch)


class Training:
    """A run while it goes on.

    start: directory of the checkpoint to go on from, None for a new run. weights_to_come: all weights will be replaced, so
    none are fetched for the backbone. The other arguments are as for ``train``.
    observers: what is called on the first rank, before the first step and after each, by the name that errors give it.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        world: World,
        start: str | None,
        stop: StopRequest,
        progress: bool = True,
        weights_to_come: bool = False,
        given_classes: bool = True,
    ):
        self.config, self.run, self.world, self.stop, self.progress = config, run, world, stop, progress
        checkpoint = None if start is None else checkpoints.read(start)
        own = checkpoint is not None and run.owns(checkpoint.directory)
        run.begin(config, checkpoint.step if own else 0)
        run.write_results(status="running", error=None, recipe=config.recipe, seed=config.seed)
        located = config if start is None else location.resumed(run.path, config)
        needed = located.override({"model.pretrained": "none"}) if weights_to_come else located
        built, notes, self.train_set, self.val_set, self.trainer = build(needed, world, given_classes)
        self.config = config.override({"model.num_classes": built.model.num_classes})
        if self.config != config:
            run.write_config(self.config)
        self.data_root = located.data.root
        run.write_data_location(config, self.data_root)
        if self.val_set.part is not None and self.val_set.part.held_out:
            run.write_lines(HELD_OUT, self.val_set.annotations.file_names)
        self.observers: dict[str, Observer] = {}
        self.result: EvalResult | None = None  # of the last evaluation
        self.evaluations: list[dict[str, Any]] = []
        self.stopped_early = False
        self.micro_batch: int | None = None  # images per forward pass, once it is known
        self.failure: Exception | None = None  # to be raised once the finished step is saved
        self.saved_at = checkpoint.step if own else None  # the step that was handed to the writer last
        self.began = time.perf_counter()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.resumed_at = self.trainer.steps_done
        self._add_trackers()
        self.bar = Progress(
            self.trainer.total_steps, self.trainer.steps_done, title=run.path.name, enabled=progress and world.main
        )
        for note in [*run.notes, *notes]:
            self.bar.say(note)
        if checkpoint is not None and (epochs := checkpoint.config.train.epochs) < config.train.epochs:
            self.bar.say(f"{run.path.name}: goes on from {epochs:g} to {config.train.epochs:g} epochs")
        self.window = Window(world)
        self.writer = checkpoints.Writer(run.path, self.saved_at) if world.main else None

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        self.trainer.restore(checkpoint)
        done = self.trainer.steps_done
        self.began -= checkpoint.training["seconds"]
        self.evaluations = checkpoint.training["evaluations"]
        self.micro_batch = checkpoint.training.get("micro_batch")
        self._lose_patience()
        if self._is_over:  # it will be evaluated once more
            self.evaluations = [record for record in self.evaluations if record["step"] != done]
        evaluated = {record["step"] for record in self.evaluations}
        self.run.keep_lines(lambda line: line["step"] <= done and (line["kind"] != "eval" or line["step"] in evaluated))

    def initialize(self, path: str | Path, reset_class_head: bool, partial: bool) -> None:
        """Starts from the weights of a checkpoint or run, of a released file, or of transformers' Deformable DETR, and reports what
        was taken over."""
        detector = self.trainer.detector
        if Path(path).is_file():
            weights = load_released(path, self.config)
        elif is_transformers_folder(path):
            weights = transformers_weights(path, self.config)
        else:
            weights = checkpoints.find(path, checkpoints.verify_weights).weights()
        taken = checkpoints.load_weights(detector, weights, reset_class_head, partial)
        if self.trainer.average:
            self.trainer.average = MovingAverage(detector, self.config.train.ema_decay)
        self.run.write_results(init_from={"path": str(path), "report": taken.report(), **asdict(taken)})
        self.run.log("init", step=0, path=str(path), report=taken.report())
        self.bar.say(f"initialised from {path}: {taken.report()}")

    def add_recorder(self, make: Callable[[Path, Any, RunConfig, int], Observer | None]) -> None:
        """Has what ``make`` returns called after each step, on the first rank."""
        if self.world.main:
            observer = make(self.run.path, self.val_set, self.config, self.trainer.total_steps)
            if observer is None:
                self.bar.say("nothing is recorded: the validation set is too large for it")
            else:
                self.observers["the recorder"] = observer

    def _add_trackers(self) -> None:
        """Those that the settings ask for, on the first rank."""
        settings = self.config.train
        if settings.tensorboard and self.world.main:
            self.run.log_also_to(EventFiles(self.run.path / "tensorboard", self.trainer.steps_done))
        if settings.mlflow and self.world.main:
            tracker = MLflowRun(self.run.path, self.config, self.run.results().get("mlflow"))
            self.run.write_results(mlflow=tracker.identity)
            self.run.log_also_to(tracker)

    @property
    def epoch(self) -> float:
        return self.trainer.steps_done / self.trainer.steps_per_epoch

    @property
    def _is_over(self) -> bool:
        return self.stopped_early or self.trainer.steps_done >= self.trainer.total_steps

    def _lose_patience(self) -> None:
        """Ends training early where the evaluation of the last step says so."""
        done, patience = self.trainer.steps_done, self.config.train.patience
        if self.evaluations and self.evaluations[-1]["step"] == done < self.trainer.total_steps:
            self.stopped_early = out_of_patience(self.evaluations, patience)

    def learn(self) -> None:
        """Steps to the end, with the evaluations and checkpoints that are due in between.

        Raises Terminated or KeyboardInterrupt, once all is saved, where a signal asked for it.
        """
        from ..data.workers import Reader

        loader = train_loader(self.train_set, self._in_pieces(), self.trainer)
        with explaining_dead_ranks(self.world), self._keeping_finished_steps():
            with Reader(loader, self.stop.interrupting) as data:
                if self.trainer.steps_done == 0:
                    self._tell_observers()
                if self._evaluation_was_cut_short():
                    self._evaluate()
                self.window.clear()  # the first step begins
                while not self._is_over:
                    self._step(self._read(data))
                    self._look()
            if not self._is_evaluated:
                self._evaluate()  # only the numbers are missing
            failed = self.world.sum([self.failure is not None])[0]
            if failed or not self._is_evaluated:
                self._end(failed)
            if self.writer:
                self.writer.wait()

    def _in_pieces(self) -> RunConfig:
        """The configuration with the number of images per forward pass, which may have to be found first."""
        self.micro_batch = micro_batch(self.config, self.trainer, self.train_set, self.micro_batch)
        if self.config.train.micro_batch == "auto":
            self.bar.say(f"{self.run.path.name}: {self.micro_batch} images per forward pass (train.micro_batch=auto)")
        return self.config.override({"train.micro_batch": self.micro_batch})

    def _read(self, data: Iterator[list[MicroBatch]]) -> list[MicroBatch]:
        """This rank's part of the next step; nothing where there will be no next step."""
        batches: list[MicroBatch] = []
        with (
            self.window.waiting_for_data(),
            contextlib.suppress(StopRequested),
            self._deferring("reading the next images"),
        ):
            batches = next(data)
        return batches

    def _step(self, micro_batches: list[MicroBatch]) -> None:
        objects, stopping, failed = self.world.sum(
            [sum(len(t) for _, t in micro_batches), self.stop.requested, self.failure is not None]
        )
        if stopping:
            self._end(failed)
        with reporting_failed_step(self.run, self.world):
            self.window.steps.append(self.trainer.step(micro_batches, objects / self.world.size))

    def _look(self) -> None:
        """Whatever is due after a step: a line in the log, a checkpoint, then what others want to see, an evaluation."""
        settings, epoch_steps = self.config.train, self.trainer.steps_per_epoch
        done, last = self.trainer.steps_done, self.trainer.steps_done == self.trainer.total_steps
        summary = self._summary() if last or done % settings.log_every == 0 else {}
        with self._deferring("writing the log"):
            self.run.check()
            if summary:
                self._log(summary)
            self.bar.advance(1, f"loss {summary['loss']:.3f}" if summary else "")
        evaluating = last or _due(done, settings.eval_every, epoch_steps)
        if evaluating or _due(done, settings.checkpoint_every, epoch_steps):
            self._save()
        self._tell_observers()
        if evaluating:
            with self.window.paused():
                self._evaluate()
            if self.stopped_early and self.window.steps:  # no later line will tell of them
                summary = self._summary()
                with self._deferring("writing the log"):
                    self._log(summary)

    def _summary(self) -> dict[str, Any]:
        """Means over the steps since the last line of the log."""
        with reporting_failed_step(self.run, self.world):
            self.trainer.check()
        summary = self.window.summary()
        self.window.clear()
        return summary

    def _log(self, summary: dict[str, Any]) -> None:
        rates = {group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups}
        self.run.log("train", step=self.trainer.steps_done, epoch=self.epoch, lr=rates, **summary)

    def _tell_observers(self) -> None:
        for name, observer in self.observers.items() if self.world.main else ():
            with self._deferring(name), self._uncompiled():
                observer(self.trainer.detector, self.trainer.steps_done, self.epoch)

    def _uncompiled(self) -> contextlib.AbstractContextManager:
        """Layers as they are written: for what a run does now and then, compiling them takes longer than it saves."""
        return torch.compiler.set_stance("force_eager") if self.config.train.compile else contextlib.nullcontext()

    def _evaluation_was_cut_short(self) -> bool:
        done = self.trainer.steps_done
        due = 0 < done < self.trainer.total_steps and _due(
            done, self.config.train.eval_every, self.trainer.steps_per_epoch
        )
        return due and not self._is_over and all(record["step"] != done for record in self.evaluations)

    def _evaluate(self) -> None:
        """Evaluates the weights as they are, once they are saved. A signal, or a failure on any rank, cuts it short."""
        if self.saved_at != self.trainer.steps_done:
            self._save()
        try:
            with self._uncompiled():
                result = evaluate(
                    self.trainer.evaluated,
                    self.val_set,
                    max_detections=self.config.train.max_detections,
                    batch_size=self.micro_batch or self.config.train.at_once,
                    workers=self.config.data.workers,
                    worker_timeout=self.config.data.worker_timeout,
                    precision=self.config.train.precision,
                    world=self.world,
                    progress=self.progress,
                    stop=self.stop,
                    to_detections=build_postprocess(self.config) or postprocess,
                )
        except EvaluationStopped:
            return
        except Exception as error:
            done = self.trainer.steps_done
            saved = ", which is saved" if self.writer and self.writer.has(done) else ""
            error.add_note(f"(in the evaluation after step {done}{saved})")
            raise
        record = {"step": self.trainer.steps_done, "epoch": self.epoch, **result.metrics}
        self.result = result
        self.evaluations.append(record)
        self._lose_patience()
        with self._deferring("recording the evaluation"):
            # first, since a run that goes on drops lines that its checkpoint does not know, and evaluates again
            self.run.log("eval", **record, seconds=result.seconds, num_detections=result.num_detections)
            if self.writer:
                self.writer.record(record["step"], result.metrics, self.evaluations)
            self.bar.say(f"epoch {self.epoch:.2f}, step {record['step']}: {result.summary().splitlines()[0]}")

    @property
    def _is_evaluated(self) -> bool:
        return self.result is not None and self.evaluations[-1]["step"] == self.trainer.steps_done

    def _save(self) -> None:
        files, training = self.trainer.files()
        if self.writer is not None:
            # that of this step comes with ``record``, or once more where the run goes on
            before = [record for record in self.evaluations if record["step"] != self.trainer.steps_done]
            training |= {"seconds": time.perf_counter() - self.began, "evaluations": before}
            training |= {"micro_batch": self.micro_batch}
            manifest = {
                "epoch": self.epoch,
                "config": self.config.to_dict(),
                "class_names": list(self.train_set.class_names),
                "category_ids": list(self.train_set.categories.category_ids),
                "metrics": {},  # once it is evaluated
                "training": training,
            }
            self.run.check()
            self.writer.save(self.trainer.steps_done, files, manifest)
        self.saved_at = self.trainer.steps_done

    @contextlib.contextmanager
    def _deferring(self, where: str) -> Iterator[None]:
        """Keeps a failure until the finished step is saved, by all ranks together, at the next step."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised by _end)
            error.add_note(f"({where}, after step {self.trainer.steps_done})")
            self.failure = self.failure or error
            self.stop.cancel()

    @contextlib.contextmanager
    def _keeping_finished_steps(self) -> Iterator[None]:
        """Saves the steps that were finished before one failed. (Ranks save together; where one fails alone they cannot.)"""
        try:
            yield
        except Exception as error:
            if error is not self.failure and self.world.size == 1 and self.trainer.intact:
                self._save_before(error)
            raise

    def _save_before(self, error: Exception) -> None:
        """Saves steps that are done, if there are any new ones, before ``error`` is raised. All ranks call it together."""
        done, problem = self.trainer.steps_done, None
        try:
            if done > self.resumed_at and not self._is_on_disk():
                if self.writer:
                    with contextlib.suppress(EngineError, OSError):  # what could not be written is tried once more
                        self.writer.wait()
                self._save()
                if self.writer:
                    self.writer.wait()
        except (EngineError, OSError) as other:
            problem = "" if str(other) == str(error) else f": {other}"
        if self._is_on_disk():
            error.add_note(f"(step {done} is saved; start again to go on from it)")
        elif problem is not None:
            error.add_note(f"(step {done} could not be saved{problem})")

    def _is_on_disk(self) -> bool:
        """Whether the finished step is saved, on all ranks alike, once nothing is being written."""
        return bool(self.world.sum([self.writer is not None and self.writer.has(self.trainer.steps_done)])[0])

    def _end(self, failed: bool) -> NoReturn:
        """Ends the run as a signal or a failure asked, after its checkpoint is on the disk."""
        if failed:
            error = self.failure or TrainingError(
                f"rank {self.world.rank}: another rank failed; its own output says why"
            )
            self.failure = error
            self._save_before(error)
            raise error
        if self.saved_at != self.trainer.steps_done:
            self._save()
        if self.writer:
            self.writer.wait()
        raise self.stop.exit(f"stopped after step {self.trainer.steps_done} and saved; resume to go on")

    def finish(self) -> dict[str, Any]:
        """Writes the results, and returns them on all ranks."""
        remarks = image_remarks(self.train_set, self.world)
        for remark in remarks:
            self.bar.say(remark)
        early = stopping(self.evaluations, self.config.train.patience) if self.stopped_early else None
        if early:
            self.bar.say(f"{self.run.path.name}: {early['text']}")
        self.bar.close()
        values = outcome(self.trainer, self.train_set, self.result, self.evaluations) | {
            "stopped_early": early,
            "seconds": time.perf_counter() - self.began,
            "micro_batch": self.micro_batch,
            "image_remarks": remarks,
            "data": described_data(self.train_set, self.val_set, self.data_root),
        }

        def write() -> dict[str, Any]:
            results = self.run.write_results(**values)
            write_card(self.run.path, self.config, results)
            return results

        return self.world.on_main(write)


def _due(step: int, every: float, epoch_steps: int) -> bool:
    """Whether something that happens every so many epochs (0: never) happens after this step."""
    return every > 0 and step % max(1, round(every * epoch_steps)) == 0
