"""The configuration of a run: frozen dataclasses, one source for the command line, YAML files and papermill parameters.

``from_dict`` and ``override`` coerce values by the declared type of the field (``lr: 1e-4`` arrives from YAML as a
string) and reject what they cannot: an unknown name with the nearest known one, a wrong type or range with the field's
full name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The detector. Defaults are the released MS-DETR on Deformable DETR++ with 300 queries."""

    num_classes: int = 91  # COCO category ids are used as class indices by the released models: 91 = 90 + unused 0
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "conv"] = "resnet50"
    pretrained: str = "imagenet"  # "imagenet" (torchvision's weights), a path to a local file, or "none"
    backbone_norm: Literal["frozen", "group"] = "frozen"  # frozen batch norm, or group norm to train from scratch
    trainable_layers: int = 3  # residual stages trained, from the last: 3 leaves stem and stage 1 frozen; 5 trains all
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.0
    num_queries: int = 300
    num_levels: int = 4  # feature levels; levels beyond the backbone's are strided convolutions on its last one
    num_points: int = 4  # sampling points per head and level
    two_stage: bool = True  # queries come from the encoder's best proposals
    box_refine: bool = True  # every decoder layer refines the boxes of the layer before
    mixed_selection: bool = True  # Deformable DETR++: positions from proposals, contents learned
    look_forward_twice: bool = True  # Deformable DETR++: a box's gradient reaches the layer before
    variant: Literal["baseline", "a", "b", "c", "d"] = "c"  # decoder layer, Figure 4 of the paper
    separate_heads: bool | None = (
        None  # one-to-many predictors of their own; None: (a), (b) class head only, (c), (d) no
    )
    candidate_ffn: bool | None = None  # additional FFN before the one-to-many predictors; None: (c) and (d) only


@dataclass(frozen=True)
class MatchingConfig:
    """Hungarian costs, and the one-to-many assignment of Algorithm 1."""

    cost_class: float = 2.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    one_to_many: Literal["exclusive", "literal", "released"] = "exclusive"
    alpha: float = 0.3  # score = alpha * class probability + (1 - alpha) * IoU
    threshold: float = 0.4  # tau: pairs with score <= tau are dropped
    k: int = 6  # queries per object at most
    merge: bool = False  # add one-to-one pairs that one-to-many matching missed


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms of each branch."""

    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    one_to_many_class_weight: float = 2.0
    one_to_many_l1_weight: float = 5.0
    one_to_many_giou_weight: float = 2.0
    encoder_class_weight: float = 2.0
    encoder_l1_weight: float = 5.0
    encoder_giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class DataConfig:
    """A COCO-format folder: images in root/SPLIT, annotations in root/annotations/instances_SPLIT.json."""

    root: str = "data/coco"
    train_split: str = "train2017"
    val_split: str = "val2017"
    generate: Literal["none", "shapes"] = "none"  # make the embedded data set under root when it is not there
    num_train: int = 0  # use the first N training images, 0 for all; the number to make for a generated set
    num_val: int = 0
    raw_category_ids: bool = False  # category ids as class indices (released models) instead of 0...C-1
    augment: Literal["detr", "flip", "none"] = "detr"  # multi-scale resize and crop, flip only, or nothing
    train_sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # shorter side, pixels
    test_size: int = 800  # shorter side at evaluation, pixels; 0 keeps images as they are
    max_size: int = 1333  # longer side at most, pixels
    workers: int = 4
    on_bad_annotation: Literal["error", "drop"] = "error"
    skip_images: int = 0  # unreadable training images to leave out before it is an error
    cache: bool = False  # keep decoded images in memory (small data sets)


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: float = 12
    batch_size: int = 16  # images per optimiser step over all ranks and micro-batches
    micro_batch: int = 2  # images per forward pass on one device; the rest is gradient accumulation
    lr: float = 2e-4
    lr_backbone: float = 2e-5
    lr_projection_factor: float = 0.1  # sampling offsets and reference points learn at lr times this
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["step", "one_cycle", "constant"] = "step"
    drop_epoch: float = 11  # "step": the learning rates fall to a tenth from here on
    warmup_fraction: float = 0.1  # "one_cycle": share of the steps spent warming up
    clip_norm: float = 0.1  # total gradient norm is clipped to this; 0 for no clipping
    ema_decay: float = 0.0  # exponential moving average of the weights, evaluated instead of them; 0 for none
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 elsewhere
    gradient_checkpointing: bool = False  # recompute transformer layers in the backward pass to save memory
    eval_every: float = 1  # epochs; 0 evaluates only at the end
    checkpoint_every: float = 1  # epochs
    max_detections: int = 100  # kept per image at evaluation
    log_every: int = 10  # steps between lines of metrics.jsonl
    tensorboard: bool = False  # the same as TensorBoard event files in the run directory


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. ``recipe`` is the name it started from; the other fields are what counts."""

    recipe: str = "custom"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def override(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with some fields changed, named by dotted path: ``override({"train.lr": 1e-4, "seed": 3})``.

        Raises ConfigError for an unknown name (with the nearest known one), a wrong type or a value out of range.
        """
        nested = self.to_dict()
        for path, value in values.items():
            *parents, name = path.split(".")
            level, kind = nested, RunConfig
            for parent in parents:
                kind = _field_type(kind, parent, path)
                if not dataclasses.is_dataclass(kind):
                    raise ConfigError(f"{path}: '{parent}' has no parts")
                level = level[parent]
            if dataclasses.is_dataclass(_field_type(kind, name, path)):
                raise ConfigError(
                    f"{path}: is a section; give one of its fields, e.g. {path}.{_names(_field_type(kind, name, path))[0]}"
                )
            level[name] = value
        return from_dict(nested)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(yaml.safe_dump(_plain(self.to_dict()), sort_keys=False))


def from_dict(values: Mapping[str, Any], kind: type = RunConfig, path: str = "") -> Any:
    """Builds a configuration from nested mappings, coercing each value to the declared type.

    Raises ConfigError naming the field's dotted path.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'configuration'}: expected a mapping, got {type(values).__name__}")
    arguments = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        declared = _field_type(kind, name, where)
        if dataclasses.is_dataclass(declared):
            arguments[name] = from_dict(value, declared, where)
        else:
            arguments[name] = _coerce(value, declared, where)
    return kind(**arguments)


def load(path: str | Path) -> RunConfig:
    """Reads a YAML file that ``RunConfig.save`` or a person wrote."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    return from_dict(values or {})


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """'did you mean 'X'?' for a mistyped name, also of a dotted one's last part; else a list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if not close:
        last = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
        close = [last[part] for part in difflib.get_close_matches(str(name).rsplit(".", 1)[-1], last, n=1, cutoff=0.6)]
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)


def _names(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _field_type(kind: type, name: str, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if name not in hints:
        raise ConfigError(
            f"{where}: unknown parameter; {nearest(name, _names(kind) if kind is not RunConfig else all_paths())}"
        )
    return hints[name]


def all_paths(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Dotted paths of all fields: 'seed', 'model.num_queries', ..."""
    paths = []
    for name, declared in typing.get_type_hints(kind).items():
        nested = dataclasses.is_dataclass(declared)
        paths += all_paths(declared, f"{prefix}{name}.") if nested else [prefix + name]
    return paths


def _coerce(value: Any, declared: Any, where: str) -> Any:
    """The value as the declared type, or ConfigError. Text is accepted where it says the value unambiguously."""
    origin, options = typing.get_origin(declared), typing.get_args(declared)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(str, options))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _coerce(value, next(o for o in options if o is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.strip("()[] ").split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise ConfigError(f"{where}: expected {len(options)} values, got {len(value)}")
        return tuple(_coerce(part, options[0], f"{where}[{i}]") for i, part in enumerate(value))
    if declared is bool:
        words = {"true": True, "false": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        raise ConfigError(f"{where}: expected true or false, got {value!r}")
    if declared in (int, float):
        if isinstance(value, bool):
            raise ConfigError(f"{where}: expected a number, got {value!r}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{where}: expected a number, got {value!r}") from None
        if not math.isfinite(number):
            raise ConfigError(f"{where}: expected a finite number, got {value!r}")
        if declared is int and number != int(number):
            raise ConfigError(f"{where}: expected a whole number, got {value!r}")
        return declared(value if declared is int and isinstance(value, int) else number)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected text, got {value!r}")
    return value


_RANGES = {  # dotted path: (lowest, highest), both allowed
    "model.num_classes": (1, None),
    "model.trainable_layers": (0, 5),
    "model.hidden_dim": (1, None),
    "model.num_heads": (1, None),
    "model.encoder_layers": (0, None),
    "model.decoder_layers": (1, None),
    "model.ffn_dim": (1, None),
    "model.dropout": (0, 1),
    "model.num_queries": (1, None),
    "model.num_levels": (1, None),
    "model.num_points": (1, None),
    "matching.cost_class": (0, None),
    "matching.cost_l1": (0, None),
    "matching.cost_giou": (0, None),
    "matching.alpha": (0, 1),
    "matching.threshold": (0, 1),
    "matching.k": (1, None),
    "data.num_train": (0, None),
    "data.num_val": (0, None),
    "data.test_size": (0, None),
    "data.max_size": (1, None),
    "data.workers": (0, None),
    "data.skip_images": (0, None),
    "train.epochs": (0, None),
    "train.batch_size": (1, None),
    "train.micro_batch": (1, None),
    "train.lr": (0, None),
    "train.lr_backbone": (0, None),
    "train.lr_projection_factor": (0, None),
    "train.weight_decay": (0, None),
    "train.drop_epoch": (0, None),
    "train.warmup_fraction": (0, 1),
    "train.clip_norm": (0, None),
    "train.ema_decay": (0, 1),
    "train.eval_every": (0, None),
    "train.checkpoint_every": (0, None),
    "train.max_detections": (1, None),
    "train.log_every": (1, None),
    **{f"loss.{f.name}": (0, None) for f in dataclasses.fields(LossConfig)},
}


def _check(config: RunConfig) -> None:
    for path, (low, high) in _RANGES.items():
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{path}: is NaN")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ConfigError(f"{path}: must be {bounds}, got {value}")
    model = config.model
    if model.hidden_dim % model.num_heads:
        raise ConfigError(
            f"model.hidden_dim: {model.hidden_dim} is not divisible by model.num_heads = {model.num_heads}"
        )
    if model.hidden_dim % 4:
        raise ConfigError(f"model.hidden_dim: {model.hidden_dim} is not divisible by 4 (sine position embedding)")
    if model.two_stage and not model.box_refine:
        raise ConfigError("model.two_stage: needs model.box_refine (proposals are refined layer by layer)")
    if model.look_forward_twice and not model.box_refine:
        raise ConfigError("model.look_forward_twice: needs model.box_refine")
    if model.mixed_selection and not model.two_stage:
        raise ConfigError("model.mixed_selection: needs model.two_stage")
    if model.variant == "baseline" and (model.separate_heads or model.candidate_ffn):
        raise ConfigError("model.variant: a baseline has no one-to-many branch for separate_heads or candidate_ffn")
    if model.variant in ("a", "b") and model.separate_heads is False and not model.candidate_ffn:
        raise ConfigError(
            f"model.separate_heads: variant ({model.variant}) reads the layer output; with shared heads and no "
            "candidate_ffn both branches would be the same predictions"
        )


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML stays plain."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
