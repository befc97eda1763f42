"""A method defined outside the package, in one place: a second query group with a branch, a term and a section of its own."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import small
import torch
from torch import nn

from msdetr.config import Range, unregister_section
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.postprocess import postprocess
from msdetr.engine.trainer import Trainer
from msdetr.errors import InputError
from msdetr.losses import Branch, detection_terms, of_group
from msdetr.matching import HungarianMatcher
from msdetr.methods import Method, build_criterion, build_detector, register
from msdetr.model import QuerySource, training_only_names
from msdetr.predictor import Predictor
from msdetr.structures import ImageBatch, QueryGroup, Targets

# ---------------------------------------------------------------- the method


@dataclass(frozen=True)
class ToyConfig:
    queries: Annotated[int, Range(1)] = 4
    weight: Annotated[float, Range(0)] = 0.5


class ToyQueries(QuerySource):
    def __init__(self, dim, queries):
        super().__init__()
        self.contents, self.ranked = nn.Embedding(queries, dim), queries

    def forward(self, proposals, targets, earlier):
        first = earlier["primary"].contents.shape[1]
        selected = proposals.ranking[:, first : first + self.ranked]
        references = proposals.references(selected)
        contents = self.contents.weight.expand(len(selected), -1, -1)
        return QueryGroup("toy", contents, proposals.embed(references)[0], references, targets=targets.repeated(2))


class Toy(Method):
    name, Config = "toy", ToyConfig

    def sources(self):
        return {"toy": ToyQueries(self.run.model.hidden_dim, self.config.queries)}

    def postprocess(self):
        return lambda predictions, sizes, count: postprocess(predictions, sizes, min(count, 3))  # a toy's choice

    def branches(self, groups):
        terms = detection_terms(1.0, 5.0, 2.0) | {
            "area": (self.config.weight, lambda p, t, m: p.boxes[..., 2:].prod(-1).sum((1, 2)))
        }
        return [Branch("toy", of_group("toy"), HungarianMatcher(), terms)]


# ---------------------------------------------------------------- its life


@pytest.fixture
def config():
    register(Toy)
    yield small.config("c", **{"toy.queries": 6})
    unregister_section("toy")


def batch():
    images = ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 64, 64)])
    return images, Targets.from_list(
        [torch.tensor([1]), torch.tensor([0, 2])], [torch.rand(n, 4) * 0.3 + 0.3 for n in (1, 2)]
    )


def trainer(config):
    torch.manual_seed(0)
    return Trainer(build_detector(config), build_criterion(config), config.train, total_steps=4, steps_per_epoch=2)


def test_it_trains_resumes_strips_and_predicts(config, tmp_path):
    first = trainer(config)
    steps = [first.step([batch()]) for _ in range(2)]
    assert {"toy/class", "toy/l1", "toy/giou", "toy/area"} <= set(steps[0].terms) and steps[0].positives["toy"] == 6

    files, training = first.files()
    manifest = {"step": 2, "epoch": 1.0, "config": config.to_dict(), "class_names": list("abcdefgh"),
                "category_ids": list(range(8)), "metrics": {}, "training": training | {"seconds": 1.0, "evaluations": []}}  # fmt: skip
    written = checkpoints.write(tmp_path / "checkpoints" / "step_00000002", files, manifest)
    assert written.config.toy == ToyConfig(queries=6)
    second = trainer(written.config)
    second.restore(written)
    data = batch()
    torch.testing.assert_close(first.step([data]).loss, second.step([data]).loss, rtol=0, atol=0)

    detector, images = first.detector.eval(), data[0]
    with torch.no_grad():
        whole = detector(images).one_to_one
        names = training_only_names(detector)
        assert any(name.startswith("sources.toy") for name in names)
        stripped = detector.strip()(images).one_to_one
    assert torch.equal(whole.logits, stripped.logits) and torch.equal(whole.boxes, stripped.boxes)
    plain = build_detector(config.override({"toy": None, "ms_detr": None}))
    assert [n for n, _ in detector.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_without_it_nothing_changes(config):
    """The primary group reads no other, so its predictions are the same beside a further group."""
    detector, (images, targets) = build_detector(config).eval(), batch()
    with torch.no_grad():
        alone, beside = detector(images), detector(images, targets)
    torch.testing.assert_close(alone.one_to_one.boxes, beside.one_to_one.boxes)
    assert not alone.groups and beside.groups["toy"].predictions.boxes.shape[2] == 6


def test_its_post_processing_is_that_of_predictions(config):
    predictor = Predictor(build_detector(config), config, device="cpu")
    assert len(predictor.predict(torch.rand(3, 64, 64))) == 3
    plain = config.override({"toy": None})
    assert len(Predictor(build_detector(plain), plain, device="cpu").predict(torch.rand(3, 64, 64))) > 3


def test_training_needs_objects(config):
    with pytest.raises(InputError, match=r"query groups toy are trained with objects: call detector\(batch, targets\)"):
        build_detector(config).train()(batch()[0])
