"""The published implementation's numbers: the small cases always, a full directory where there is one."""

import json
import os
import shutil
from pathlib import Path

import comparison
import conformance
import golden
import numpy as np
import pytest
import torch
from small import config

from msdetr.methods import build_criterion
from msdetr.structures import DetectorOutput, Predictions, Targets

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
FULL = Path(os.environ.get("MSDETR_GOLDEN", SHARED / "golden"))
FAMILY = Path(os.environ.get("MSDETR_GOLDEN_FAMILY", SHARED / "golden_family"))


@pytest.mark.parametrize("item", [item for item in conformance.CASES if (HERE / "golden_small" / item).is_dir()])
def test_small_cases(item, capsys):
    passed, failed = conformance.run(HERE / "golden_small", [item])
    assert failed == 0, capsys.readouterr().out
    assert passed > 0


@pytest.mark.parametrize("item", conformance.CASES)
def test_full_directory(item, capsys):
    directory, variable = (FULL, "MSDETR_GOLDEN") if item in conformance.ITEMS else (FAMILY, "MSDETR_GOLDEN_FAMILY")
    if not (directory / item).is_dir():
        pytest.skip(f"no conformance data at {directory / item}; set {variable} to a directory that has it")
    passed, failed = conformance.run(directory, [item])
    assert failed == 0, capsys.readouterr().out
    assert passed > 0


def test_a_wrong_number_fails():
    """The comparison itself: an error beyond the tolerance, a NaN and a wrong shape are all failures."""
    for got in ([1.0, 2.1], [1.0, float("nan")], [1.0]):
        case = conformance.Case()
        case.close("x", got, [1.0, 2.0], rtol=1e-3)
        assert not case.passed
    case = conformance.Case()
    assert not case.passed
    case.close("x", [1.0, 2.0], [1.0, 2.0])
    assert case.passed


class Variation:
    """A copy of one small case that a test changes: its entry of the manifest, and its arrays."""

    def __init__(self, folder: Path, item: str, name: str, section: str = "cases"):
        self.folder, self.item, self.name = folder, item, name
        shutil.copytree(HERE / "golden_small" / item, folder / item)
        self.manifest = golden.read_json(folder / item / "manifest.json")
        self.manifest[section] = {name: self.manifest[section][name]}
        self.spec = self.manifest[section][name]
        file = folder / item / f"{name}.npz"
        self.arrays = golden.read_arrays(file) if file.is_file() else None

    def run(self, capsys) -> tuple[int, str]:
        """How many comparisons fail, and what is printed."""
        (self.folder / self.item / "manifest.json").write_text(json.dumps(self.manifest))
        if self.arrays is not None:
            np.savez(self.folder / self.item / f"{self.name}.npz", **self.arrays)
        passed, failed = conformance.run(self.folder, [self.item])
        assert passed + failed
        return failed, capsys.readouterr().out

    def drop(self, suffixes: tuple[str, ...]) -> None:
        """Leaves out loss entries, and their part of the total."""
        for name in [name for name in self.spec["losses"] if name.endswith(suffixes)]:
            value = self.spec["losses"].pop(name)
            self.spec["total"] -= self.spec["weight_dict_used"].get(name, 0.0) * value


def without_encoder(case: Variation) -> None:
    case.drop(("_enc",))
    case.spec["matchings"] = [entry for entry in case.spec["matchings"] if entry[0] != "enc"]
    case.arrays = {name: array for name, array in case.arrays.items() if "enc/" not in name}


def with_fewer_layers(case: Variation) -> None:
    """Without the first of the layers 0 to 2."""
    case.drop(("_0",))
    case.spec["losses"] = {name.replace("_1", "_0"): value for name, value in case.spec["losses"].items()}
    del case.spec["matchings"][1]
    case.arrays = {
        name.replace("o2o/1/", "o2o/0/").replace("o2o/2/", "o2o/1/"): array
        for name, array in case.arrays.items()
        if "o2o/0/" not in name
    }
    case.spec["flags"]["dec_layers"] = case.spec["layers"] = 2


def with_other_weights(case: Variation) -> None:
    weights = {"bbox_loss_coef": 3.0, "enc_giou_loss_coef": 7.0}
    for name, weight in case.spec["weight_dict_used"].items():
        value = case.spec["losses"].get(name, 0.0)
        if name.startswith("loss_bbox") and not name.endswith("_enc"):
            case.spec["total"] += (weights["bbox_loss_coef"] - weight) * value
        elif name == "loss_giou_enc":
            case.spec["total"] += (weights["enc_giou_loss_coef"] - weight) * value
    case.spec["flags"] |= weights
    case.arrays = {n: a for n, a in case.arrays.items() if not (n.startswith("grad/") and n.endswith("boxes"))}


def with_flags_as_config(case: Variation) -> None:
    case.spec["config"] = case.spec.pop("flags")


def with_flags_in_the_manifest(case: Variation) -> None:
    case.manifest["config"] = case.spec.pop("flags")


def with_one_stage_flags(case: Variation) -> None:
    without_encoder(case)
    case.spec["flags"] = {"use_ms_detr": False}


@pytest.mark.parametrize(
    "change",
    [
        with_flags_as_config,
        with_flags_in_the_manifest,
        without_encoder,
        with_one_stage_flags,
        with_fewer_layers,
        with_other_weights,
    ],
)
def test_criterion_cases_of_another_kind(change, tmp_path, capsys):
    case = Variation(tmp_path, "criterion", "baseline_two_stage")
    change(case)
    failed, printed = case.run(capsys)
    assert failed == 0, printed


@pytest.mark.parametrize("change", [with_flags_as_config, with_flags_in_the_manifest])
def test_names_of_a_model_whose_flags_stand_elsewhere(change, tmp_path, capsys):
    case = Variation(tmp_path, "keys", "ms_detr_pp_300", "configs")
    change(case)
    failed, printed = case.run(capsys)
    assert failed == 0, printed


@pytest.mark.parametrize(
    ("item", "name", "flags"),
    [
        ("criterion", "baseline_two_stage", {"bbox_loss_coef": 4.0}),
        ("criterion", "baseline_two_stage", {"enc_cls_loss_coef": 1.0}),
        ("criterion", "c_dup", {"o2m_giou_loss_coef": 1.0}),
        ("keys", "ms_detr_pp_300", {"enc_layers": 5}),
        ("keys", "ms_detr_pp_300", {"dec_layers": 5}),
        ("keys", "ms_detr_pp_300", {"num_feature_levels": 5}),
        ("keys", "ms_detr_pp_300", {"hidden_dim": 128}),
        ("keys", "ms_detr_pp_300", {"nheads": 4}),
        ("keys", "ms_detr_pp_300", {"backbone": "resnet101"}),
        ("keys", "ms_detr_pp_300", {"enc_n_points": 2, "dec_n_points": 2}),
    ],
    ids=str,
)
def test_a_setting_is_not_ignored(item, name, flags, tmp_path, capsys):
    """Numbers recorded with one value fail with another."""
    case = Variation(tmp_path, item, name, "configs" if item == "keys" else "cases")
    case.spec["flags"] |= flags
    failed, printed = case.run(capsys)
    assert failed, printed


@pytest.mark.parametrize("item", ["criterion", "keys"])
@pytest.mark.parametrize(
    "flags",
    [
        {"dilation": True},
        {"masks": True},
        {"aux_loss": False},
        {"position_embedding": "learned"},
        {"num_patterns": 3},
        {"lr_linear_proj_names": ["sampling_offsets"]},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_a_setting_that_cannot_be_honored_fails_by_its_name(item, flags, tmp_path, capsys):
    name, section = ("c_dup", "cases") if item == "criterion" else ("ms_detr_pp_300", "configs")
    case = Variation(tmp_path, item, name, section)
    case.spec["flags"] |= flags
    failed, printed = case.run(capsys)
    lines = printed.splitlines()
    assert failed == len(lines) and all(f"the case carries {next(iter(flags))}" in line for line in lines)


@pytest.mark.parametrize("section", ["flags", "config"])
def test_a_setting_where_none_is_read_fails_by_its_name(section, tmp_path, capsys):
    case = Variation(tmp_path, "hungarian", "case4")
    case.spec[section] = {"set_cost_bbox": 1.0}
    failed, printed = case.run(capsys)
    assert failed == 2 and printed.count("the case carries set_cost_bbox") == 2


def test_numbers_of_points_that_differ_are_named(tmp_path, capsys):
    case = Variation(tmp_path, "keys", "ms_detr_pp_300", "configs")
    case.spec["flags"]["dec_n_points"] = 8
    failed, printed = case.run(capsys)
    assert failed == 1 and "dec_n_points = 8" in printed


def test_a_tie_passes_and_is_named(tmp_path, capsys):
    case = Variation(tmp_path, "hungarian", "case4")
    queries = case.arrays["indices/0/0"]
    matched, free = int(queries[0]), int(np.setdiff1d(np.arange(50), queries)[-1])
    for name in ("pred_logits", "pred_boxes"):
        case.arrays[name][0, free] = case.arrays[name][0, matched]
    queries[0] = free
    failed, printed = case.run(capsys)
    assert failed == 0 and printed.count(f"tie in image 0: queries [{matched}] here, [{free}] recorded") == 2, printed

    case.arrays["pred_logits"][0, free, 0] += 0.5  # costs nothing in this case, but they are no copies any more
    failed, printed = case.run(capsys)
    assert failed and "tie" not in printed


TARGETS = Targets.from_list([torch.tensor([1]), torch.tensor([2])], [torch.full((1, 4), 0.4), torch.full((1, 4), 0.5)])


def tied_output() -> DetectorOutput:
    """Two layers, two images, six queries; queries 1 and 4 of image 0 are copies, the best of their object."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 8, generator=generator, dtype=torch.float64) - 4
    boxes = 0.05 + 0.1 * torch.rand(2, 2, 6, 4, generator=generator, dtype=torch.float64)
    logits[:, 0, [1, 4]], boxes[:, 0, [1, 4]] = logits[:, 0, [1]], boxes.new_tensor([0.4, 0.4, 0.3, 0.3])
    logits[:, 1, 0], boxes[:, 1, 0] = 0.0, 0.5
    predictions = Predictions(logits, boxes)
    return DetectorOutput(predictions, predictions)


def test_what_follows_a_tie_is_computed_from_the_recorded_matching():
    """The published rule keeps both of two tied queries; the losses then count both."""
    criterion = build_criterion(
        config("c", **{"two_stage": None, "ms_detr.rule": "released", "ms_detr.threshold": 0.9})
    )
    output, targets = tied_output(), TARGETS.to(torch.float64)
    both, one = [[[1, 0], [4, 0]], [[0, 0]]], [[[4, 0]], [[0, 0]]]
    recorded = [["o2o", one], ["o2o", one], ["o2m", both], ["o2m", [[[1, 0]], [[0, 0]]]]]
    case = conformance.Case()
    losses = conformance.compare_matchings(case, "", criterion, output, targets, recorded)(output, targets)
    assert case.passed and len(case.ties) == 3
    matches = losses.matches["one_to_many"]
    last = matches.select((matches.layer == 1) & (matches.image == 0))
    assert sorted(last.query.tolist()) == [1, 4]
    assert losses.matches["one_to_one"].query.tolist() == [4, 0, 4, 0]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("o2o", [[[2, 0]], [[0, 0]]]),  # another query
        ("o2o", [[[1, 0], [4, 0]], [[0, 0]]]),  # one-to-one: never both
        ("o2o", [[], [[0, 0]]]),  # a pair too few
        ("o2m", [[[1, 0], [2, 0]], [[0, 0]]]),  # a pair too many that is no tie
        ("o2m", [[[4, 0]], [[1, 0]]]),  # a tie beside a difference
        ("o2m", [[[1, 0]]]),  # an image too few
    ],
)
def test_a_difference_that_is_no_tie_fails(kind, wrong):
    criterion = build_criterion(
        config("c", **{"two_stage": None, "ms_detr.rule": "released", "ms_detr.threshold": 0.9})
    )
    right = [[[1, 0]], [[0, 0]]]
    recorded = [[k, right] for k in ("o2o", "o2o", "o2m", "o2m")]
    recorded[0 if kind == "o2o" else 2][1] = wrong
    case = conformance.Case()
    conformance.compare_matchings(case, "", criterion, tied_output(), TARGETS.to(torch.float64), recorded)
    assert not case.passed


def test_tied_tokens_may_change_places():
    """Unusable tokens all propose the same; which of them come first among the queries is nobody's decision."""
    made = torch.tensor([[1.0], [2.0], [2.0], [3.0]])
    assert comparison.same_but_for_ties([(3, 0), (1, 1), (2, 2)], [(3, 0), (2, 1), (1, 2)], made)
    assert not comparison.same_but_for_ties([(3, 0), (1, 1)], [(1, 0), (3, 1)], made)
    assert not comparison.same_but_for_ties([(3, 0)], [(9, 0)], made)
