"""Reading run directories, grouping seeds, comparing."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_directories import make_run

from msdetr.analysis.runs import (
    RunError,
    compare,
    differences,
    find_runs,
    group_runs,
    learning_curves,
    markdown_table,
    open_folder,
    read_run,
    read_runs,
    title,
)
from msdetr.config import RunConfig
from msdetr.engine import location


def test_groups_compares_and_says_what_differs(tmp_path):
    paths = [make_run(tmp_path / f"c{seed}", seed=seed, ap=0.5 + seed / 10) for seed in range(3)]
    paths.append(make_run(tmp_path / "base", variant="baseline", ap=0.4))
    groups = group_runs(read_runs(paths))
    assert {name: len(runs) for name, runs in groups.items()} == {"MS-DETR (c)": 3, "Deformable DETR++": 1}
    assert differences(groups) == {"ms_detr": {"MS-DETR (c)": True, "Deformable DETR++": False}}
    ours, base = compare(groups)
    assert ours.metrics["AP"].mean == pytest.approx(0.6) and ours.metrics["AP"].std == pytest.approx(0.1)
    assert base.metrics["AP"].std is None and ours.seeds == (0, 1, 2) and ours.seconds.mean == 121
    table = markdown_table([ours, base])
    assert "| MS-DETR (c) | 3 | 60.0 ± 10.0 |" in table and "| Deformable DETR++ | 1 | 40.0 |" in table
    json.dumps([row.to_dict() for row in (ours, base)], allow_nan=False)
    x, values = learning_curves(groups["MS-DETR (c)"])
    assert x.tolist() == [2, 4] and values.shape == (3, 2)
    np.testing.assert_allclose(values[:, 1], [0.5, 0.6, 0.7])


def test_configurations_of_one_title_are_told_apart(tmp_path):
    few = make_run(tmp_path / "few", **{"model.num_queries": 60})
    many = make_run(tmp_path / "many", **{"model.num_queries": 200})
    assert list(group_runs(read_runs([few, many]))) == ["MS-DETR (c), num_queries 60", "MS-DETR (c), num_queries 200"]


def test_what_most_configurations_have_goes_without_saying(tmp_path):
    common, other = {"loss.class_weight": 2.0}, {"loss.class_weight": 1.0}
    runs = [make_run(tmp_path / "c", **common), make_run(tmp_path / "d", **common, **{"ms_detr.variant": "d"})]
    runs.append(make_run(tmp_path / "released", **other))
    assert list(group_runs(read_runs(runs))) == ["MS-DETR (c)", "MS-DETR (d)", "MS-DETR (c), class_weight 1.0"]


def test_runs_on_other_data_are_other_experiments(tmp_path):
    cats = make_run(tmp_path / "cats", ap=0.3, **{"data.root": "data/cats"})
    more = make_run(tmp_path / "more", seed=1, ap=0.5, **{"data.root": "elsewhere/cats"})
    dogs = make_run(tmp_path / "dogs", ap=0.8, **{"data.root": "data/dogs"})
    groups = group_runs(read_runs([cats, more, dogs]))
    assert {name: len(runs) for name, runs in groups.items()} == {
        "MS-DETR (c), data cats": 2,
        "MS-DETR (c), data dogs": 1,
    }
    assert differences(groups)["data.root"] == dict(zip(groups, ("cats", "dogs")))


@pytest.mark.parametrize("role", ["train", "val"])
def test_data_of_one_name_is_told_apart_by_its_labels(tmp_path, role):
    runs = []
    for name, digest in (("a", "a" * 64), ("b", "b" * 64), ("c", "a" * 64)):
        runs.append(make_run(tmp_path / name, seed=int(name == "c"), **{"data.root": f"{name}/cats"}))
        record = location.record(runs[-1], RunConfig(), tmp_path) | {f"{role}_digest": digest}
        (runs[-1] / location.RECORD).write_text(json.dumps(record))
    groups = group_runs(read_runs(runs))
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "MS-DETR (c), data cats (aaaaaaaa)": ["a", "c"],
        "MS-DETR (c), data cats (bbbbbbbb)": ["b"],
    }


def test_methods_have_the_names_of_the_literature(tmp_path):
    methods = {
        "H-DETR + MS-DETR (c)": {"hybrid": True},
        "DINO + MS-DETR (c)": {"denoising": True},
        "DN-DETR + MS-DETR (c)": {"denoising.contrastive": False},
        "Stable-DINO + MS-DETR (c)": {"stable": True, "denoising": True},
        "DETA": {"deta": True, "ms_detr": None},
        "MS-DETR (c)": {},
        "Deformable DETR": {"ms_detr": None, "two_stage": None},
    }
    for name, changes in methods.items():
        assert title(RunConfig().override(changes)) == name
    baseline = make_run(tmp_path / "base", variant="baseline")
    hybrid = make_run(tmp_path / "hybrid", variant="baseline", hybrid=True)
    assert list(group_runs(read_runs([baseline, hybrid]))) == ["Deformable DETR++", "H-DETR"]
    alone = make_run(tmp_path / "alone", stable=True)
    noised = make_run(tmp_path / "noised", stable=True, denoising=True)
    assert list(group_runs(read_runs([alone, noised]))) == [
        "Stable-DINO + MS-DETR (c), no denoising",
        "Stable-DINO + MS-DETR (c), denoising",
    ]


def test_runs_in_folders_of_one_name_have_names_of_their_own(tmp_path):
    base, ours = make_run(tmp_path / "base" / "seed0", variant="baseline"), make_run(tmp_path / "ms" / "seed0")
    assert [run.name for run in read_runs([base, ours])] == ["base-seed0", "ms-seed0"]
    assert [run.name for run in read_runs([base])] == ["seed0"]


def test_what_does_not_change_the_result_does_not_split_a_group(tmp_path):
    one = make_run(tmp_path / "one", **{"data.workers": 0})
    two = make_run(tmp_path / "two", seed=1, **{"data.workers": 2, "train.log_every": 3, "train.tensorboard": True})
    assert len(group_runs(read_runs([one, two]))) == 1


@pytest.mark.fault("F80")
def test_undefined_is_said_never_a_number(tmp_path):
    (row,) = compare(group_runs(read_runs([make_run(tmp_path / "run")])))
    assert row.metrics["APl"].mean is None and row.metrics["APl"].undefined == 1
    assert "undefined" in markdown_table([row])


def test_unusable_directories_are_named(tmp_path):
    with pytest.raises(RunError, match="config.yaml"):
        read_run(tmp_path / "nothing")
    running = make_run(tmp_path / "running", status="running")
    with pytest.raises(RunError, match="status: running"):
        read_run(running)
    assert not read_run(running, finished=False).finished
    with pytest.raises(RunError, match="twice"):
        read_runs([running, tmp_path / "." / "running"])
    with pytest.raises(RunError, match="no run directories"):
        read_runs([])
    same = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    with pytest.raises(RunError, match="same configuration and seed"):
        group_runs(same)


def test_a_line_being_written_is_left_out_a_damaged_one_is_an_error(tmp_path):
    path = make_run(tmp_path / "run")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    assert len(read_run(path).steps) == 40
    with open(path / "metrics.jsonl", "a") as file:
        file.write('\n{"kind": "train"}\n')
    with pytest.raises(RunError, match="line 43"):
        read_run(path)


def test_runs_are_found_in_folders_and_text(tmp_path, monkeypatch):
    done = make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", seed=1, status="running")
    (tmp_path / "runs" / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_runs() == [done.relative_to(tmp_path)]
    assert find_runs("runs/a runs/b") == [Path("runs/a"), Path("runs/b")], "named runs are taken as they are"
    assert find_runs(finished=False) == [done.relative_to(tmp_path)], "b has no checkpoint yet"
    (tmp_path / "runs" / "b" / "checkpoints" / "step_00000010").mkdir(parents=True)
    assert find_runs(finished=False) == [Path("runs/a"), Path("runs/b")]
    make_run(tmp_path / "my runs" / "a")
    assert find_runs(str(tmp_path / "my runs")) == [tmp_path / "my runs" / "a"]
    for wrong, message in (("nowhere", "no such"), (tmp_path / "runs" / "demo", "neither"), (3, "expected run")):
        with pytest.raises(RunError, match=message):
            find_runs(wrong)


@pytest.mark.fault("F72")
def test_output_that_cannot_be_written_is_an_error(tmp_path):
    assert open_folder(tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="another output folder"):
        open_folder(tmp_path / "file" / "folder")
    with pytest.raises(RunError, match="expected a folder"):
        open_folder("")
