"""The budget of a detector with post-processing of its own, without training: what is answered is what is evaluated."""

import numpy as np
import pytest
import small
import torch

import msdetr
from msdetr import recipes
from msdetr.analysis.budget.run import RunScenes, measured
from msdetr.data import shapes as generator
from msdetr.methods import build_detector


def test_the_answer_is_the_one_that_is_evaluated(tmp_path):
    data = generator.generate(tmp_path / "shapes", 1, 4)
    config = recipes.get("shapes/deta").override(
        {
            **small.SMALL,
            "model.num_queries": 20,
            "data.generate": "none",
            "data.root": str(data),
            "train.micro_batch": 3,
        }
    )
    torch.manual_seed(0)
    predictor = msdetr.Predictor(build_detector(config), config, generator.CLASS_NAMES, device="cpu")
    scenes = RunScenes(predictor, data)
    found, _ = measured(scenes, own_data=False)
    theirs = msdetr.evaluate(predictor, data, progress=False)
    assert found.ap == pytest.approx(100 * theirs.metrics["AP"], abs=1e-9)
    assert found.num_detections == theirs.num_detections and len(found.layers) == 2
    ours = np.concatenate([one.found.scores for one in scenes])
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs.detections["score"]), atol=1e-6)
    assert not scenes.answers_pairs  # what is suppressed already is not undone by the doctor
