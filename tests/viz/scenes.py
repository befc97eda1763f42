"""Invented images with predictions for the page: clusters of boxes around objects, ties among them, names that hurt."""

import numpy as np
import torch

from msdetr.analysis.look import SamplingPoints
from msdetr.analysis.specimen import Specimen
from msdetr.matching import MatchingRules
from msdetr.structures import DetectorOutput, Predictions, Targets

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"double\" & 'single'",
    "plain",
    "日本",
)


def specimen(seed: int, layers: int = 2, queries: int | None = None, objects: int | None = None, **rules) -> Specimen:
    """An image with 0 to 7 objects of five classes; every third scene has boxes or scores that tie."""
    rng = np.random.default_rng(seed)
    queries = int(rng.integers(3, 60)) if queries is None else queries
    objects = int(rng.integers(0, 8)) if objects is None else objects
    true = np.concatenate([rng.uniform(0.2, 0.8, (objects, 2)), rng.uniform(0.05, 0.5, (objects, 2))], -1)
    labels = rng.integers(0, len(HOSTILE), objects)

    def predictions() -> Predictions:
        near = true[rng.integers(0, objects, (layers, 1, queries))] if objects else 0.5
        box = np.where(rng.random((layers, 1, queries, 1)) < 0.8, near, rng.uniform(0.1, 0.9, (layers, 1, queries, 4)))
        box = box + rng.normal(0, 0.03, box.shape)
        logit = rng.normal(-1, 2, (layers, 1, queries, len(HOSTILE)))
        if seed % 3 == 0:
            box, logit = box.round(1), logit.round()
        return Predictions(torch.tensor(logit).float(), torch.tensor(box).float())

    targets = Targets.from_list([torch.tensor(labels)], [torch.tensor(true).float()], image_ids=[seed])
    first, second = predictions(), predictions() if seed % 4 else None
    start = torch.tensor(rng.uniform(0.1, 0.6, (1, 1, queries, 4))).float()
    references = torch.cat([start, first.boxes[:-1]])  # every layer refines the boxes of the one before
    where = SamplingPoints(rng.uniform(-0.1, 1.1, (queries, 2, 1, 4, 2)), rng.dirichlet(np.ones(4), (queries, 2, 1)))
    return Specimen(
        DetectorOutput(first, second, references=references),
        targets,
        MatchingRules(**rules),
        rng.integers(0, 255, (48, 64, 3)).astype(np.uint8),
        HOSTILE,
        f"'{seed}' \"quoted\" <b>.jpg",
        (where,) * layers,
    )
