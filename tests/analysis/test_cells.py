"""A finished run is kept as a cell: what it says, that it is read back, and that other settings are noticed."""

import json

import pytest

from msdetr import recipes
from msdetr.analysis.cells import MEASURES, Cell
from msdetr.config import RunConfig
from msdetr.errors import RunError


@pytest.fixture
def cell() -> Cell:
    config = recipes.get("shapes/dino-ms-c").override({"seed": 3, "data.root": "elsewhere/shapes"})
    return Cell(
        json.loads(json.dumps(config.to_dict())),
        seed=3,
        metrics={"AP": 0.4, "AP50": 0.6, "AP75": 0.45},
        candidates={"mean IoU of the top 5": 0.7, "candidates over IoU 0.75": 4.5, "duplicate gap": None},
        evaluations=[{"step": 250, "epoch": 1.0, "AP": 0.4}],
        parameters={"training": 1_700_000, "inference": 1_600_000},
        steps=250,
        seconds=60.0,
        device="cpu",
        torch="2",
        code="abc",
        date="2026-01-01",
    )


def test_a_cell_is_read_as_it_was_saved(cell, tmp_path):
    cell.save(tmp_path / "cell.json")
    again = Cell.load(tmp_path / "cell.json")
    assert again == cell and isinstance(again.run_config(), RunConfig)
    assert [again.value(name) for name in MEASURES] == [0.4, 0.6, 0.45, 0.7, 4.5, None]


def test_settings_other_than_its_own_are_named_and_the_place_of_the_data_is_none(cell):
    own = recipes.get("shapes/dino-ms-c").override({"seed": 3})
    assert cell.differs_from(own) == {}
    assert cell.differs_from(own.override({"ms_detr.k": 6})) == {"ms_detr.k": (4, 6)}
    assert cell.differs_from(own.override({"seed": 4})) == {"seed": (3, 4)}
    assert cell.differs_from(own.override({"data.root": "data/other"})) == {"data.root": ("shapes", "other")}
    assert "denoising.queries" in cell.differs_from(own.override({"denoising": None}))


def test_a_setting_that_is_newer_than_the_cell_has_its_default(cell):
    del cell.config["train"]["clip_norm"], cell.config["denoising"]["weight"]
    assert cell.differs_from(recipes.get("shapes/dino-ms-c").override({"seed": 3})) == {}


def test_a_cell_of_an_earlier_version_has_no_labels(cell, tmp_path):
    cell.save(tmp_path / "cell.json")
    content = json.loads((tmp_path / "cell.json").read_text())
    (tmp_path / "cell.json").write_text(json.dumps({name: content[name] for name in content if name != "labels"}))
    assert Cell.load(tmp_path / "cell.json") == cell and cell.labels == {}


@pytest.mark.parametrize("content", ['{"seed": 1}', "[]", "{", None])
def test_another_file_is_an_error_that_names_it(cell, tmp_path, content):
    path = tmp_path / "cell.json"
    if content is None:
        cell.config["model"]["hidden"] = 3
        cell.save(path)
    else:
        path.write_text(content)
    with pytest.raises(RunError, match=r"cell\.json"):
        Cell.load(path)
