"""Every setting changes something that can be seen: a setting that does not is a promise that nothing keeps.

``EFFECTS`` has an entry for each: another value, where to look for the difference, and what else must be set for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from msdetr.config import RunConfig, all_paths
from msdetr.data import build_datasets, build_eval_loader, build_train_loader, shapes
from msdetr.engine import Trainer, train
from msdetr.errors import MSDETRError
from msdetr.methods import build_criterion, build_detector, build_postprocess
from msdetr.methods.mr_detr import FFN_ROUTE, INSTRUCT_ROUTE
from msdetr.methods.registry import registered_methods
from msdetr.model.postprocess import postprocess
from msdetr.structures import DetectorOutput, EncoderOutput, GroupOutput, ImageBatch, Predictions, Targets

BASE = {"data.num_train": 4, "data.num_val": 2, "data.generate": "none", "train.batch_size": 2, "train.micro_batch": 2}
BASE |= {"train.epochs": 1, "train.eval_every": 1, "train.checkpoint_every": 1, "train.log_every": 1}


# ---------------------------------------------------------------- where to look


def compiled(config: RunConfig) -> int:
    """How many modules a trainer compiles; at their first call, which never comes."""
    trainer = Trainer(build_detector(config), build_criterion(config), config.train, total_steps=4, steps_per_epoch=2)
    return sum(module._compiled_call_impl is not None for module in trainer.detector.modules())


def learned(config: RunConfig, objects: int = 5) -> tuple:
    """Two training steps on fixed images: losses and gradients, what became of the weights, which are trained, and how often
    a layer of the decoder ran."""
    torch.manual_seed(0)
    detector = build_detector(config)
    calls = []
    detector.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    trainer = Trainer(detector, build_criterion(config), config.train, total_steps=4, steps_per_epoch=2)
    torch.manual_seed(1)
    boxes, labels = (torch.rand(5, 4) * 0.5 + 0.2)[:objects], torch.arange(5)[:objects]
    targets = Targets.from_list([labels[:3], labels[3:]], [boxes[:3], boxes[3:]])
    batch = ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 48, 64)])
    steps = [trainer.step([(batch, targets)]) for _ in range(2)]
    reported = [(s.loss.item(), s.grad_norm.item(), {k: v.tolist() for k, v in s.terms.items()}) for s in steps]
    weights = [(n, p.requires_grad, p.double().sum().item()) for n, p in detector.named_parameters()]
    averaged = [p.double().sum().item() for p in trainer.evaluated.parameters()]
    return reported, weights, averaged, len(calls)


def backbone(config: RunConfig) -> str:
    """The backbone's modules."""
    with torch.device("meta"):
        return str(build_detector(config).backbone)


def proposed(config: RunConfig) -> list:
    """Which tokens become queries where the encoder proposes boxes that overlap much."""
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    detector.query_selection.box_head.layers[-1].bias.data[2:] = 3
    with torch.no_grad():
        return detector(torch.randn(2, 3, 64, 64)).selected.tolist()


def learned_without_objects(config: RunConfig) -> tuple:
    return learned(config, objects=0)


def made_up(config: RunConfig) -> Callable[..., Predictions]:
    """Makes predictions of two images that overlap much."""
    draw = torch.Generator().manual_seed(0)

    def predictions(depth: int, queries: int = 40) -> Predictions:
        centers = 0.3 + 0.4 * torch.rand(depth, 2, queries, 2, generator=draw)
        sizes = 0.2 + 0.3 * torch.rand(depth, 2, queries, 2, generator=draw)
        logits = torch.randn(depth, 2, queries, config.model.num_classes, generator=draw)
        return Predictions(logits, torch.cat([centers, sizes], -1))

    return predictions


def detected(config: RunConfig) -> list:
    """The detections of made-up predictions."""
    found = (build_postprocess(config) or postprocess)(made_up(config)(2), torch.tensor([[64, 64], [64, 64]]), 30)
    return [one.query.tolist() for one in found]


def supervised(config: RunConfig) -> tuple:
    """The losses of made-up predictions, and who is matched."""
    predictions = made_up(config)
    objects = predictions(1, 4).boxes[0]
    targets = Targets.from_list([torch.tensor([0, 1, 2, 2]), torch.tensor([3, 4, 5, 0])], list(objects))
    encoder = predictions(1)
    output = DetectorOutput(
        predictions(2),
        predictions(2),
        EncoderOutput(encoder, predictions(1).boxes[0]),
        references=predictions(2).boxes,
        groups={
            name: GroupOutput(predictions(2), predictions(2), predictions(2).boxes)
            for name in (FFN_ROUTE, INSTRUCT_ROUTE)
        },
    )
    found = build_criterion(config)(output, targets)
    pairs = {name: (m.query.tolist(), m.target.tolist()) for name, m in found.matches.items()}
    return found.total.item(), {name: value.tolist() for name, value in found.terms.items()}, pairs


def read(config: RunConfig) -> tuple:
    """The data sets, and the first images of both as training and evaluation get them."""
    sets = build_datasets(config)
    contents = [(len(s), [s.path(i) for i in range(len(s))], s.categories, s.image_ids) for s in sets]
    loaders = build_train_loader(sets[0], config), build_eval_loader(sets[1], 1)
    micro, (evaluated, _) = (next(iter(loader)) for loader in loaders)
    seen = [batch.images for batch, _ in micro] + [evaluated.images]
    sums = [(images.double() * torch.arange(images.shape[-1])).sum().item() for images in seen]  # flips change them
    return contents, [tuple(images.shape) for images in seen], sums, len(loaders[0])


def outcome(config: RunConfig) -> str:
    """What comes of building the detector, reading all images of the data, and how they are loaded."""
    try:
        with torch.device("meta"):
            build_detector(config)
        sets = build_datasets(config)
        samples = [s[i] for s in sets for i in range(len(s))]
        loader = build_train_loader(sets[0], config)
        return f"{sum(sample is None for sample in samples)} left out, {loader.num_workers}, {loader.timeout}"
    except MSDETRError as error:
        return f"{type(error).__name__}: {error}"


def read_again(config: RunConfig) -> str:
    """What comes of reading an image once more when its file is gone."""
    dataset = build_datasets(config)[0]
    dataset[0]
    gone = dataset.path(0).rename(dataset.path(0).with_suffix(".gone"))
    try:
        return str(dataset[0].image.shape)
    except MSDETRError as error:
        return str(error)
    finally:
        gone.rename(dataset.path(0))


def ran(config: RunConfig, run_dir: Path) -> tuple:
    """What a training run of two steps leaves behind."""
    results = train(config, run_dir, device="cpu", progress=False)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    events = [(line["kind"], line["step"]) for line in lines]
    kept = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    names = ("recipe", "steps", "epochs", "protocol")
    return events, kept, {name: results[name] for name in names}, (run_dir / "tensorboard").exists()


def ran_or_refused(config: RunConfig, run_dir: Path) -> tuple | str:
    """What a training run leaves behind, or what keeps it from starting: a library that is not installed."""
    try:
        return *ran(config, run_dir), (run_dir.parent / "mlflow.db").exists()
    except MSDETRError as error:
        return str(error)


# ---------------------------------------------------------------- every setting, with another value


@dataclass(frozen=True)
class Effect:
    """value: another one than the base has. look: what shows the difference. given: other settings of both sides."""

    value: Any
    look: Callable[..., Any]
    given: dict[str, Any] = field(default_factory=dict)


RESNET = {"model.backbone": "resnet18"}
DENOISING, HYBRID, GROUP = {"denoising.queries": 4}, {"hybrid.queries": 6, "hybrid.k": 2}, {"group.groups": 2}
DETA = {"deta.k": 3, "deta.decoder_threshold": 0.3, "deta.encoder_threshold": 0.4}
MR_DETR = {"mr_detr.instructions": 4}
LW_DETR = {"two_stage": None, "lw_detr.groups": 2, "model.query_positions": "references"}
STABLE = {"stable.loss_iou_power": 2.0}
DAB = {"two_stage": None, "dab.indicator": False, "model.query_positions": "scaled_references"}
EFFECTS = {
    "recipe": Effect("mine", ran),
    "seed": Effect(1, read),
    "model.num_classes": Effect(9, learned),
    "model.backbone": Effect("resnet18", learned),
    "model.pretrained": Effect("absent.pth", outcome, RESNET),
    "model.backbone_norm": Effect("group", learned, RESNET),
    "model.trainable_layers": Effect(1, learned, RESNET),
    "model.finest_stride": Effect(4, learned, RESNET | {"model.num_levels": 4}),
    "model.dilation": Effect(True, backbone, {"model.backbone": "resnet50"}),
    "model.hidden_dim": Effect(64, learned),
    "model.num_heads": Effect(2, learned),
    "model.cross_heads": Effect(2, learned),
    "model.encoder_layers": Effect(2, learned),
    "model.decoder_layers": Effect(3, learned),
    "model.ffn_dim": Effect(48, learned),
    "model.dropout": Effect(0.5, learned),
    "model.num_queries": Effect(7, learned),
    "model.num_levels": Effect(4, learned),
    "model.num_points": Effect(2, learned),
    "model.box_refine": Effect(False, learned, {"model.look_forward_twice": False}),
    "model.look_forward_twice": Effect(False, learned),
    "model.shared_heads": Effect(True, learned),
    "model.query_positions": Effect("references", learned),
    "model.output_norm": Effect(True, learned),
    "model.reference_eps": Effect(0.1, learned),
    "model.position_temperature": Effect(20.0, learned),
    "model.position_offset": Effect(0.0, learned),
    "matching.cost_class": Effect(20.0, supervised),
    "matching.focal_alpha": Effect(0.9, supervised),
    "matching.cost_l1": Effect(50.0, supervised),
    "matching.cost_giou": Effect(20.0, supervised),
    "loss.class_weight": Effect(0.5, supervised),
    "loss.l1_weight": Effect(0.5, supervised),
    "loss.giou_weight": Effect(0.5, supervised),
    "loss.focal_alpha": Effect(0.5, supervised),
    "loss.focal_gamma": Effect(1.0, supervised),
    "loss.giou_eps": Effect(0.01, supervised),
    "loss.floor": Effect("product", learned_without_objects, GROUP),
    "data.root": Effect("elsewhere", read),
    "data.train_split": Effect("val", read),
    "data.val_split": Effect("train", read),
    "data.generate": Effect("shapes", outcome, {"data.root": "empty"}),
    "data.num_train": Effect(2, read),
    "data.num_val": Effect(1, read),
    "data.raw_category_ids": Effect(True, read),
    "data.augment": Effect("none", read, {"seed": 1}),
    "data.train_sizes": Effect((32,), read, {"data.augment": "detr"}),
    "data.test_size": Effect(64, read),
    "data.max_size": Effect(100, read, {"data.test_size": 128}),
    "data.workers": Effect(1, outcome),
    "data.worker_timeout": Effect(77.0, outcome, {"data.workers": 1}),
    "data.on_bad_annotation": Effect("drop", outcome, {"data.root": "bad_annotation"}),
    "data.skip_images": Effect(1, outcome, {"data.root": "bad_image"}),
    "data.cache": Effect(False, read_again),
    "train.epochs": Effect(0.5, ran),
    "train.batch_size": Effect(4, ran),
    "train.micro_batch": Effect(1, read),
    "train.lr": Effect(1e-4, learned),
    "train.lr_backbone": Effect(1e-4, learned),
    "train.lr_projection_factor": Effect(0.1, learned),
    "train.weight_decay": Effect(0.5, learned),
    "train.betas": Effect((0.5, 0.9), learned),
    "train.schedule": Effect("constant", learned),
    "train.drop_epoch": Effect(0.0, learned, {"train.schedule": "step"}),
    "train.warmup_fraction": Effect(0.9, learned),
    "train.clip_norm": Effect(0.0, learned, {"train.weight_decay": 0.0}),
    "train.ema_decay": Effect(0.5, learned),
    "train.precision": Effect("bf16", learned),
    "train.gradient_checkpointing": Effect(True, learned),
    "train.compile": Effect(True, compiled),
    "train.eval_every": Effect(0.5, ran),
    "train.patience": Effect(1, ran, {"train.epochs": 2, "train.eval_every": 0.5}),
    "train.checkpoint_every": Effect(0.5, ran),
    "train.max_detections": Effect(3, ran),
    "train.log_every": Effect(2, ran),
    "train.tensorboard": Effect(True, ran),
    "train.mlflow": Effect(True, ran_or_refused),
    "ms_detr.variant": Effect("a", learned),
    "ms_detr.heads": Effect("separate", learned),
    "ms_detr.candidate_ffn": Effect("without", learned),
    "ms_detr.rule": Effect("literal", supervised),
    "ms_detr.alpha": Effect(0.9, supervised),
    "ms_detr.threshold": Effect(0.7, supervised),
    "ms_detr.k": Effect(2, supervised),
    "ms_detr.merge": Effect(True, supervised),
    "ms_detr.class_weight": Effect(0.5, supervised),
    "ms_detr.l1_weight": Effect(0.5, supervised),
    "ms_detr.giou_weight": Effect(0.5, supervised),
    "ms_detr.fade": Effect(1.0, learned),
    "ms_detr.groups": Effect("all", learned, HYBRID),
    "two_stage.mixed_selection": Effect(False, learned),
    "two_stage.class_weight": Effect(0.5, supervised),
    "two_stage.l1_weight": Effect(0.5, supervised),
    "two_stage.giou_weight": Effect(0.5, supervised),
    "two_stage.rank_by": Effect("best_class", learned),
    "two_stage.supervise": Effect("queries", learned, {"two_stage.rank_by": "best_class"}),
    "two_stage.match_on": Effect("boxes", supervised),
    "hybrid.queries": Effect(9, learned, HYBRID),
    "hybrid.k": Effect(3, learned, HYBRID),
    "hybrid.weight": Effect(0.5, learned, HYBRID),
    "group.groups": Effect(3, learned, GROUP),
    "denoising.queries": Effect(8, learned, DENOISING),
    "denoising.contrastive": Effect(False, learned, DENOISING),
    "denoising.label_noise": Effect(1.0, learned, DENOISING),
    "denoising.box_noise": Effect(0.9, learned, DENOISING),
    "denoising.weight": Effect(0.5, learned, DENOISING),
    "denoising.groups": Effect(3, learned, DENOISING),
    "denoising.style": Effect("indicated", learned, DENOISING),
    "denoising.noise": Effect("corners", learned, DENOISING | {"denoising.contrastive": False}),
    "stable.loss_iou_power": Effect(1.0, supervised, STABLE),
    "stable.loss_probability_power": Effect(1.0, supervised, STABLE),
    "stable.transform": Effect("sin", supervised, STABLE),
    "stable.cost_power": Effect(5.0, supervised, STABLE),
    "stable.cost": Effect("released", supervised, STABLE | {"stable.cost_power": 5.0}),
    "stable.memory_fusion": Effect(True, learned, STABLE),
    "mr_detr.routes": Effect("ffn", learned, MR_DETR),
    "mr_detr.instructions": Effect(3, learned, MR_DETR),
    "mr_detr.proposals": Effect("own", learned, MR_DETR),
    "mr_detr.rule": Effect("literal", supervised, MR_DETR),
    "mr_detr.alpha": Effect(0.9, supervised, MR_DETR),
    "mr_detr.threshold": Effect(0.7, supervised, MR_DETR),
    "mr_detr.k": Effect(2, supervised, MR_DETR),
    "mr_detr.mix_layers": Effect(True, detected, MR_DETR),
    "mr_detr.class_weight": Effect(0.5, supervised, MR_DETR),
    "mr_detr.l1_weight": Effect(0.5, supervised, MR_DETR),
    "mr_detr.giou_weight": Effect(0.5, supervised, MR_DETR),
    "denoising.class_weight": Effect(0.3, learned, DENOISING),
    "denoising.negatives": Effect(2, learned, DENOISING),
    "denoising.negative_step": Effect(0.0, learned, DENOISING),
    "lw_detr.groups": Effect(3, learned, LW_DETR),
    "lw_detr.two_stage": Effect(False, learned, LW_DETR),
    "lw_detr.relative_boxes": Effect(False, learned, LW_DETR),
    "lw_detr.class_loss": Effect("focal", learned, LW_DETR),
    "lw_detr.group_losses": Effect("sum", learned, LW_DETR),
    "lw_detr.few_tokens": Effect("learned", learned, LW_DETR | {"model.num_queries": 100}),
    "dab.indicator": Effect(True, learned, DAB),
    "deta.encoder": Effect(False, learned, DETA),
    "deta.decoder": Effect(False, learned, DETA),
    "deta.encoder_threshold": Effect(0.9, supervised, DETA),
    "deta.decoder_threshold": Effect(0.9, supervised, DETA),
    "deta.k": Effect(1, supervised, DETA),
    "deta.rule": Effect("released", learned, DETA | {"model.num_queries": 20}),
    "deta.proposal_nms": Effect(0.1, proposed, DETA),
    "deta.proposals_per_level": Effect(2, learned, DETA),
    "deta.token_contents": Effect(True, learned, DETA | {"two_stage.mixed_selection": False}),
    "deta.detection_nms": Effect(0.2, detected, DETA),
}


def settings_of_the_package() -> list[str]:
    """Without the sections of methods that other tests register."""
    others = {name for name, method in registered_methods().items() if not method.__module__.startswith("msdetr.")}
    return [path for path in all_paths() if path.partition(".")[0] not in others]


def test_every_setting_has_an_entry():
    assert set(settings_of_the_package()) == set(EFFECTS), "say in EFFECTS what a setting changes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Generated data, once as it is and once with each fault."""
    folder = tmp_path_factory.mktemp("data")
    shapes.generate(folder / "shapes", 4, 2)
    for name in ("elsewhere", "bad_annotation", "bad_image"):
        shutil.copytree(folder / "shapes", folder / name)
    (folder / "empty").mkdir()
    file = folder / "bad_annotation" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 99
    file.write_text(json.dumps(content))
    min((folder / "bad_image" / "train").glob("*.png")).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    """What is seen of a configuration; the same one is looked at once."""

    def seen(look: Callable[..., Any], settings: dict[str, Any]) -> Any:
        settings = {**settings, "data.root": str(folder / settings.get("data.root", "shapes"))}
        key = look, tuple(sorted(settings.items()))
        if key not in known:
            config = small.config("c", **BASE | settings)
            run_dir = {"run_dir": folder / f"run_{len(known)}"} if look in (ran, ran_or_refused) else {}
            known[key] = look(config, **run_dir)
        return known[key]

    known: dict[Any, Any] = {}
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("look", [learned, supervised, read, outcome])
def test_the_same_settings_show_the_same(folder, look):
    config = small.config("c", **BASE | {"data.root": str(folder / "shapes")})
    assert look(config) == look(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", EFFECTS)
def test_a_setting_takes_effect(path, seen):
    effect = EFFECTS[path]
    before = seen(effect.look, effect.given)
    assert seen(effect.look, effect.given | {path: effect.value}) != before
