"""Made-up cells of a study, as if a run had been trained and measured."""

import json

from msdetr.analysis.cells import Cell
from msdetr.config import RunConfig


def made_up(config: RunConfig, ap: float | None, gap: float | None = 0.3) -> Cell:
    """A cell that reached an AP, with its seed in its configuration. gap: the duplicate gap."""
    return Cell(
        json.loads(json.dumps(config.to_dict())),
        config.seed,
        {"AP": ap, "AP50": ap, "AP75": ap},
        {"mean IoU of the top 5": 0.7, "candidates over IoU 0.75": 4.0, "duplicate gap": gap},
        [{"step": 10, "epoch": 1.0, "AP": ap}],
        {"training": 2, "inference": 1},
        steps=10,
        seconds=1.0,
        device="cpu",
        torch="2",
        code="abc",
        date="2026-01-01",
    )
