"""A run's data set is found from any folder, also after a move; another one in its place is not taken for it."""

import json
import os
import shutil

import pytest
import tiny

import msdetr
from msdetr.analysis.candidates import measure_run
from msdetr.analysis.specimen import Microscope
from msdetr.engine import location
from msdetr.engine.train import train
from msdetr.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """A project with data/shapes and a run, trained from the project's folder with relative paths."""
    project = tmp_path_factory.mktemp("home") / "project"
    shutil.copytree(shapes, project / "data" / "shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        train(tiny.config("data/shapes", train__epochs=1), "runs/a", device="cpu", progress=False)
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of that project whose run believes to have been trained there; the test stands elsewhere."""
    copy = shutil.copytree(trained, tmp_path / "project")
    record = copy / "runs" / "a" / "data.json"
    text = json.loads(record.read_text())
    assert text["root"] == "data/shapes" and text["absolute"] == str(trained / "data" / "shapes")
    record.write_text(json.dumps(text | {"absolute": str(copy / "data" / "shapes")}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return copy


def test_everything_that_reads_a_run_finds_its_data_from_anywhere(project):
    run, data = project / "runs" / "a", project / "data" / "shapes"
    assert msdetr.evaluate(run, limit=2, progress=False).num_images == 2
    assert measure_run(run, limit=2).result().objects > 0
    assert Microscope(os.path.relpath(run)).dataset.path(0).is_relative_to(data)
    [checkpoint] = (run / "checkpoints").glob("step_*")
    assert location.find(checkpoint) == data, "by one of its checkpoints as well"
    assert not any(project.parent.joinpath("elsewhere").iterdir()), "and nothing is left where one stands"


def test_a_moved_project_and_a_copied_run(project, tmp_path):
    shutil.copytree(project / "runs" / "a", tmp_path / "far" / "away" / "a")
    assert location.find(tmp_path / "far" / "away" / "a") == project / "data" / "shapes"
    project.rename(tmp_path / "renamed")
    assert location.find(tmp_path / "renamed" / "runs" / "a") == tmp_path / "renamed" / "data" / "shapes"
    with pytest.raises(DataError, match="neither at .*far/data/shapes .* nor at .*project/data/shapes .*--data"):
        location.find(tmp_path / "far" / "away" / "a")


def test_symbolic_links(project, tmp_path):
    (tmp_path / "latest").symlink_to(project / "runs" / "a")
    assert location.find(tmp_path / "latest") == project / "data" / "shapes"
    shutil.move(project / "runs", tmp_path / "disk")
    (project / "runs").symlink_to(tmp_path / "disk")
    shutil.move(project / "data", tmp_path / "other")
    (project / "data").symlink_to(tmp_path / "other")
    assert location.find(project / "runs" / "a").samefile(tmp_path / "other" / "shapes")
    assert location.find(tmp_path / "disk" / "a").samefile(tmp_path / "other" / "shapes")


def test_another_data_set_in_its_place_is_not_taken_for_it(project, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(project, other)
    annotations = other / "data" / "shapes" / "annotations" / "instances_val.json"
    annotations.write_text(annotations.read_text() + "\n")
    run = other / "runs" / "a"
    assert location.find(run) == project / "data" / "shapes", "the other place has the right one"
    shutil.rmtree(project / "data")
    with pytest.raises(DataError, match="other/data/shapes is not as it was .*--data"):
        msdetr.evaluate(run, progress=False)
    result = msdetr.evaluate(run, other / "data" / "shapes", progress=False)
    assert result.num_images == 6, "to use it all the same, one says so"


def test_without_a_record_the_configuration_counts_or_a_person_is_asked(project, tmp_path, monkeypatch):
    [checkpoint] = (project / "runs" / "a" / "checkpoints").glob("step_*")
    alone = shutil.copytree(checkpoint, tmp_path / "elsewhere" / checkpoint.name)
    with pytest.raises(DataError, match="data.root = 'data/shapes'.*--data"):
        msdetr.evaluate(alone, progress=False)
    monkeypatch.chdir(project)
    assert msdetr.evaluate(alone, limit=1, progress=False).num_images == 1


@pytest.mark.parametrize("text", ["", "[]", '{"root": 3}', "\0"])
def test_a_damaged_record_is_an_error(project, text):
    (project / "runs" / "a" / "data.json").write_text(text)
    with pytest.raises(DataError, match="data.json: cannot be read; .*--data"):
        location.find(project / "runs" / "a")


def test_a_run_goes_on_with_its_data_from_another_folder(project):
    run = project / "runs" / "a"
    wanted = tiny.config("data/shapes", train__epochs=2)
    results = train(wanted, run, device="cpu", progress=False, allow_config_change=True)
    assert results["status"] == "finished" and results["steps"] == 8
    assert location.find(run) == project / "data" / "shapes"
    assert not any(project.parent.joinpath("elsewhere").iterdir()), "no second data set was generated"
    shutil.rmtree(project / "data")
    located = location.resumed(run, wanted)
    assert located.data.root == str(project / "data" / "shapes"), "a generated set is made again where it was"
    with pytest.raises(DataError, match="neither"):
        location.resumed(run, wanted.override({"data.generate": "none"}))
    assert location.resumed(run, wanted.override({"data.root": "mine"})).data.root == "mine", "a person's word counts"


def test_images_of_one_name_in_several_folders_are_told_apart(project):
    microscope = Microscope(project / "runs" / "a", device="cpu")
    places = ["cam1/0001.png", "cam2/0001.png", "cam2/0002.png"]

    class Set:
        image_ids = (1, 2, 3)

        def path(self, index):
            return project / "data" / "photos" / places[index]

    microscope.dataset = Set()
    for index, name in enumerate(places):
        assert microscope.index(name) == microscope.index(Set().path(index)) == index
    assert microscope.index("/elsewhere/0002.png") == 2, "of one name alone the folder does not matter"
    with pytest.raises(ConfigError, match=r"image '0001.png': 2 images .*cam1.*cam2.*name one of them with its folder"):
        microscope.index("0001.png")
