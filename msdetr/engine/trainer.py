"""One optimiser step that is right for any number of micro-batches and ranks, and everything that changes as it learns."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..errors import ConfigError, InputError, NonFiniteError, OutOfMemoryError, StepError
from ..structures import ImageBatch, Targets
from . import checkpoint as checkpoints
from .distributed import ALONE, World
from .evaluate import mixed_precision
from .optim import MovingAverage, build_optimizer, global_norm, lr_factor, set_learning_rates

MicroBatch = tuple[ImageBatch, Targets]


@dataclass(frozen=True)
class Step:
    """What one optimiser step reports, on the device: nothing here has been waited for.

    index: number of the step, from 0. image_ids, num_objects, num_images: of this rank.
    loss: 0-d, weighted total. terms: "branch/term" -> [K]. grad_norm: 0-d, before clipping.
    positives: branch -> matched pairs per layer. queries: branch -> queries. wanted: branch -> pairs per layer where every
    object has all its queries, where it is to have a certain number.
    """

    index: int
    loss: Tensor
    terms: dict[str, Tensor]
    grad_norm: Tensor
    positives: dict[str, float]
    image_ids: tuple[int, ...]
    num_objects: int
    num_images: int
    queries: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)


class Trainer:
    """A detector and everything that changes as it learns: optimiser, moving average, step count.

    criterion: ``criterion(output, targets, num_boxes, progress) -> Losses``; progress: of the training, 0 to 1.
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
        self.intact = True  # False while, and after, an update was interrupted half-way
        detector.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            detector.compile_layers()
        self._parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self._parallel = None
        self._unchecked: tuple[_OnItsWay, Step] | None = None
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
    def lr_factor(self) -> float:
        """What the base learning rates are multiplied by in the next step."""
        return lr_factor(self.config, self.steps_done, self.total_steps, self.steps_per_epoch)

    def step(self, micro_batches: Sequence[MicroBatch], num_boxes: float | None = None) -> Step:
        """One optimiser step over this rank's micro-batches.

        num_boxes: what losses are divided by, the objects of the global batch / ranks (the criterion sees that it is not
        0); None: the objects of these micro-batches. With it the gradient, summed over micro-batches and averaged over ranks, is that of the
        whole global batch at once.

        A NaN or infinite loss or gradient leaves weights and optimiser as they were: the update is skipped on the
        device. On a GPU the host learns of it, as NonFiniteError, in ``check``, which the next step calls. On a CPU, and
        after any other error before the update, the random generators are as they were, too: the step never was.
        """
        if num_boxes is None:
            num_boxes = float(sum(len(targets) for _, targets in micro_batches))
        self.detector.train()
        self.optimizer.zero_grad(set_to_none=True)
        generators = _generator_states(self.world.device)
        try:
            step = self._accumulate(micro_batches, num_boxes)
            self.check()
            finite = step.loss.isfinite() & step.grad_norm.isfinite()
            if self.world.device.type == "cpu" and not finite:
                raise _non_finite(step)
        except Exception:
            _restore_generators(generators, self.world.device)
            raise
        self.intact = False
        self._update(finite, step.grad_norm)
        self._unchecked = (_OnItsWay(finite), step)
        self.steps_done += 1
        self.intact = True
        return step

    def _update(self, finite: Tensor, grad_norm: Tensor) -> None:
        if self.config.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip_norm, grad_norm)
        set_learning_rates(self.optimizer, self.lr_factor)
        self.optimizer.found_inf = (~finite).float()  # AdamW's fused step does nothing where this is 1
        self.optimizer.step()
        if self.average:
            self.average.update(self.detector, self.steps_done)

    def _accumulate(self, micro_batches: Sequence[MicroBatch], num_boxes: float) -> Step:
        """Forward and backward over all micro-batches; ranks exchange gradients during the last backward only."""
        total, terms, positives = torch.zeros((), device=self.world.device), {}, {}
        queries, wanted = Counter(), Counter()
        image_ids = tuple(image_id for _, targets in micro_batches for image_id in targets.image_ids)
        for i, (batch, targets) in enumerate(micro_batches):
            batch = batch.to(self.world.device, non_blocking=True)
            targets = targets.to(self.world.device, non_blocking=True)
            with (
                self._no_exchange(unless=i == len(micro_batches) - 1),
                out_of_memory_advice(batch, targets, self.config),
                compiling(self.config),
            ):
                with mixed_precision(self.world.device, self.config.precision):
                    output = (self._parallel or self.detector)(batch, targets)
                try:
                    losses = self.criterion(output, targets, num_boxes, self.steps_done / self.total_steps)
                except InputError as error:  # the matchers name image, layer and query of what they cannot use
                    raise StepError(f"step {self.steps_done}: {error}", self.steps_done, image_ids) from error
                losses.total.backward()
            total = total + losses.total.detach()
            for name, value in losses.terms.items():
                terms[name] = terms[name] + value if name in terms else value
            for branch, matches in losses.matches.items():
                layers = max(len(value) for name, value in losses.terms.items() if name.startswith(branch + "/"))
                positives[branch] = positives.get(branch, 0) + len(matches) / layers
            queries.update(losses.queries)
            wanted.update(losses.wanted)
        return Step(
            index=self.steps_done,
            image_ids=image_ids,
            loss=self.world.mean_(total),
            terms=terms,
            grad_norm=global_norm(self._parameters),
            positives=positives,
            num_objects=sum(len(targets) for _, targets in micro_batches),
            num_images=sum(len(batch) for batch, _ in micro_batches),
            queries=dict(queries),
            wanted=dict(wanted),
        )

    def _no_exchange(self, unless: bool):
        return contextlib.nullcontext() if unless or self._parallel is None else self._parallel.no_sync()

    def check(self) -> None:
        """Raises NonFiniteError if the last step met a NaN or an infinity.

        Waits for the device to end that step, not what was started since. In a step there is nothing to wait for: the
        copy for matching has waited for this step's forward pass, which comes later. So the host is free to start the
        update and the next forward pass while the device is busy with the backward pass.
        """
        if self._unchecked is None:
            return
        finite, step = self._unchecked
        if not finite:
            raise _non_finite(step)
        self._unchecked = None

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
        training, directory = checkpoint.training, checkpoint.directory
        generators = checkpoint.tensors("rng")
        checkpoints.check_generator_states(generators, directory / "rng.safetensors", training["world_size"])
        checkpoints.load_weights(self.detector, checkpoint.tensors("model"), exact=True)
        if self.average:
            checkpoints.load_weights(self.average.detector, checkpoint.tensors("ema"), exact=True)
        checkpoints.restore_optimizer(
            self.optimizer,
            checkpoint.tensors("optimizer"),
            training["optimizer"],
            checkpoint.step,
            directory / "optimizer.safetensors",
        )
        self.steps_done = checkpoint.step
        if training["world_size"] == self.world.size and f"cpu.{self.world.rank}" in generators:
            states = {
                kind: generators[key] for kind in ("cpu", "cuda") if (key := f"{kind}.{self.world.rank}") in generators
            }
            _restore_generators(states, self.world.device)
        else:  # dropout masks belong to a rank, so another number of ranks draws others
            torch.manual_seed(mixed_seed(self.steps_done, self.world.rank))


class _OnItsWay:
    """A bool of a device on its way to the host, as a bool: who asks waits for it, and for nothing after it."""

    def __init__(self, flag: Tensor):
        self._flag = flag.to("cpu", non_blocking=flag.is_cuda)
        self._arrived = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def __bool__(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag)


def _non_finite(step: Step) -> NonFiniteError:
    bad = [name for name, value in step.terms.items() if not value.isfinite().all()]
    return NonFiniteError(
        f"step {step.index}: loss {float(step.loss)}, gradient norm {float(step.grad_norm)}"
        + (f", non-finite terms: {', '.join(bad)}" if bad else "")
        + f", images {list(step.image_ids)}. The weights were not changed by it. Look at these images, lower "
        "train.lr, set train.clip_norm, or train with train.precision=fp32",
        step.index,
        step.image_ids,
    )


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


@contextlib.contextmanager
def compiling(config: TrainConfig) -> Iterator[None]:
    """What is compiled here serves sizes that are the same by chance, too, as those of a square image; what torch.compile
    cannot do becomes an error that says what it needs."""
    if not config.compile:
        yield
        return
    from torch.fx.experimental import _config as shapes

    try:
        with shapes.patch(use_duck_shape=False):
            yield
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        raise ConfigError(
            f"train.compile: {str(error).splitlines()[0]}. torch.compile needs a C++ compiler (CXX, or g++ on the PATH), on a "
            "GPU Triton, too; install it, or train without train.compile"
        ) from error


def mixed_seed(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
