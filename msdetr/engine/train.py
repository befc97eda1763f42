"""Training: a step that is right for any number of micro-batches and ranks, and a run that can stop anywhere."""

from __future__ import annotations

import contextlib
import inspect
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError, RunConfig, TrainConfig
from ..structures import ImageBatch, Targets
from . import checkpoint as checkpoints
from .distributed import ALONE, World, join, leave
from .errors import (
    CheckpointError,
    EvaluationStopped,
    NonFiniteError,
    OutOfMemoryError,
    RunDirectoryError,
    StepError,
    Terminated,
    TrainingError,
)
from .evaluate import EvalResult, autocast, evaluate
from .optim import MovingAverage, build_optimizer, global_norm, lr_factor, set_learning_rates
from .progress import Progress
from .run import RunDirectory, write_json
from .signals import StopRequest, leave_signals_to_parent
from .tensorboard import require_tensorboard

MicroBatch = tuple[ImageBatch, Targets]

# settings that a resumed run may change without changing what is computed
HARMLESS = {
    "recipe",
    "data.workers",
    "data.cache",
    "data.skip_images",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.tensorboard",
}
FINISHED = "finished"
SIGNS_OF_A_DEAD_RANK = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "timed out")


@dataclass(frozen=True)
class Step:
    """What one optimiser step reports, on the device: nothing here has been waited for.

    index: number of the step, from 0. image_ids, num_objects, num_images: of this rank.
    loss: 0-d, weighted total. terms: "branch/term" -> [K]. grad_norm: 0-d, before clipping.
    positives: branch -> matched pairs per layer.
    """

    index: int
    loss: Tensor
    terms: dict[str, Tensor]
    grad_norm: Tensor
    positives: dict[str, float]
    image_ids: tuple[int, ...]
    num_objects: int
    num_images: int


class Trainer:
    """A detector and everything that changes as it learns: optimiser, moving average, step count.

    criterion: ``criterion(output, targets, num_boxes) -> Losses``.
    steps_per_epoch, total_steps: for the schedule.
    """

    def __init__(
        self,
        detector: nn.Module,
        criterion,
        config: TrainConfig,
        total_steps: int,
        steps_per_epoch: int,
        world: World = ALONE,
    ):
        self.detector = detector.to(world.device)
        self.criterion = criterion
        self.config = config
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.world = world
        self.optimizer = build_optimizer(detector, config)
        self.average = MovingAverage(detector, config.ema_decay) if config.ema_decay > 0 else None
        self.steps_done = 0
        detector.gradient_checkpointing = config.gradient_checkpointing
        self._parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self._parallel = None
        self._unchecked: tuple[Tensor, Step] | None = None
        if world.size > 1:
            ids = [world.device] if world.device.type == "cuda" else None
            # buffers never change, or change alike on all ranks; torch has renamed the setting
            known = inspect.signature(DistributedDataParallel).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            self._parallel = DistributedDataParallel(
                detector, device_ids=ids, gradient_as_bucket_view=True, **{buffers: False}
            )

    @property
    def evaluated(self) -> nn.Module:
        """The detector to evaluate: the moving average where there is one."""
        return self.average.detector if self.average else self.detector

    @property
    def lr(self) -> float:
        """The factor on the base learning rates of the next step."""
        return lr_factor(self.config, self.steps_done, self.total_steps, self.steps_per_epoch)

    def step(self, micro_batches: Sequence[MicroBatch], num_boxes: float | None = None) -> Step:
        """One optimiser step over this rank's micro-batches.

        num_boxes: what losses are divided by, the objects of the global batch / ranks, at least 1; None: the objects of
        these micro-batches. With it the gradient, summed over micro-batches and averaged over ranks, is that of the
        whole global batch at once.

        A NaN or infinite loss or gradient leaves weights and optimiser as they were: the update is skipped on the
        device. On a GPU the host learns of it, as NonFiniteError, in ``check``, which the next step calls.
        """
        if num_boxes is None:
            num_boxes = max(float(sum(len(targets) for _, targets in micro_batches)), 1.0)
        self.detector.train()
        self.optimizer.zero_grad(set_to_none=True)
        step = self._accumulate(micro_batches, num_boxes)
        self.check()

        finite = step.loss.isfinite() & step.grad_norm.isfinite()
        if self.config.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip_norm, step.grad_norm)
        set_learning_rates(self.optimizer, self.lr)
        self.optimizer.found_inf = (~finite).float()  # AdamW's fused step does nothing where this is 1
        self.optimizer.step()
        if self.average:
            self.average.update(self.detector, self.steps_done)
        self._unchecked = (finite, step)
        if self.world.device.type == "cpu":
            self.check()
        self.steps_done += 1
        return step

    def _accumulate(self, micro_batches: Sequence[MicroBatch], num_boxes: float) -> Step:
        """Forward and backward over all micro-batches; ranks exchange gradients during the last backward only."""
        total, terms, positives = torch.zeros((), device=self.world.device), {}, {}
        image_ids = tuple(image_id for _, targets in micro_batches for image_id in targets.image_ids)
        for i, (batch, targets) in enumerate(micro_batches):
            batch = batch.to(self.world.device, non_blocking=True)
            targets = targets.to(self.world.device, non_blocking=True)
            with (
                self._no_exchange(unless=i == len(micro_batches) - 1),
                out_of_memory_advice(batch, targets, self.config),
            ):
                with autocast(self.world.device, self.config.precision):
                    output = (self._parallel or self.detector)(batch)
                try:
                    losses = self.criterion(output, targets, num_boxes)
                except ValueError as error:  # the matchers name image, layer and query of what they cannot use
                    raise StepError(f"step {self.steps_done}: {error}", self.steps_done, image_ids) from error
                losses.total.backward()
            total = total + losses.total.detach()
            for name, value in losses.terms.items():
                terms[name] = terms[name] + value if name in terms else value
            for branch, matches in losses.matches.items():
                layers = max(len(value) for name, value in losses.terms.items() if name.startswith(branch + "/"))
                positives[branch] = positives.get(branch, 0) + len(matches) / layers
        return Step(
            index=self.steps_done,
            image_ids=image_ids,
            loss=self.world.mean_(total),
            terms=terms,
            grad_norm=global_norm(self._parameters),
            positives=positives,
            num_objects=sum(len(targets) for _, targets in micro_batches),
            num_images=sum(len(batch) for batch, _ in micro_batches),
        )

    def _no_exchange(self, unless: bool):
        return contextlib.nullcontext() if unless or self._parallel is None else self._parallel.no_sync()

    def check(self) -> None:
        """Raises NonFiniteError if the last step met a NaN or an infinity. Waits for the device."""
        if self._unchecked is None:
            return
        (finite, step), self._unchecked = self._unchecked, None
        if not finite:
            bad = [name for name, value in step.terms.items() if not value.isfinite().all()]
            raise NonFiniteError(
                f"step {step.index}: loss {float(step.loss)}, gradient norm {float(step.grad_norm)}"
                + (f", non-finite terms: {', '.join(bad)}" if bad else "")
                + f", images {list(step.image_ids)}. The weights were not changed by it. Look at these images, lower "
                "train.lr, set train.clip_norm, or train with train.precision=fp32",
                step.index,
                step.image_ids,
            )

    def files(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything a checkpoint needs: tensors by file, and plain values. All ranks must call it together."""
        self.check()
        optimizer, groups = checkpoints.optimizer_files(self.optimizer)
        files = {"model": self.detector.state_dict(), "optimizer": optimizer, "rng": {}}
        if self.average:
            files["ema"] = self.average.detector.state_dict()
        for rank, states in enumerate(self.world.gather(_generator_states(self.world.device))):
            files["rng"] |= {f"{kind}.{rank}": state for kind, state in states.items()}
        return files, {"optimizer": groups, "world_size": self.world.size}

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continues from a checkpoint: weights, moving average, optimiser, random generators, step count.

        Raises CheckpointError where one of them is missing or does not fit.
        """
        checkpoints.load_weights(self.detector, checkpoint.tensors("model"))
        if self.average:
            checkpoints.load_weights(self.average.detector, checkpoint.tensors("ema"))
        training = checkpoint.manifest["training"]
        checkpoints.restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"), training["optimizer"])
        self.steps_done = checkpoint.step
        generators = checkpoint.tensors("rng")
        if training["world_size"] == self.world.size and f"cpu.{self.world.rank}" in generators:
            states = {
                kind: generators[key] for kind in ("cpu", "cuda") if (key := f"{kind}.{self.world.rank}") in generators
            }
            _restore_generators(states, self.world.device)
        else:  # dropout masks belong to a rank, so another number of ranks draws others
            torch.manual_seed(_seed(self.steps_done, self.world.rank))


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def out_of_memory_advice(batch: ImageBatch, targets: Targets, config: TrainConfig) -> Iterator[None]:
    """Turns running out of device memory into an error that says what was tried and what would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = []
        if len(batch) > 1:
            advice.append(f"train.micro_batch={len(batch) // 2} (the optimiser's batch stays {config.batch_size})")
        if not config.gradient_checkpointing:
            advice.append("train.gradient_checkpointing=true")
        if config.precision == "fp32":
            advice.append("train.precision=bf16")
        advice.append("smaller images (data.max_size, data.train_sizes)")
        raise OutOfMemoryError(
            f"the device ran out of memory with {len(batch)} images padded to {tuple(batch.images.shape[-2:])} pixels "
            f"and {len(targets)} objects (images {list(targets.image_ids)}). Try, in this order: {'; '.join(advice)}. "
            f"({str(error).splitlines()[0]})"
        ) from error


class _Window:
    """Sums of what the steps since the last line of metrics reported; the device is waited for once per line."""

    def __init__(self, world: World):
        self.world = world
        self.clear()

    def clear(self) -> None:
        self.steps: list[Step] = []
        self.start, self.waiting = time.perf_counter(), 0.0

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
    on_step: Callable[[nn.Module, int, float], Any] | None = None,
) -> dict[str, Any]:
    """Trains a detector and leaves everything about it in ``run_dir``; returns what results.json says.

    device: "auto" (this rank's GPU, else the CPU), "cpu", "cuda" or "cuda:N".
    resume: "auto" continues from the newest checkpoint in ``run_dir`` if there is one (a run that is finished is
        returned as it is); "never" insists on a fresh directory; a path continues from that checkpoint.
    init_from: checkpoint or run whose weights the training starts from; ``reset_class_head`` where the number of
        classes differs, ``init_partial`` to take whatever fits. Does not apply to a run that resumes.
    allow_config_change: resume although the configuration differs from the checkpoint's.
    on_step: called on the first rank as ``on_step(detector, steps done, epoch)``, before the first step and after each,
        e.g. ``msdetr.analysis.stability.MatchRecorder``.

    Under torchrun every rank calls this. On SIGTERM, or Ctrl-C, the step is finished and saved first.
    Raises ConfigError, EngineError (see ``msdetr.engine.errors``), the data set's errors, and Terminated (exit 143).
    """
    if str(resume) not in ("auto", "never") and not Path(resume).exists():
        raise CheckpointError(f"resume: {resume} does not exist; give auto, never or a checkpoint directory")
    if config.train.tensorboard:
        require_tensorboard()
    world = join(device)
    with RunDirectory(run_dir, world) as run:
        watch = on_step if world.main else None
        results = _train(
            config, run, world, resume, progress, init_from, reset_class_head, init_partial, allow_config_change, watch
        )
    leave()
    return results


def _train(
    config, run, world, resume, progress, init_from, reset_class_head, init_partial, allow_config_change, on_step=None
):
    start = world.on_main(lambda: _starting_point(config, run, resume, allow_config_change))
    if start == FINISHED:
        return run.results()
    if start is None:
        run.write_config(config)
    started = run.write_results(status="running", error=None, recipe=config.recipe, seed=config.seed)

    train_set, val_set, trainer = _build(config, world)
    detector = trainer.detector
    seconds, evaluations = 0.0, []
    if start is not None:
        checkpoint = checkpoints.read(start)
        trainer.restore(checkpoint)
        run.forget_after(trainer.steps_done)
        seconds = checkpoint.manifest["training"]["seconds"]
        evaluations = checkpoint.manifest["training"]["evaluations"]
        run.write_config(config)
    elif init_from is not None:
        taken = _initialize(detector, init_from, reset_class_head, init_partial)
        if trainer.average:
            trainer.average = MovingAverage(detector, config.train.ema_decay)
        started = run.write_results(init_from={"path": str(init_from), "report": taken.report(), **asdict(taken)})
        run.log("init", step=0, path=str(init_from), report=taken.report())

    if config.train.tensorboard:
        run.log_to_tensorboard(trainer.steps_done)
    epoch_steps = trainer.steps_per_epoch
    eval_every = _interval(config.train.eval_every, epoch_steps)
    save_every = _interval(config.train.checkpoint_every, epoch_steps)
    bar = Progress(trainer.total_steps, trainer.steps_done, title=run.path.name, enabled=progress and world.main)
    if init_from is not None and start is None:
        bar.say(f"initialised from {init_from}: {taken.report()}")
    writer = checkpoints.Writer(run.path) if world.main else None
    began = time.perf_counter() - seconds

    def save(metrics: dict[str, Any]) -> None:
        files, training = trainer.files()
        if writer is not None:
            writer.save(
                trainer.steps_done,
                files,
                {
                    "epoch": trainer.steps_done / epoch_steps,
                    "config": config.to_dict(),
                    "class_names": list(train_set.class_names),
                    "category_ids": list(train_set.categories.category_ids),
                    "metrics": metrics,
                    "training": {**training, "seconds": time.perf_counter() - began, "evaluations": evaluations},
                },
            )

    def evaluate_now() -> EvalResult:
        result = evaluate(
            trainer.evaluated,
            val_set,
            max_detections=config.train.max_detections,
            batch_size=max(config.train.micro_batch, 1),
            workers=config.data.workers,
            precision=config.train.precision,
            world=world,
            progress=progress,
            stop=lambda: stop.signal is not None,
        )
        record = {"step": trainer.steps_done, "epoch": trainer.steps_done / epoch_steps, **result.metrics}
        evaluations.append(record)
        run.log("eval", **record, seconds=result.seconds, num_detections=result.num_detections)
        bar.say(f"epoch {record['epoch']:.2f}, step {trainer.steps_done}: {result.summary().splitlines()[0]}")
        return result

    result, saved_at = None, trainer.steps_done if start is not None else -1
    window = _Window(world)
    with _deaths_named(world), StopRequest(watchdog=world.size > 1) as stop:
        data = iter(_loader(train_set, config, trainer))
        if on_step and not trainer.steps_done:
            on_step(detector, 0, 0.0)
        while trainer.steps_done < trainer.total_steps:
            micro_batches = _next(data, window)
            objects, stopping = world.sum([sum(len(t) for _, t in micro_batches), stop.signal is not None])
            if stopping:
                if saved_at != trainer.steps_done:
                    save({})
                _stop(stop, writer, trainer)
            lr = {g["name"]: g["base_lr"] * trainer.lr for g in trainer.optimizer.param_groups}
            with _written_down(run, world):
                step = trainer.step(micro_batches, max(objects / world.size, 1.0))
            window.steps.append(step)
            if on_step:
                on_step(detector, trainer.steps_done, trainer.steps_done / epoch_steps)
            done, text = trainer.steps_done, ""
            last = done == trainer.total_steps
            if done % config.train.log_every == 0 or last:
                with _written_down(run, world):
                    trainer.check()
                summary = window.summary()
                run.log("train", step=done, epoch=done / epoch_steps, lr=lr, **summary)
                text = f"loss {summary['loss']:.3f}"
                window.clear()
            bar.advance(1, text)
            metrics: dict[str, Any] = {}
            if last or (eval_every and done % eval_every == 0):
                previous = max((e["AP"] or 0 for e in evaluations), default=-1)
                with contextlib.suppress(EvaluationStopped):  # the next turn of the loop saves and stops
                    result = evaluate_now()
                    metrics = result.metrics
            is_best = metrics.get("AP") is not None and metrics["AP"] > previous
            if last or is_best or (save_every and done % save_every == 0):
                save(metrics)
                saved_at = done
            if metrics:
                window.clear()  # the time of an evaluation is not the time of a step
        if result is None or (
            evaluations and evaluations[-1]["step"] != trainer.steps_done
        ):  # only the numbers are missing
            with contextlib.suppress(EvaluationStopped):
                result = evaluate_now()
        if saved_at != trainer.steps_done:
            save({} if result is None else result.metrics)
        if stop.signal is not None and result is None:
            _stop(stop, writer, trainer)
        if writer is not None:
            writer.wait()
    remarks = _image_remarks(train_set, world)
    for remark in remarks:
        bar.say(remark)
    bar.close()
    scored = [e for e in evaluations if e["AP"] is not None]
    finished = started | {
        "status": "finished",
        "error": None,
        "metrics": result.metrics,
        "per_class": result.per_class,
        "protocol": result.protocol,
        "best": max(scored, key=lambda e: (e["AP"], e["step"])) if scored else None,
        "evaluations": evaluations,
        "steps": trainer.steps_done,
        "epochs": trainer.steps_done / epoch_steps,
        "seconds": time.perf_counter() - began,
        "parameters": count_parameters(detector),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else platform.processor() or "cpu",
        "torch": torch.__version__,
        "class_names": list(train_set.class_names),
        "image_remarks": remarks,
    }
    return run.write_results(**finished) if world.main else finished


def _starting_point(config: RunConfig, run: RunDirectory, resume, allow_config_change: bool) -> str | None:
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
    different = {k: v for k, v in checkpoints.changes(found.config, config).items() if k not in HARMLESS}
    if different and not allow_config_change:
        lines = [f"  {path}: {old!r} in the checkpoint, {new!r} now" for path, (old, new) in different.items()]
        raise ConfigError(
            f"{found.directory}: was saved under another configuration:\n" + "\n".join(lines) + "\nResume with the "
            "checkpoint's configuration, allow the change (--allow-config-change), or start a run of another name "
            "with init_from"
        )
    finished = run.results().get("status") == "finished" and str(resume) == "auto" and not different
    return FINISHED if finished else str(found.directory)


def _build(config: RunConfig, world: World):
    """Data sets, and a trainer around a freshly initialised detector that is the same on all ranks."""
    from ..data import build_datasets
    from ..losses import build_criterion
    from ..model import build_model

    if world.size > 1:
        world.on_main(lambda: build_datasets(config) and None)  # generates the embedded data once
    train_set, val_set = build_datasets(config)
    if len(train_set.class_names) != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes: is {config.model.num_classes}, but {config.data.root} ({config.data.train_split}) has "
            f"{len(train_set.class_names)} classes; set model.num_classes={len(train_set.class_names)}"
        )
    epoch_steps = len(train_set) // config.train.batch_size
    if epoch_steps == 0:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images per step, but the training set has {len(train_set)}; "
            "lower train.batch_size or give more data"
        )
    if config.train.batch_size < world.size:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images per step cannot be shared by {world.size} ranks"
        )
    total_steps = max(1, round(config.train.epochs * epoch_steps)) if config.train.epochs > 0 else 0
    torch.manual_seed(_seed(config.seed, 0))
    detector = build_model(config.model)
    criterion = build_criterion(config)
    trainer = Trainer(detector, criterion, config.train, total_steps, epoch_steps, world)
    torch.manual_seed(_seed(config.seed, 1, world.rank))  # dropout differs from rank to rank
    return train_set, val_set, trainer


def _initialize(detector: nn.Module, path, reset_class_head: bool, partial: bool) -> checkpoints.TakenOver:
    return checkpoints.load_weights(detector, checkpoints.find(path).weights(), reset_class_head, partial)


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


def _next(data: Iterator[list[MicroBatch]], window: _Window) -> list[MicroBatch]:
    start = time.perf_counter()
    micro_batches = next(data)
    window.waiting += time.perf_counter() - start
    return micro_batches


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
        write_json(run.path / f"failed_step_{error.step}_rank{world.rank}.json", report)
        raise


def _stop(stop: StopRequest, writer: checkpoints.Writer | None, trainer: Trainer) -> None:
    if writer is not None:
        writer.wait()
    message = f"stopped after step {trainer.steps_done} and saved; resume to go on"
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise Terminated(message)


def _image_remarks(dataset, world: World) -> list[str]:
    """What was out of the ordinary about images that any rank read, e.g. "3 × image unreadable and left out, image 4, 7, 9"."""
    from ..data.validate import Note

    found: dict[str, set[int]] = {}
    for report in world.gather(dataset.remarks()):
        for note in report.notes:
            found.setdefault(note.kind, set()).update(note.ids)
    return [str(Note(kind, tuple(sorted(ids)))) for kind, ids in found.items()]


def _interval(epochs: float, epoch_steps: int) -> int:
    """Epochs as steps, 0 for never."""
    return max(1, round(epochs * epoch_steps)) if epochs > 0 else 0


def _seed(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def count_parameters(detector: nn.Module) -> dict[str, int]:
    """How many parameters there are in all, and how many of them learn; shared ones count once."""
    return {
        "total": sum(p.numel() for p in detector.parameters()),
        "trainable": sum(p.numel() for p in detector.parameters() if p.requires_grad),
    }
