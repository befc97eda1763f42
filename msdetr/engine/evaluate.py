"""Evaluation of a detector on a data set, shared by ranks, in the COCO protocol."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import torch
from torch import nn

from ..checks import count
from ..errors import EvaluationError, EvaluationStopped
from ..methods.base import Postprocess
from .distributed import ALONE, World
from .metric import DETECTION, EvalResult, coco_metrics, coco_rows
from .postprocess import postprocess
from .progress import Progress
from .signals import StopRequest, StopRequested


@torch.inference_mode()
def evaluate(
    detector: nn.Module,
    dataset,
    *,
    max_detections: int = 100,
    batch_size: int = 2,
    workers: int = 0,
    precision: str = "fp32",
    world: World = ALONE,
    progress: bool = True,
    worker_timeout: float = 300,
    stop: StopRequest | None = None,
    to_detections: Postprocess = postprocess,
) -> EvalResult:
    """The COCO numbers of a detector on a data set, on the device the detector is on.

    to_detections: from the predictions of all layers to detections, as ``postprocess`` does it.

    The ranks of ``world`` share the images, each image exactly once, and all get the result. The detector is left in
    the mode (training or not) it was in. Raises EvaluationError for NaN or infinite predictions, naming the image,
    EvaluationStopped on all ranks once ``stop`` is requested on one, WorkerError where no data worker answers for
    ``worker_timeout`` seconds, and InputError for counts below 1.
    """
    from ..data import build_eval_loader

    stop = stop or StopRequest()
    max_detections, batch_size = count(max_detections, "max_detections"), count(batch_size, "batch_size")
    start = time.perf_counter()
    training = detector.training
    detector.eval()
    try:
        loader = build_eval_loader(dataset, batch_size, world.rank, world.size, workers, worker_timeout)
        mine = _detect(detector, loader, max_detections, precision, world, progress, stop, to_detections)
    finally:
        detector.train(training)
    if world.sum([stop.requested])[0]:
        raise EvaluationStopped("the evaluation was stopped")
    shards = world.gather(mine)

    def score() -> EvalResult:
        seen = [image_id for image_ids, _ in shards for image_id in image_ids]
        if sorted(seen) != sorted(dataset.image_ids):
            raise EvaluationError(
                f"the ranks evaluated {len(seen)} images of {len(dataset.image_ids)}, not each exactly once"
            )
        detections = np.concatenate([rows for _, rows in shards])
        return coco_metrics(dataset.coco_api(), detections, dataset.image_ids, max_detections)

    result = world.on_main(score)
    return EvalResult(**{**vars(result), "seconds": time.perf_counter() - start})


def _detect(detector, loader, max_detections, precision, world, progress, stop, to_detections):
    """This rank's image ids and detections, [N] of ``DETECTION``."""
    from ..data.workers import Reader

    dataset, device = loader.dataset, next(detector.parameters()).device
    category_ids = dataset.categories.category_ids
    image_ids, rows = [], [np.zeros(0, DETECTION)]
    bar = Progress(
        len(range(world.rank, len(dataset), world.size)),
        title="evaluate",
        unit="image",
        enabled=progress and world.main,
        brief=True,
    )
    with contextlib.suppress(StopRequested), Reader(loader, stop.interrupting) as batches:
        for batch, targets in batches:
            with mixed_precision(device, precision):
                output = detector(batch.to(device, non_blocking=True))
            for image_id, found in zip(
                targets.image_ids, to_detections(output.one_to_one, targets.sizes, max_detections)
            ):
                image_ids.append(image_id)
                rows.append(coco_rows(image_id, found.to("cpu"), category_ids))
            bar.advance(len(targets.image_ids))
    bar.close()
    return image_ids, np.concatenate(rows)


def mixed_precision(device: torch.device, precision: str):
    """The mixed precision that ``train.precision`` names: "auto" is bf16 on CUDA and fp32 elsewhere."""
    use_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16)
