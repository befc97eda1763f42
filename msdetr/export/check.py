"""The proof of an export: the file against the detector it was made from, on random images of mixed sizes and paddings."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.progress import Progress
from ..errors import ConfigError
from .graph import Graph

Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """inputs: how many were compared.   same: gave the same within the tolerance.   undecided: did not, but rounding decides
    there which query gets which proposal (see ``ranking_is_tied``).   different: the rest.
    largest: the largest difference of a score, and of a box as a share of the image's longer side, among ``same``.
    eager, exported: seconds an input, median."""

    inputs: int
    same: int
    undecided: int
    different: int
    largest: float
    eager: float
    exported: float

    @property
    def passed(self) -> bool:
        return self.different == 0 and self.same > 0.9 * self.inputs

    def __str__(self) -> str:
        undecided = f", {self.undecided} undecided (proposals tied up to rounding)" if self.undecided else ""
        return (
            f"{self.inputs} random inputs: {self.same} the same (largest difference {self.largest:.1e}){undecided}, "
            f"{self.different} different; {self.exported * 1e3:.1f} ms an input, eager {self.eager * 1e3:.1f} ms: "
            f"{self.eager / self.exported:.2f} x as fast"
        )


def compare(
    graph: Graph,
    exported: Function,
    inputs: int = 100,
    size: int = 128,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Runs the detector and what was exported from it on the same random inputs.

    exported: takes and gives what the graph does. size: the images' sides lie between 0.75 and 1.5 times this.
    tolerance: of scores (logits where ``raw``), and of boxes as a share of the image's longer side. Detections are the same
    where they come in the same order, except among scores that differ by no more than the tolerance.
    """
    bar = Progress(inputs, title="compare", unit="input", enabled=progress, brief=True)
    verdicts, largest, times = {"same": 0, "undecided": 0, "different": 0}, 0.0, ([], [])
    for given in random_inputs(inputs, size, graph.raw, seed):
        results = []
        for function, seconds in zip((graph, exported), times):
            start = time.perf_counter()
            with torch.inference_mode():
                results.append([torch.as_tensor(x) for x in function(*given)])
            seconds.append(time.perf_counter() - start)
        difference = _raw_difference(*results) if graph.raw else _difference(*results, given, tolerance)
        verdict = "same" if difference <= tolerance else "undecided" if ranking_is_tied(graph, given) else "different"
        largest = max(largest, difference) if verdict == "same" else largest
        verdicts[verdict] += 1
        bar.advance()
    bar.close()
    eager, other = (float(torch.tensor(seconds).median()) for seconds in times)
    return Comparison(inputs, **verdicts, largest=largest, eager=eager, exported=other)


def random_inputs(number: int, size: int, raw: bool, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of one to three images of blotches and noise; the first image of each is not padded."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low: float, high: float) -> int:
        return int(torch.randint(int(low), int(high) + 1, (), generator=generator))

    for _ in range(number):
        batch, height, width = whole(1, 3), whole(0.75 * size, 1.5 * size), whole(0.75 * size, 1.5 * size)
        blotches = torch.rand(batch, 3, whole(2, 8), whole(2, 8), generator=generator)
        images = F.interpolate(blotches, size=(height, width), mode="bilinear")
        images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        mask = torch.zeros(batch, height, width, dtype=torch.bool)
        sizes = [(height, width)]
        for image in range(1, batch):
            sizes.append((whole(0.7 * height, height), whole(0.7 * width, width)))
            mask[image, sizes[-1][0] :], mask[image, :, sizes[-1][1] :] = True, True
        yield (4 * images - 2, mask) if raw else ((images * 255).to(torch.uint8), mask, torch.tensor(sizes))


def _raw_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(_largest(a - b) for a, b in zip(ours, theirs, strict=True))


def _difference(ours: list[Tensor], theirs: list[Tensor], given: tuple[Tensor, ...], tolerance: float) -> float:
    """The largest difference between detections of the same rank; where scores are tied within the tolerance, between each
    and the nearest of those it is tied with. Infinite where one has no counterpart."""
    (scores, labels, boxes), (other_scores, other_labels, other_boxes) = ours, theirs
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return float("inf")
    sides = given[2].amax(1)[:, None, None].to(boxes.dtype)
    apart = (boxes[:, :, None] / sides[..., None] - other_boxes[:, None] / sides[..., None]).abs().amax(-1)  # [B, N, N]
    tied = (scores[:, :, None] - other_scores[:, None]).abs() <= tolerance
    apart = apart.masked_fill(~(tied & (labels[:, :, None] == other_labels[:, None])), torch.inf)
    last = scores <= scores[:, -1:] + tolerance  # which of these are kept is decided by rounding
    nearest = torch.maximum(apart.amin(2).masked_fill(last, 0), apart.amin(1).masked_fill(last, 0))
    return max(_largest(scores - other_scores), _largest(nearest))


def _largest(x: Tensor) -> float:
    return x.abs().max().nan_to_num(nan=torch.inf).item() if x.numel() else 0.0


def ranking_is_tied(graph: Graph, given: tuple[Tensor, ...]) -> bool:
    """Whether two proposals of neighboring rank, down to the first one that is not selected, have scores so close that
    rounding may exchange them, and with them the queries that refine them: closer than twice what the scores change in
    double precision. False for a one-stage detector."""
    exact = copy.deepcopy(graph).double()
    scores, selected = _proposal_scores(graph, given)
    if scores is None:
        return False
    rounding = (scores - _proposal_scores(exact, given)[0]).abs().max()
    ranked = scores.topk(min(selected + 1, scores.shape[1]), dim=1).values
    return bool((ranked.diff(dim=1).abs() <= 2 * rounding).any())


def _proposal_scores(graph: Graph, given: tuple[Tensor, ...]) -> tuple[Tensor | None, int]:
    """What the encoder's proposals are ranked by [B, S], and how many are selected; None for a one-stage detector."""
    images, mask = given[:2]
    if images.is_floating_point():
        images = images.to(graph.pixel_mean.dtype)
    with torch.inference_mode():
        output = graph.detector(graph.batch(images, mask), one_to_many=False)
    if output.encoder is None:
        return None, 0
    scores = graph.detector.query_selection.scores(output.encoder.predictions.logits[0])
    return scores.double(), output.one_to_one.boxes.shape[2]


def require_onnxruntime() -> None:
    """Raises ConfigError where ONNX Runtime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'checking ONNX needs onnxruntime ({error}); pip install "msdetr[onnx]"') from error


def onnx_function(path: str | Path, threads: int | None = None) -> Function:
    """An ONNX file as a function, in ONNX Runtime on the CPU. Raises ConfigError where that is not installed."""
    require_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its waiting threads leave us the cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*given: Tensor) -> list[Tensor]:
        return [
            torch.from_numpy(x) for x in session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        ]

    return run


def program_function(path: str | Path) -> Function:
    """An exported program of PyTorch as a function."""
    return torch.export.load(Path(path)).module()
