"""Every setting of a run, with its default and its range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import ConfigError
from ..files import write_atomically
from .fields import Harmless, NonEmpty, Range, Registered
from .moved import modernized
from .parse import Setting, assign, build, check, fields_of, section_of, settings
from .sections import default_sections, registered_sections

GROUPS_OF_NORM = 32  # the projections to hidden_dim channels are followed by group norm with this many groups

Text = Annotated[str, NonEmpty()]
Count = Annotated[int, Range(1, 10**6)]
Depth = Annotated[int, Range(1, 1000)]
Pixels = Annotated[int, Range(1, 10**5)]
Fraction = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, below=1)]
NotNegative = Annotated[float, Range(0)]
Weight = Annotated[float, Range(0, 10**6)]


@dataclass(frozen=True)
class ModelConfig:
    """The detector. Defaults are those of the released MS-DETR on Deformable DETR++ with 300 queries."""

    num_classes: Count = 91  # COCO category ids are used as class indices by the released models: 91 = 90 + unused 0
    backbone: Text = "resnet50"  # one of msdetr.model.BACKBONES, "conv", or "timm/NAME"
    pretrained: Text = "imagenet"  # "imagenet" (torchvision's or timm's weights), a path to a local file, or "none"
    backbone_norm: Literal["frozen", "group"] = "frozen"  # frozen batch norm, or group norm to train from scratch
    trainable_layers: Annotated[int, Range(0, 5)] = (
        3  # stages of the backbone trained, from the last: 3 leaves stem and
    )
    # stage 1 frozen; 5 trains all
    finest_stride: Annotated[int, Range(4, 32)] = 8  # of the backbone's maps that are used: 4 adds its first stage
    dilation: bool = False  # the last stage of a ResNet dilated instead of strided (DC5)
    hidden_dim: Annotated[int, Range(1, 2**16)] = 256
    num_heads: Depth = 8
    cross_heads: Annotated[int, Range(0, 1000)] = 0  # of the decoder's cross-attention; 0: num_heads
    encoder_layers: Annotated[int, Range(0, 1000)] = 6
    decoder_layers: Depth = 6
    ffn_dim: Count = 2048
    dropout: BelowOne = 0.0
    num_queries: Count = 300
    num_levels: Annotated[int, Range(1, 16)] = 4  # feature levels; levels beyond the backbone's are strided
    # convolutions on its last one
    num_points: Depth = 4  # sampling points per head and level
    box_refine: bool = True  # every decoder layer refines the boxes of the layer before
    look_forward_twice: bool = True  # Deformable DETR++: a box's gradient reaches the layer before
    shared_heads: bool = False  # with refinement: one class and one box head for all decoder layers (DINO)
    query_positions: Literal["once", "references", "scaled_references"] = "once"  # for all decoder layers; or made from
    # each layer's reference boxes (DINO); that times a factor made from the contents (DAB-DETR, DN-DETR)
    output_norm: bool = False  # a layer norm of what the predictors of the decoder read (DINO)
    reference_eps: Annotated[float, Range(1e-7, 0.1)] = 1e-5  # how near to 0 and 1 references come; DN-DETR, DINO: 1e-3
    position_temperature: Annotated[float, Range(1, 10**6)] = 10000.0  # of the sine embedding of feature maps; DINO: 20
    position_offset: Annotated[float, Range(-1, 1)] = -0.5  # where a cell lies, from its far edge: its centre; DINO: 0

    def check(self, run: RunConfig) -> None:
        """What the fields must be to each other."""
        if self.hidden_dim % self.num_heads:
            raise ConfigError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads = {self.num_heads}"
            )
        if self.cross_heads and self.hidden_dim % self.cross_heads:
            raise ConfigError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.cross_heads = {self.cross_heads}"
            )
        if self.hidden_dim % GROUPS_OF_NORM:
            raise ConfigError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by {GROUPS_OF_NORM} (the groups of its group norm; "
                "the sine position embedding needs 4)"
            )
        if self.pretrained == "imagenet" and self.backbone_norm == "group" and self.backbone != "conv":
            raise ConfigError(
                "model.pretrained: imagenet's weights have batch norm, model.backbone_norm=group has not; set "
                "model.backbone_norm=frozen, or model.pretrained=none to train from scratch"
            )
        if self.dilation and self.backbone not in ("resnet50", "resnet101", "resnet152"):
            raise ConfigError(
                f"model.dilation: {self.backbone} cannot be dilated; resnet50, resnet101 and resnet152 can"
            )
        if self.dilation and self.finest_stride > 16:
            raise ConfigError(
                "model.dilation: a dilated backbone has strides up to 16; set model.finest_stride=16 or less"
            )
        if self.look_forward_twice and not self.box_refine:
            raise ConfigError("model.look_forward_twice: needs model.box_refine")
        if self.shared_heads and not self.box_refine:
            raise ConfigError("model.shared_heads: without model.box_refine all layers share their heads anyway")
        if self.query_positions != "once" and not {"two_stage", "dab", "lw_detr"} & run.methods.keys():
            raise ConfigError(
                f"model.query_positions: {self.query_positions} are made from reference boxes, and a one-stage model has "
                "points; set two_stage=true, dab=true, or model.query_positions=once"
            )


@dataclass(frozen=True)
class MatchingConfig:
    """Weights of the Hungarian costs of one-to-one matching."""

    cost_class: Weight = 2.0
    cost_l1: Weight = 5.0
    cost_giou: Weight = 2.0
    focal_alpha: Fraction = 0.25  # of the class cost

    def check(self, run: RunConfig) -> None:
        """What the fields must be to each other."""
        if not (self.cost_class or self.cost_l1 or self.cost_giou):
            raise ConfigError(
                "matching.cost_class, matching.cost_l1, matching.cost_giou: all are 0, so no query suits an object better than "
                "another; give one of them a weight"
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms of one-to-one supervision, and the parameters of the focal loss everywhere."""

    class_weight: Weight = 1.0
    l1_weight: Weight = 5.0
    giou_weight: Weight = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: Annotated[float, Range(0, 100)] = 2.0
    giou_eps: Annotated[float, Range(0, 0.01)] = (
        0.0  # added to areas that GIoU divides by, in matching, too; DINO: 1e-6
    )
    floor: Literal["objects", "product"] = (
        "objects"  # what sums are divided by is at least 1: the number of objects, or
    )
    # its product with repetitions and groups (as published for H-DETR, Group DETR, DN-DETR and DINO)


@dataclass(frozen=True)
class DataConfig:
    """A folder in COCO's, YOLO's or Pascal VOC's layout. A split that is "auto" is chosen by the names of those there are;
    where none says that it is for validation, a fifth of the training images is held out."""

    root: Annotated[str, NonEmpty(), Harmless(on_resume=False)] = "data/coco"
    train_split: Text = "train2017"  # or auto
    val_split: Text = "val2017"  # or auto
    generate: Literal["none", "shapes"] = "none"  # make the embedded data set under root when it is not there
    num_train: Annotated[int, Range(0)] = 0  # use the first N training images, 0 for all; the number to make for a
    # generated set
    num_val: Annotated[int, Range(0)] = 0
    raw_category_ids: bool = False  # category ids as class indices (released models) instead of 0...C-1
    augment: Literal["detr", "flip", "none"] = "detr"  # multi-scale resize and crop, flip only, or nothing
    train_sizes: Annotated[tuple[Pixels, ...], NonEmpty()] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    # shorter side, pixels
    test_size: Annotated[int, Range(0, 10**5)] = 800  # shorter side at evaluation, pixels; 0 keeps images as they are
    max_size: Pixels = 1333  # longer side at most, pixels
    workers: Annotated[int, Range(0, 1000), Harmless()] = 4
    worker_timeout: Annotated[float, Range(1, 86400), Harmless()] = 300  # seconds without an answer from the workers
    # before it is an error
    on_bad_annotation: Literal["error", "drop"] = "error"
    skip_images: Annotated[int, Range(0), Harmless(in_comparison=False)] = 0  # unreadable training images to leave out
    # before it is an error
    cache: Annotated[bool, Harmless()] = False  # keep decoded images in memory (small data sets)


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: Annotated[float, Range(0, 10**6)] = 12
    batch_size: Count = 16  # images per optimiser step over all ranks and micro-batches
    micro_batch: Annotated[Literal["auto"] | Annotated[int, Range(1, 10**6)], Harmless(on_resume=False)] = (
        2  # images per forward pass on one device; the rest is gradient accumulation. auto: as many as fit on the GPU
    )
    lr: NotNegative = 2e-4
    lr_backbone: NotNegative = 2e-5
    lr_projection_factor: NotNegative = 0.1  # sampling offsets and reference points learn at lr times this
    weight_decay: NotNegative = 1e-4
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    schedule: Literal["step", "one_cycle", "constant"] = "step"
    drop_epoch: NotNegative = 11  # "step": the learning rates fall to a tenth from here on
    warmup_fraction: Fraction = 0.1  # "one_cycle": share of the steps spent warming up
    clip_norm: NotNegative = 0.1  # total gradient norm is clipped to this; 0 for no clipping
    ema_decay: BelowOne = 0.0  # exponential moving average of the weights, evaluated instead of them; 0 for none
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 elsewhere
    gradient_checkpointing: Annotated[bool, Harmless(on_resume=False)] = False  # recompute transformer layers in the
    # backward pass to save memory
    compile: Annotated[bool, Harmless(on_resume=False)] = False  # backbone and transformer layers, by torch.compile
    eval_every: Annotated[float, Range(0), Harmless()] = 1  # epochs; 0 evaluates only at the end
    patience: Annotated[int, Range(0, 10**6), Harmless(in_comparison=False)] = (
        0  # evaluations in a row without a better
    )
    # AP after which training ends early; 0: never
    checkpoint_every: Annotated[float, Range(0), Harmless()] = 1  # epochs; 0 saves only at the end
    max_detections: Count = 100  # kept per image at evaluation
    log_every: Annotated[int, Range(1), Harmless()] = 10  # steps between lines of metrics.jsonl
    tensorboard: Annotated[bool, Harmless()] = False  # the same as TensorBoard event files in the run directory
    mlflow: Annotated[bool, Harmless()] = (
        False  # the same to MLflow: to MLFLOW_TRACKING_URI, else mlflow.db beside the run
    )

    @property
    def at_once(self) -> int:
        """Images per forward pass where nothing is trained, or on a CPU: ``micro_batch``, 2 where that is "auto"."""
        return 2 if self.micro_batch == "auto" else self.micro_batch

    def check(self, run: RunConfig) -> None:
        """What the fields must be to each other."""
        if self.patience and not self.eval_every:
            raise ConfigError(
                "train.patience: counts evaluations, and train.eval_every=0 makes one at the end alone; set "
                "train.eval_every=1, or train.patience=0"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. ``recipe`` is the name it started from; the other fields are what counts.

    methods: the sections of the methods that are on, by the name they are registered under; in YAML and dotted paths they
    stand beside the others (see ``register_section``). By default ``ms_detr`` and ``two_stage``.
    """

    recipe: Annotated[str, Harmless()] = "custom"
    seed: Annotated[int, Range(0, 2**63 - 1), Harmless(on_resume=False)] = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    methods: Annotated[Mapping[str, Any], Registered()] = field(default_factory=default_sections, hash=False)

    def __post_init__(self):
        check(self, RunConfig)
        known = registered_sections()
        for name, section in self.methods.items():
            if name not in known or not isinstance(section, known[name]):
                raise ConfigError(f"{name}: {section!r} is not a registered section of the configuration")
            check(section, known[name], f"{name}.")
        named = [getattr(self, f.name) for f in dataclasses.fields(self)]
        for section in [*named, *self.methods.values()]:
            if dataclasses.is_dataclass(section) and hasattr(section, "check"):
                section.check(self)

    def __getattr__(self, name: str) -> Any:
        """``config.ms_detr``: the section of a method, None where it is off."""
        if not name.startswith("_") and name in registered_sections():
            return self.methods.get(name)
        raise AttributeError(f"a configuration has no section {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Nested values; a section that is off is None where it would be on by default, else left out."""
        values = dataclasses.asdict(self)
        methods = values.pop("methods")
        return values | dict.fromkeys(default_sections()) | methods

    def override(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with some fields changed, named by dotted path: ``override({"train.lr": 1e-4, "seed": 3})``.

        Raises ConfigError for an unknown name (with the nearest known one), a wrong type or a value out of range.
        """
        nested = self.to_dict()
        for path, value in values.items():
            assign(nested, RunConfig, str(path), value, _known_names(RunConfig))
        return from_dict(nested)

    def save(self, path: str | Path) -> None:
        """Writes a YAML file that ``load`` reads, whole or not at all. Raises WriteError."""
        from .files import to_yaml

        write_atomically(path, to_yaml(self))


def from_dict(values: Mapping[str, Any], kind: type = RunConfig, path: str = "") -> Any:
    """Builds a configuration from nested mappings, coercing each value to the declared type.

    Raises ConfigError naming the field's dotted path.
    """
    if kind is RunConfig and isinstance(values, Mapping):
        values = modernized(values)
    return build(kind, values, path, _known_names(kind, f"{path}." if path else ""))


def all_settings(kind: type = RunConfig, prefix: str = "") -> list[Setting]:
    """All fields with their types and markers, sections entered."""
    return list(settings(kind, prefix))


def all_paths(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Dotted paths of all fields: 'seed', 'model.num_queries', ..."""
    return [setting.path for setting in settings(kind, prefix)]


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted path -> value of all fields; None for those of a section that is off."""
    values = config.to_dict()
    flat = {}
    for path in all_paths():
        value: Any = values
        for name in path.split("."):
            value = value.get(name) if value is not None else None
        flat[path] = value
    return flat


def harmless_on_resume() -> set[str]:
    """Paths of the settings that a resumed run may change without changing what is computed."""
    return {s.path for s in settings(RunConfig) if any(isinstance(m, Harmless) and m.on_resume for m in s.markers)}


def harmless_in_comparison() -> set[str]:
    """Paths of the settings in which repetitions of one experiment may differ."""
    return {s.path for s in settings(RunConfig) if any(isinstance(m, Harmless) and m.in_comparison for m in s.markers)}


def _known_names(kind: type, prefix: str = "") -> list[str]:
    sections = [prefix + name for name, declared in fields_of(kind).items() if section_of(declared)[0] is not None]
    return all_paths(kind, prefix) + sections
