"""Rows of cells: paired differences, intervals, tables and figures, and what becomes of what is undefined."""

import cells
import numpy as np
import pytest

from msdetr import recipes
from msdetr.analysis.cells import Cell
from msdetr.analysis.study import (
    bootstrap_interval,
    markdown_table,
    paired_difference,
    read_rows,
    student_interval,
    summary,
    varied,
)
from msdetr.errors import RunError
from msdetr.viz.study import difference_figure, sets_figure, setting_figure, study_figure


def cell(seed: int, ap: float | None, gap: float | None = 0.3) -> Cell:
    return cells.made_up(recipes.get("shapes/baseline").override({"seed": seed}), ap, gap)


ROWS = {
    "baseline": [cell(0, 0.30), cell(1, 0.32), cell(2, 0.31)],
    "ours | mine": [cell(2, 0.33), cell(0, 0.31), cell(3, 0.9)],
}


def test_differences_are_taken_seed_by_seed():
    found = paired_difference(ROWS["ours | mine"], ROWS["baseline"], "AP")
    assert found.seeds == (0, 2)
    np.testing.assert_allclose(found.values, [0.01, 0.02], atol=1e-12)
    assert found.mean == pytest.approx(0.015) and found.resampled == pytest.approx((0.01, 0.02))
    assert (found.low, found.high) == pytest.approx((0.015 - 12.706 * 0.005, 0.015 + 12.706 * 0.005), abs=1e-5)


def test_what_is_undefined_is_in_no_difference():
    found = paired_difference([cell(0, 0.3), cell(1, None)], ROWS["baseline"], "AP")
    assert found.seeds == (0,) and found.low is None and found.resampled is None
    assert paired_difference([cell(7, 0.3)], ROWS["baseline"], "AP").mean is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_an_interval_of_95_percent_holds_the_true_mean_in_95_of_100_cases(seeds):
    values = np.random.default_rng(seeds).normal(1.0, 0.5, (2000, seeds))
    low, high = np.array([student_interval(row) for row in values]).T
    assert ((low < 1) & (1 < high)).mean() == pytest.approx(0.95, abs=0.015)
    assert student_interval([0.2]) is None and student_interval([0.2, 0.2]) == (0.2, 0.2)


def test_the_bootstrap_holds_the_mean_repeats_and_covers():
    values = np.random.default_rng(0).normal(1.0, 0.5, (200, 12))
    intervals = np.array([bootstrap_interval(row) for row in values[:40]])
    assert ((intervals[:, 0] <= values[:40].mean(1)) & (values[:40].mean(1) <= intervals[:, 1])).all()
    assert bootstrap_interval(values[0]) == bootstrap_interval(values[0])
    assert ((intervals[:, 0] < 1) & (1 < intervals[:, 1])).mean() > 0.8
    assert bootstrap_interval([0.2]) is None and bootstrap_interval([0.2, 0.2]) == (0.2, 0.2)


def test_a_table_says_how_many_seeds_and_against_what():
    table = markdown_table(ROWS, "baseline")
    assert table.splitlines()[0].endswith("| AP minus baseline | 95 % interval | bootstrap |")
    assert r"| ours \| mine | 3 |" in table and "+1.5 (2) | -4.9 to +7.9 | +1.0 to +2.0" in table
    assert "undefined" in markdown_table({"a": [cell(0, 0.1, gap=None)]})


def test_a_summary_is_json_ready():
    from msdetr.files import json_text

    entries = summary(ROWS, "baseline")
    assert "minus the reference" not in entries[0] and entries[1]["minus the reference"]["AP"]["seeds"] == (0, 2)
    assert json_text(entries)


def test_a_seed_twice_is_an_error():
    with pytest.raises(RunError, match="baseline: a seed appears twice"):
        summary({"baseline": [cell(0, 0.3), cell(0, 0.3)]})


def test_figures_have_a_line_per_row():
    assert [t.get_text() for t in study_figure(ROWS).axes[0].get_yticklabels()] == [
        "baseline (3 seeds)",
        "ours | mine (3 seeds)",
    ]
    assert len(difference_figure(ROWS, "baseline").axes[0].get_yticklabels()) == 1


def test_sets_have_a_line_each_and_draw_the_pairs_they_have():
    alone = {"baseline": [cell(0, 0.2)], "ours | mine": [cell(1, 0.3)]}  # no seed in common
    figure = sets_figure({"fish": ROWS, "cells": alone}, "ours | mine", "baseline", ("AP", "top-5 IoU"))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["fish (2 seeds)", "cells (0 seeds)"]
    found = paired_difference(ROWS["ours | mine"], ROWS["baseline"], "AP")
    drawn = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in drawn] == [pytest.approx([100 * value for value in found.values])]
    assert figure.axes[0].get_xlim()[1] < 100 * found.high, "a wide band does not widen the axis"


def of_mine(seed: int, **changes) -> Cell:
    return cells.made_up(recipes.get("shapes/ms-detr-c").override({"seed": seed, **changes}), 0.4 + seed / 100)


def test_cells_that_differ_in_one_setting_are_put_together_by_its_value():
    both = {"ms_detr.k": 9, "train.lr": 5e-4}  # differs in two: a group of its own
    made = [of_mine(s, **{"ms_detr.k": k}) for k in (8, 2, 4) for s in (0, 1)] + [of_mine(0, **both), cell(0, 0.3)]
    groups = varied(made, "ms_detr.k")
    assert [{k: [c.seed for c in cells] for k, cells in group.items()} for group in groups] == [
        {2: [0, 1], 4: [0, 1], 8: [0, 1]},
        {9: [0]},
    ], "the baseline has no k"
    figure = setting_figure({"k": groups[0]}, {"k": 4})
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["2", "4", "8"]


def test_other_data_is_another_experiment_and_a_seed_with_two_results_says_nothing():
    def on(data, seed, k, ap):
        config = recipes.get("shapes/ms-detr-c").override({"seed": seed, "ms_detr.k": k, "data.root": data})
        return cells.made_up(config, ap)

    cats = [on("data/cats", 0, 4, 0.3), on("cats", 0, 8, 0.31)]  # where the folder lies does not matter
    dogs = [on("dogs", 0, 4, 0.8)]
    kept = [
        {k: [c.value("AP") for c in found] for k, found in group.items()} for group in varied(cats + dogs, "ms_detr.k")
    ]
    assert kept == [{4: [0.3], 8: [0.31]}, {4: [0.8]}]
    twice = varied([*cats, cats[0], on("cats", 0, 8, 0.5), on("cats", 1, 8, 0.4)], "ms_detr.k")
    assert twice == [{4: [cats[0]], 8: [on("cats", 1, 8, 0.4)]}], "the same result twice is one, two results are none"


def test_rows_are_read_from_a_folder_of_a_sweep_or_its_cells(tmp_path):
    assert read_rows(tmp_path, lambda cell, name: name) == {}
    (tmp_path / "cells").mkdir()
    for seed in (0, 1):
        cell(seed, 0.3).save(tmp_path / "cells" / f"baseline-s{seed}.json")
    for folder in (tmp_path, tmp_path / "cells"):
        rows = read_rows(folder, lambda cell, name: name.split("-")[0])
        assert {row: [c.seed for c in found] for row, found in rows.items()} == {"baseline": [0, 1]}
    (tmp_path / "cells" / "other.json").write_text("{}")
    with pytest.raises(RunError, match="other.json: not a cell"):
        read_rows(tmp_path, lambda cell, name: name)


def test_rows_have_the_words_in_which_the_names_of_cells_differ(tmp_path):
    assert read_rows(tmp_path) == {}
    for name in ("baseline-as-it-is-s1", "baseline-as-it-is-s0", "baseline-k-0.5-s10"):
        cell(0, 0.3).save(tmp_path / f"{name}.json")
    assert {row: len(found) for row, found in read_rows(tmp_path).items()} == {"as it is": 2, "k 0.5": 1}
    (tmp_path / "baseline-k-0.5-s10.json").unlink()
    assert list(read_rows(tmp_path)) == ["baseline as it is"], "a row alone differs in no word"
