"""What a detector really does, recorded while it runs: order of the sub-layers, who reads what, shapes, parameters, time.

Nothing here knows the variants: everything is observed with forward hooks, so a diagram of it cannot drift from the code.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

from msdetr.analysis.look import both_branches, evaluating
from msdetr.losses import Criterion
from msdetr.model import Detector
from msdetr.modules import CrossAttention
from msdetr.structures import ImageBatch, Targets

QUERIES = "queries"


@dataclass(frozen=True)
class Call:
    """A module that ran. module: its path within the decoder. reads: the call whose output was its input, by module, or
    "queries". sees_image: whether the encoded image was among its inputs. shape: of its output."""

    module: str
    reads: str
    sees_image: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerTrace:
    """One decoder layer as it ran. steps: its sub-layers in their order. predictors: the predictors and the additional
    FFN that ran on what it produced. output, candidates: the step that each was read after (candidates None: no
    one-to-many branch). boxes_reused: the box predictor ran once and both branches have its boxes."""

    steps: tuple[Call, ...]
    predictors: tuple[Call, ...]
    output: str
    candidates: str | None
    boxes_reused: bool

    def order(self) -> str:
        """'cross_attention * > self_attention > ffn': the sub-layers, a star where candidates are read."""
        return " > ".join(s.module + " *" * (s.module == self.candidates) for s in self.steps)


def trace_layer(detector: Detector, batch: ImageBatch, layer: int = 0) -> LayerTrace:
    """Runs a detector with both branches and records one of its decoder layers and the predictors that read it."""
    decoder, owner = detector.decoder, detector.decoder.layers[layer]
    inside = {module: name for name, module in owner.named_children()}
    readers = {
        module: name
        for name, module in decoder.named_modules()
        if name.rpartition(".")[0].endswith(("ffns", "class_heads", "box_heads"))
    }
    ran: list[tuple[str, tuple, Tensor]] = []
    returned: list[tuple[Tensor, Tensor | None]] = []
    names = inside | readers
    looking = {name for m, name in names.items() if any(isinstance(x, CrossAttention) for x in m.modules())}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: ran.append((names[module], inputs, output)))
        for module in names
    ]
    hooks.append(owner.register_forward_hook(lambda module, inputs, output: returned.append(output)))
    try:
        found = both_branches(detector, batch)
    finally:
        for hook in hooks:
            hook.remove()

    steps, predictors, known = [], [], []
    for name, inputs, output in ran:
        source = next((n for n, tensor in known if tensor is inputs[0]), QUERIES)
        sees_image = name in looking
        call = Call(name, source, sees_image, tuple(output.shape))
        if name in inside.values():
            steps.append(call)
        elif source != QUERIES:
            predictors.append(call)  # others read other layers
        else:
            continue
        known.append((name, output))
    output, candidates = returned[0]
    after = {name: next((n for n, t in known if t is x), None) for name, x in (("o", output), ("c", candidates))}
    many = found.one_to_many
    alone = sum("box_heads" in call.module for call in predictors) == 1
    reused = many is not None and alone and torch.equal(many.boxes[layer], found.one_to_one.boxes[layer])
    return LayerTrace(tuple(steps), tuple(predictors), after["o"] or QUERIES, after["c"], reused)


@dataclass(frozen=True)
class Flow:
    """A part of the detector: its parameters and the shapes that leave it."""

    part: str
    parameters: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


def data_flow(detector: Detector, batch: ImageBatch) -> list[Flow]:
    """The parts of a detector in the order in which they ran, with the shapes of what each returned and none before."""
    rows: list[Flow] = []
    known: list[Tensor] = []

    def record(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            fresh = [(label, x) for label, x in _tensors(output) if not any(x is other for other in known)]
            known.extend(x for _, x in fresh)
            shapes = tuple((label, tuple(x.shape)) for label, x in fresh)
            rows.append(Flow(name, sum(p.numel() for p in module.parameters()), shapes))

        return hook

    parts = dict(detector.named_children())
    projections = dict(parts.pop("projections").named_children())
    parts |= {f"projections.{name}": module for name, module in projections.items()}
    parts["decoder.layers"] = parts["decoder"].layers[-1]
    hooks = [module.register_forward_hook(record(name)) for name, module in parts.items()]
    try:
        both_branches(detector, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def flow_text(rows: list[Flow], width: int = 110) -> str:
    """The same as lines: part, parameters, shapes."""
    lines = []
    for row in rows:
        shapes = [f"{name}{'×'.join(map(str, shape))}" for name, shape in ((n and n + " ", s) for n, s in row.shapes)]
        words = textwrap.wrap(", ".join(s.replace(" ", "\xa0") for s in shapes), width - 28) or [""]
        lines.append(f"{row.part:16}{row.parameters:>10,}  {words[0]}")
        lines += [" " * 28 + word for word in words[1:]]
    return "\n".join(lines).replace("\xa0", " ")


PARTS = {
    "backbone": ("backbone",),
    "pyramid, encoder": ("projections", "level_embedding", "encoder"),
    "query selection": ("query_selection",),
    "decoder layers": ("decoder.layers", "decoder.query_positions", "decoder.output_norm"),
    "predictors": ("decoder.class_heads", "decoder.box_heads"),
    "one-to-many only": ("decoder.one_to_many",),
    "further query groups": ("sources",),
}


def count_parameters(detector: nn.Module) -> dict[str, int]:
    """Numbers of parameters by part of the detector; those named last, what only training needs. Further query groups are
    named where there are any."""
    counts = {
        part: sum(p.numel() for name, p in detector.named_parameters() if name.startswith(prefixes))
        for part, prefixes in PARTS.items()
    }
    return {part: count for part, count in counts.items() if count or part != "further query groups"}


@dataclass(frozen=True)
class Cost:
    """Milliseconds of processor time: of a training step without the optimiser (forward, loss, backward), and of
    inference."""

    training: float
    inference: float


def measure_costs(
    detectors: Mapping[str, nn.Module], criteria: Mapping[str, Criterion], batch: ImageBatch, targets: Targets,
    repeats: int = 5,
) -> dict[str, Cost]:  # fmt: skip
    """The least of some measurements of each detector, taken in turns. It is the processor's time, not the clock's, so
    that other programs on the machine disturb little."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in detectors}
    for _ in range(repeats + 1):  # the first round warms up
        for name, detector in detectors.items():
            detector.train()
            with _timed(times[name][0]):
                criteria[name](detector(batch, targets), targets).total.backward()
            detector.zero_grad()
            with evaluating(detector), _timed(times[name][1]):
                detector(batch)
    return {name: Cost(min(training[1:]), min(inference[1:])) for name, (training, inference) in times.items()}


@contextmanager
def _timed(times: list[float]):
    begin = time.process_time()
    yield
    times.append(1000 * (time.process_time() - begin))


def _tensors(value: object, name: str = "") -> list[tuple[str, Tensor]]:
    """All tensors within lists, mappings and dataclasses, with the names of their fields."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (list, tuple)):
        return [pair for v in value for pair in _tensors(v, name)]
    if is_dataclass(value) or isinstance(value, Mapping):
        parts = (
            value.items() if isinstance(value, Mapping) else [(f.name, getattr(value, f.name)) for f in fields(value)]
        )
        return [pair for part, v in parts for pair in _tensors(v, f"{name}.{part}" if name else part)]
    return []
