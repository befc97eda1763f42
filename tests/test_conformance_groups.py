"""The comparison with H-DETR and Group DETR fails where a case carries another setting, and names one that it has not."""

import json
import shutil
from pathlib import Path

import conformance
import pytest

SMALL = Path(__file__).parent / "golden_small"


@pytest.mark.parametrize(
    "item, case, change, named",
    [
        ("hdetr", "more_copies_than_queries", {"flags": {"k_one2many": 5}}, "indices/one2many"),
        ("hdetr", "more_copies_than_queries", {"flags": {"lambda_one2many": 0.5}}, "one2many"),
        ("hdetr", "more_copies_than_queries", {"flags": {"look_forward_twice": False}}, "float64"),
        ("hdetr", "more_copies_than_queries", {"flags": {"sgd": True}}, "the case carries sgd"),
        ("hdetr", "more_copies_than_queries", {"weights": {"loss_giou_one2many": 3.0}}, "loss_giou_one2many"),
        ("group", "rfdetr_few_tokens", {"flags": {"bbox_reparam": False}}, "matching decoder"),
        ("group", "rfdetr_few_tokens", {"flags": {"ia_bce_loss": False}}, "loss_ce"),
        ("group", "rfdetr_few_tokens", {"code": "lwdetr"}, "shape"),
        ("group", "rfdetr_few_tokens", {"config": {"decoder_norm": "LN"}}, "the case carries decoder_norm"),
        ("group", "detrex_criterion_one_empty", {"num_boxes": 5.0}, "num_boxes"),
    ],
)
def test_another_setting_fails(tmp_path, capsys, item, case, change, named):
    shutil.copytree(SMALL / item, tmp_path / item)
    file = tmp_path / item / "manifest.json"
    manifest = json.loads(file.read_text())
    spec = manifest["cases"][case]
    for name, value in change.items():
        spec[name] = {**spec[name], **value} if isinstance(value, dict) else value
    manifest["cases"] = {case: spec}
    file.write_text(json.dumps(manifest))
    _, failed = conformance.run(tmp_path, [item])
    printed = capsys.readouterr().out
    assert failed and any(line.startswith("FAIL") and named in line for line in printed.splitlines()), printed
