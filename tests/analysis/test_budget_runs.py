"""The budget of a detector with post-processing of its own, without training: what is answered is what is evaluated."""

from dataclasses import replace

import numpy as np
import pytest
import small
import torch

import msdetr
from msdetr import recipes
from msdetr.analysis.budget import budget
from msdetr.analysis.budget.assemble import answer_of
from msdetr.analysis.budget.doctor import suppressed
from msdetr.analysis.budget.run import RunScenes, measured
from msdetr.analysis.budget.scene import Found, Objects, best_pairs
from msdetr.analysis.matching import Outcome
from msdetr.analysis.rivals import measure_rivals
from msdetr.analysis.specimen import Specimen
from msdetr.data import shapes as generator
from msdetr.methods import build_detector


@pytest.fixture(scope="module")
def deta(tmp_path_factory):
    """A predictor with suppression of its own, and a data set."""
    data = generator.generate(tmp_path_factory.mktemp("deta") / "shapes", 1, 4)
    config = recipes.get("shapes/deta").override(
        {
            **small.SMALL,
            "model.num_queries": 20,
            "deta.detection_nms": 0.01,  # so that of an untrained detector something is suppressed
            "data.generate": "none",
            "data.root": str(data),
            "train.micro_batch": 3,
        }
    )
    torch.manual_seed(0)
    return msdetr.Predictor(build_detector(config), config, generator.CLASS_NAMES, device="cpu"), data


def test_the_answer_is_the_one_that_is_evaluated(deta):
    predictor, data = deta
    scenes = RunScenes(predictor, data)
    found, _ = measured(scenes, own_data=False)
    theirs = msdetr.evaluate(predictor, data, progress=False)
    assert found.ap == pytest.approx(100 * theirs.metrics["AP"], abs=1e-9)
    assert found.num_detections == theirs.num_detections and len(found.layers) == 2
    ours = np.concatenate([one.found.scores for one in scenes])
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs.detections["score"]), atol=1e-6)
    assert not scenes.answers_pairs  # what is suppressed already is not undone by the doctor


def test_what_earlier_layers_would_have_answered_is_suppressed_too(deta):
    scenes = list(RunScenes(*deta))
    for scene in scenes:
        alone = replace(
            scene, layers=replace(scene.layers, boxes=scene.layers.boxes[:1], scores=scene.layers.scores[:1])
        )
        expected = suppressed(alone, 0.01, 100).found
        first, last = (answer_of(scene, layer, 100).found for layer in (0, 1))
        np.testing.assert_allclose(np.sort(first.scores), np.sort(expected.scores), atol=1e-6)
        assert last is scene.found
        pairs = best_pairs(alone.layers.boxes[0], alone.layers.scores[0], 100)
        assert len(first) < len(pairs) or first.scores.sum() < pairs.scores.sum()


def test_what_post_processing_drops_is_not_said_to_have_too_low_a_score(deta):
    scene = next(iter(RunScenes(*deta)))
    boxes, of_class = scene.layers.boxes[-1], scene.found.labels == 0  # of every query, as an object of class 0
    objects = Objects(boxes, np.zeros(len(boxes), int), boxes[:, 2] * boxes[:, 3], np.zeros(len(boxes), bool))
    found = Found(*(getattr(scene.found, name)[of_class] for name in ("boxes", "scores", "labels", "query")))
    told = budget([replace(scene, objects=objects, found=found)], generator.CLASS_NAMES).failures_of(cause="outranked")
    missed = [one.sentence for one in told if one.kind == "missed"]
    assert missed and all("the detector's post-processing does not keep it (" in sentence for sentence in missed)


def test_rivals_and_the_microscope_look_at_what_is_answered(deta, monkeypatch):
    predictor, data = deta
    monkeypatch.setattr("msdetr.predictor.load", lambda path, device: predictor)
    answered, own = [], predictor.postprocess
    monkeypatch.setattr(predictor, "postprocess", lambda *given: answered.append(given) or own(*given))
    found = measure_rivals("run", data=data, nms_iou=predictor.config.methods["deta"].detection_nms)
    assert answered and found.ap == found.ap_nms == msdetr.evaluate(predictor, data, progress=False).metrics["AP"]
    box = [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38], *[[0.1, 0.1, 0.1, 0.1]] * 3]
    score = [[0.9], [0.8], *[[0.01]] * 3]
    specimen = Specimen.from_arrays(box, score, box[:1], [0])
    assert [one.outcome for one in specimen.explain().outcomes()] == [Outcome.DOUBLED]
    output = replace(specimen.output, references=specimen.output.one_to_one.boxes)
    own = replace(specimen, output=output, config=predictor.config)
    assert [one.outcome for one in own.explain().outcomes()] == [Outcome.FOUND]
