"""Sweeps: what a study file may say, what is trained, and that finished cells are trained once."""

import errno
import fcntl
import json
import random
import shutil
import sys
from dataclasses import replace

import cells
import pytest
import yaml
from sweep_kills import TINY, disturb, same_result, tiny_study, undisturbed

from msdetr.analysis.cells import Cell
from msdetr.cli import main
from msdetr.data import shapes
from msdetr.engine.location import label_digests
from msdetr.errors import ConfigError, RunError
from msdetr.lock import FileLock
from msdetr.sweep import CellInUse, load_study, run_cell, run_study, write_report

GOOD = {"recipes": ["shapes/baseline", "shapes/ms-detr-c"], "seeds": [0, 1]}


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (GOOD | changes).items() if value is not None}))
    return path


def keep_all(study, out, ap=lambda cell: 0.3, labels=None):
    (out / "cells").mkdir(parents=True)
    for cell in study.cells():
        replace(cells.made_up(cell.config, ap(cell)), labels=labels or {}).save(out / "cells" / f"{cell.name}.json")


def test_cells_are_recipes_by_data_by_changes_by_seeds(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    changes = {"as it is": None, "longer": {"train.epochs": 12}}
    study = load_study(written(tmp_path, data=["one", "two"], changes=changes, settings={"train.lr": 5e-4}))
    cells = study.cells()
    assert len(cells) == 2 * 2 * 2 * 2 and [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    assert cells[1].name == "shapes-baseline-one-longer-s0" and cells[1].config.train.epochs == 12
    assert {cell.config.train.lr for cell in cells} == {5e-4}
    assert cells[0].config.data.root == str(tmp_path / "one")


@pytest.mark.fault("F140")
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"recipes": None}, "recipes: missing"),
        ({"recipes": ["shapes/ms-detr-e"]}, "shapes/ms-detr-"),
        ({"recipes": ["shapes/baseline", "shapes/baseline"]}, "given twice"),
        ({"recipes": {"a": "shapes/baseline", "b": "shapes/baseline"}}, "one configuration"),
        ({"recipes": {"a b": "shapes/baseline", "a/b": "shapes/ms-detr-c"}}, "another name"),
        ({"recipes": {"a": "mine.yaml"}}, "mine.yaml"),
        ({"recipes": {"a": 3}}, "expected text, got 3"),
        ({"recipe": ["shapes/baseline"]}, "'recipe': unknown; did you mean 'recipes'"),
        ({"seeds": 3}, "expected a list"),
        ({"seeds": [0, -1]}, "whole numbers"),
        ({"seeds": [True]}, "whole numbers"),
        ({"seeds": [1, 1]}, "one twice"),
        ({"seeds": []}, "seeds: missing"),
        ({"data": ["nowhere"]}, "there is no folder"),
        ({"settings": {"train.epoch": 2}}, "train.epochs"),
        ({"settings": {"train.epochs": "many"}}, "train.epochs"),
        ({"settings": [1]}, "expected settings"),
        ({"settings": {"seed": 3}}, "belongs under 'seeds'"),
        ({"changes": {"x": {"data.root": "y"}}}, "belongs under 'data'"),
        ({"changes": {"x": 3}}, "changes: x: expected settings"),
        ({"changes": ["x"]}, "expected names"),
        ({"reference": "shapes/baselin"}, "did you mean 'shapes/baseline'"),
        ({"run": "both"}, "none of notebook, train"),
        ({"measures": ["AP500"]}, "did you mean 'AP50'"),
        ({"measures": "AP"}, "expected a list"),
        ({"title": 3}, "title: expected text"),
    ],
)
def test_a_study_that_cannot_be_meant_is_an_error_that_names_the_entry(tmp_path, changes, names):
    with pytest.raises(ConfigError) as error:
        load_study(written(tmp_path, **changes))
    assert names in str(error.value) and "study.yaml" in str(error.value)


@pytest.mark.fault("F140")
@pytest.mark.parametrize("content", ["", "- 1", "recipes: [", "recipes: [a]\nrecipes: [b]\n"])
def test_a_file_that_is_no_study_is_an_error(tmp_path, content):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        load_study(tmp_path / "study.yaml")
    with pytest.raises(ConfigError, match="no such study"):
        load_study(tmp_path / "none.yaml")


@pytest.mark.fault("F141")
def test_a_finished_cell_of_other_settings_is_neither_used_nor_replaced(tmp_path):
    study = load_study(written(tmp_path))
    keep_all(study, tmp_path / "out")
    other = load_study(written(tmp_path, settings={"train.epochs": 3}))
    with pytest.raises(RunError, match=r"train\.epochs was 6\.0, is 3\.0"):
        run_study(other, tmp_path / "out")
    with pytest.raises(RunError, match="other settings"):
        write_report(other, tmp_path / "out")


@pytest.mark.fault("F141")
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_finished_cell_of_other_data_under_the_same_name_is_neither_used_nor_replaced(tmp_path, split):
    shapes.generate(tmp_path / "mine", 2, 1)
    study = load_study(written(tmp_path, data=["mine"], reference="shapes/baseline"))
    labels = label_digests(study.cells()[0].config.data, tmp_path / "mine")
    keep_all(study, tmp_path / "out", labels=labels)
    assert set(labels) == {"train", "val"} and run_study(study, tmp_path / "out").finished == 4
    annotations = tmp_path / "mine" / "annotations" / f"instances_{split}.json"
    annotations.write_text(annotations.read_text() + "\n")
    for use in (run_study, write_report):
        with pytest.raises(RunError, match=rf"s0\.json: trained on other data than .*mine has now .*{split} split"):
            use(study, tmp_path / "out")
    shutil.rmtree(tmp_path / "mine")
    assert write_report(study, tmp_path / "out"), "where the data are gone, what is kept is compared with itself"
    first = tmp_path / "out" / "cells" / f"{study.cells()[0].name}.json"
    first.write_text(first.read_text().replace(labels[split], "0" * 64))
    with pytest.raises(RunError, match=f"trained on different data of one name .*{split} split"):
        write_report(study, tmp_path / "out")


@pytest.mark.parametrize("given", [None, 3, 4])
def test_a_cell_has_as_many_classes_as_its_data_unless_the_study_says_otherwise(tmp_path, given):
    """photos/ leaves them to the data, so that a finished cell has another number than the recipe."""
    settings = {} if given is None else {"model.num_classes": given}
    study = load_study(written(tmp_path, recipes=["photos/baseline"], seeds=[0], settings=settings))
    (cell,) = study.cells()
    (tmp_path / "cells").mkdir()
    cells.made_up(cell.config.override({"model.num_classes": 3}), 0.3).save(tmp_path / "cells" / f"{cell.name}.json")
    if given in (None, 3):
        assert run_study(study, tmp_path).finished == 1
        assert write_report(study, tmp_path)
    else:
        with pytest.raises(RunError, match=r"model\.num_classes was 3, is 4"):
            run_study(study, tmp_path)


def test_a_finished_study_starts_no_process_and_is_reported(tmp_path, capsys, monkeypatch):
    study = load_study(written(tmp_path, reference="shapes/baseline", title="Ours against theirs"))
    keep_all(study, tmp_path / "out", lambda cell: 0.3 + 0.02 * ("ms-detr" in cell.recipe) + 0.01 * cell.seed)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert main(["sweep", str(study.path), "--out", str(tmp_path / "out")]) == 0
    assert "+2.0 (2) | +2.0 to +2.0 | +2.0 to +2.0" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["title"] == "Ours against theirs" and len(found["sections"][0]["rows"]) == 2
    for figure in ("results.png", "results-curves.png", "results-differences.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 1000


def test_changes_of_one_recipe_are_compared_with_the_change_that_is_the_reference(tmp_path):
    changes = {"as it is": {}, "longer": {"train.epochs": 12}}
    study = load_study(written(tmp_path, changes=changes, reference="as it is"))
    keep_all(study, tmp_path / "out")
    write_report(study, tmp_path / "out")
    sections = json.loads((tmp_path / "out" / "results.json").read_text())["sections"]
    assert [section["section"] for section in sections] == ["shapes/baseline", "shapes/ms-detr-c"]
    assert [row["name"] for row in sections[0]["rows"]] == ["as it is", "longer"]


def test_a_recipe_on_several_sets_is_shown_on_all_of_them_at_once(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    study = load_study(written(tmp_path, data=["one", "two"], reference="shapes/baseline"))
    keep_all(study, tmp_path / "out")
    figures = {path.name for path in write_report(study, tmp_path / "out") if path.suffix == ".png"}
    assert "results-shapes-ms-detr-c-everywhere.png" in figures and len(figures) == 1 + 2 * 3
    report = (tmp_path / "out" / "results.md").read_text()
    assert report.index("everywhere.png") < report.index("## one") < report.index("## two")


def test_a_report_needs_no_data(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    study, command = load_study(written(tmp_path, data=["mine"])), ["sweep", str(tmp_path / "study.yaml"), "--out"]
    keep_all(study, tmp_path / "out")
    (tmp_path / "mine").rmdir()
    assert main([*command, str(tmp_path / "out"), "--report"]) == 0 and (tmp_path / "out" / "results.md").is_file()
    assert main([*command, str(tmp_path / "out")]) == 1 and "there is no folder" in capsys.readouterr().err


def test_nothing_is_reported_of_nothing(tmp_path, capsys):
    path = written(tmp_path)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--report"]) == 0
    assert "no cell" in capsys.readouterr().out and not list((tmp_path / "out").glob("results*"))
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--only", "shapes-baseline-s2"]) == 1
    assert "did you mean 'shapes-baseline-s" in capsys.readouterr().err


def test_a_cell_is_trained_once_measured_and_held_by_one(tmp_path):
    study = load_study(tiny_study(tmp_path, [0], settings=TINY | {"train.epochs": 0.5}))
    cell, out = study.cells()[1], tmp_path / "out"
    found = run_cell(study, cell, out, "cpu", progress=False)
    file = out / "cells" / f"{cell.name}.json"
    assert found.steps == 2 and found.seed == 0 and found.differs_from(cell.config) == {}
    assert found.labels == label_digests(cell.config.data, cell.folder) and all(found.labels.values())
    assert found.parameters["inference"] < found.parameters["training"] and str(tmp_path) not in file.read_text()
    metrics = (out / "runs" / cell.name / "metrics.jsonl").read_bytes()
    assert run_cell(study, cell, out, "cpu") == Cell.load(file)
    assert (out / "runs" / cell.name / "metrics.jsonl").read_bytes() == metrics
    lock = FileLock(out / "runs" / cell.name / ".cell.lock")
    with pytest.raises(CellInUse) as error:
        run_cell(study, cell, out, "cpu")
    lock.close()
    assert error.value.code == 75


def test_a_drive_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tiny_study(tmp_path, [0])
    cell = load_study(path).cells()[0].name
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--only", cell, "--device", "cpu"]) == 1
    assert f"{cell}/.cell.lock: cannot be locked: No locks available" in capsys.readouterr().err


@pytest.mark.fault("F142")
def test_a_cell_that_fails_stops_no_other_and_is_named(tmp_path, capsys):
    path = tiny_study(tmp_path, [0], changes={"whole": {}, "broken": {"data.val_split": "none"}})
    study, out = load_study(path), tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    for cell in study.cells():
        if cell.change == "whole" or cell.recipe == "baseline":
            cells.made_up(cell.config, 0.3).save(out / "cells" / f"{cell.name}.json")
    assert main(["sweep", str(path), "--out", str(out), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "3 of 4 cells are finished, 1 failed" in said.err and "ms-detr-c-tiny-broken-s0" in said.err
    assert "none" in said.err.split("failed:")[-1] and "log.txt" in said.err and "| baseline |" in said.out


def test_cells_that_wait_for_a_slot_are_left_alone(tmp_path, monkeypatch):
    """Asking who holds them all the time would be many files on a network drive."""
    import msdetr.sweep.run as sweep

    study, asked = load_study(tiny_study(tmp_path, [0])), []
    monkeypatch.setattr(sweep, "_is_held", lambda path: asked.append(path.parent.name))

    class Process:
        """Is done when it is asked for the fifth time."""

        def __init__(self, study, cell, out, *_):
            self.cell, self.out, self.polls = cell, out, 0

        def poll(self):
            self.polls += 1
            if self.polls < 5:
                return None
            cells.made_up(self.cell.config, 0.3).save(self.out / "cells" / f"{self.cell.name}.json")
            return 0

        def where(self):
            return "starts"

    monkeypatch.setattr(sweep, "_Process", Process)
    assert run_study(study, tmp_path / "out", jobs=1, device="cpu").finished == 2
    assert asked == [cell.name for cell in study.cells()]


@pytest.mark.slow
@pytest.mark.fault("F143")
@pytest.mark.parametrize("run", ["train", "notebook"])
def test_a_sweep_that_is_killed_again_and_again_repeats_and_loses_nothing(tmp_path, run):
    study = tiny_study(tmp_path, [0], run)
    (tmp_path / "out").mkdir()
    found = disturb(study, tmp_path / "out", kills=3, moments=random.Random(0))
    assert found["repeated"] == [] and found["lost"] == []
    name = found["cells"][0]
    assert same_result(
        undisturbed(study, tmp_path / "alone", name), Cell.load(tmp_path / "out" / "cells" / f"{name}.json")
    )


@pytest.mark.slow
def test_a_cluster_trains_the_cells_and_what_a_job_says_of_its_failure_is_told(tmp_path, capsys):
    pytest.importorskip("submitit", reason="no submitit: pip install msdetr[cluster]")
    path = tiny_study(tmp_path, [0], changes={"whole": {"train.epochs": 0.25}, "broken": {"data.val_split": "none"}})
    out, study = tmp_path / "out", load_study(path)
    (out / "cells").mkdir(parents=True)
    for cell in study.cells():
        if cell.recipe == "baseline":
            cells.made_up(cell.config, 0.3).save(out / "cells" / f"{cell.name}.json")
    assert main(["sweep", str(path), "--out", str(out), "--device", "cpu", "--cluster", "local"]) == 1
    said = capsys.readouterr()
    assert "3 of 4 cells are finished, 1 failed" in said.err and "ms-detr-c-tiny-broken-s0" in said.err
    assert Cell.load(out / "cells" / "ms-detr-c-tiny-whole-s0.json").steps == 1


def test_a_study_of_notebooks_needs_papermill_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    study, out = written(tmp_path), tmp_path / "out"
    assert main(["sweep", str(study), "--out", str(out)]) == 1
    assert 'pip install "msdetr[notebooks]"' in capsys.readouterr().err and not (out / "runs").exists()
    keep_all(load_study(study), tmp_path / "finished")
    assert main(["sweep", str(study), "--out", str(tmp_path / "finished"), "--quiet"]) == 0


def test_settings_of_a_cluster_that_cannot_be_are_errors(tmp_path, capsys):
    pytest.importorskip("submitit", reason="no submitit: pip install msdetr[cluster]")
    command = ["sweep", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*command, "--cluster", "pbs"]) == 1 and main([*command, "--job", "timeout_min=3"]) == 1
    assert main([*command, "--cluster", "local", "--job", "timeout=3"]) == 1
    said = capsys.readouterr().err
    assert "none of slurm, local" in said and "no --cluster" in said and "timeout" in said.splitlines()[-1]
