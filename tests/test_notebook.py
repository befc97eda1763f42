import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from msdetr.config import parse_overrides
from msdetr.engine.run import mark_failed
from msdetr.errors import ConfigError, NotebookError, Terminated
from msdetr.notebook import check_parameters, parameters, project_root, run_notebook


def test_parameters_become_a_configuration(tmp_path):
    run = parameters(
        "shapes/ms-detr-c", data="data/mine", epochs="2", seed=3, overrides="train.lr=1e-4 ms_detr.variant=d"
    )
    assert (run.config.data.root, run.config.train.epochs, run.config.seed) == ("data/mine", 2.0, 3)
    assert run.config.train.lr == 1e-4 and run.config.ms_detr.variant == "d"
    assert str(run.run_dir) == "runs/shapes-ms-detr-c-seed3"
    named = parameters(overrides={"ms_detr.k": 4}, run_name="mine", runs=tmp_path)
    assert named.run_dir == tmp_path / "mine" and named.config.ms_detr.k == 4


def test_empty_values_mean_as_the_recipe_says():
    assert parameters(data="", epochs=None, device="", overrides="") == parameters()


@pytest.mark.fault("F69")
def test_unknown_parameters_suggest_the_nearest():
    with pytest.raises(ConfigError, match="parameter 'epoch': unknown; did you mean 'epochs'"):
        parameters(epoch=3)
    with pytest.raises(ConfigError, match="train.lrr: unknown parameter; did you mean 'train.lr'"):
        parameters(overrides="train.lrr=1")


@pytest.mark.fault("F70")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "many"}, "train.epochs: expected a number"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"seed": True}, "seed: expected a number"),
        ({"overrides": "train.gradient_checkpointing=yes"}, "expected true or false"),
        ({"overrides": "ms_detr.alpha=2"}, "ms_detr.alpha: must be at most 1"),
        ({"overrides": "lr"}, "not of the form name=value"),
        ({"recipe": 3}, "parameter 'recipe': expected text"),
        ({"run_name": "../elsewhere"}, "must be the name of a folder"),
    ],
)
def test_wrong_values(given, message):
    with pytest.raises(ConfigError, match=message):
        parameters(**given)


@pytest.mark.fault("F70")
def test_text_is_coerced_by_the_declared_type():
    config = parameters(overrides={"train.lr": "1e-4", "data.cache": "true", "model.num_queries": "50"}).config
    assert config.train.lr == 1e-4 and config.data.cache is True and config.model.num_queries == 50


@pytest.mark.fault("F71")
def test_unknown_recipe_lists_them():
    with pytest.raises(ConfigError, match="unknown recipe 'shapes/msdetr'; .*shapes/ms-detr-c"):
        parameters("shapes/msdetr")
    with pytest.raises(ConfigError, match="no such configuration file"):
        parameters("absent.yaml")


def test_overrides_of_every_form():
    assert parse_overrides("a.b=1 c='x y'") == {"a.b": "1", "c": "x y"}
    assert parse_overrides(["a=1=2"]) == {"a": "1=2"}
    assert parse_overrides(None) == parse_overrides("") == {}


@pytest.mark.fault("F69")
def test_variables_that_papermill_injected_are_checked():
    known = ["recipe", "epochs"]
    check_parameters({"In": ["", "recipe = 'x'", "other = 3"]}, known)
    check_parameters({}, known)
    check_parameters({"In": ["", "# Parameters\nPAPERMILL_INPUT_PATH = 'a.ipynb'\n"]}, known)
    with pytest.raises(ConfigError, match="'epoch': unknown; did you mean 'epochs'"):
        check_parameters({"In": ["", "# Parameters\nrecipe = 'x'\nepoch = 3\n"]}, known)


def test_the_project_is_found_from_anywhere_in_it(tmp_path, monkeypatch):
    project, deep = tmp_path / "course", tmp_path / "course" / "runs" / "deep"
    (project / "notebooks").mkdir(parents=True)
    (project / "notebooks" / "01_first.ipynb").touch()
    deep.mkdir(parents=True)
    for start in (project, project / "notebooks", deep):
        monkeypatch.chdir(start)
        assert project_root() == project
    monkeypatch.setenv("MSDETR_ROOT", str(deep))
    assert project_root() == deep
    monkeypatch.setenv("MSDETR_ROOT", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="MSDETR_ROOT: .*absent"):
        project_root()


def test_outside_a_project_it_is_the_source_tree_or_where_one_stands(tmp_path, monkeypatch):
    import msdetr.notebook

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()  # somebody's own, not the course's
    assert project_root() == Path(msdetr.notebook.__file__).parents[1]
    installed = tmp_path / "site-packages" / "msdetr" / "notebook.py"
    monkeypatch.setattr(msdetr.notebook, "__file__", str(installed))
    assert project_root() == tmp_path


@pytest.fixture
def notebook(tmp_path):
    """Writes a notebook with a parameters cell and these further cells."""

    def write(*cells):
        first = nbformat.v4.new_code_cell("epochs = 1\nwhere = ''", metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
        book.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        path = tmp_path / "book.ipynb"
        nbformat.write(book, path)
        return path

    return write


@pytest.fixture(autouse=True, scope="module")
def kernel(tmp_path_factory):
    """A kernel of this very interpreter, found before any other."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        yield


def test_a_notebook_runs_with_its_parameters(tmp_path, notebook, capfd):
    output = tmp_path / "out" / "done.ipynb"
    assert run_notebook(notebook("print(epochs * 2)"), output, {"epochs": 21}) == output
    assert "42" in nbformat.read(output, as_version=4).cells[-1].outputs[0].text
    said = capfd.readouterr()
    assert "42" in said.out and said.err == "", "nothing but what the cells say: no warning of the kernel"


def test_the_end_of_a_notebook_interrupts_nothing(tmp_path, notebook, capfd):
    """Its last request is answered before the kernel has done with it; an interrupt then would be reported as an error."""
    slowly = """
import time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]
async def answer_and_linger(*arguments):
    await answer(*arguments)
    time.sleep(0.5)
handlers["kernel_info_request"] = answer_and_linger
"""
    run_notebook(notebook(slowly), tmp_path / "done.ipynb", progress=False)
    assert capfd.readouterr().err == ""


def test_the_result_goes_to_the_project_wherever_one_stands(tmp_path, notebook, monkeypatch):
    path = notebook("print(1)")
    (tmp_path / "notebooks").mkdir()
    path.rename(tmp_path / "notebooks" / "01_first.ipynb")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert run_notebook("01_first.ipynb", progress=False) == tmp_path / "runs" / "01_first.ipynb"
    assert [path.name for path in Path().iterdir()] == ["01_first.ipynb"]


def test_a_folder_for_sockets_with_too_long_a_name_is_no_obstacle(tmp_path, notebook, monkeypatch):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert run_notebook(notebook("print(1)"), tmp_path / "out.ipynb", progress=False).exists()


@pytest.mark.fault("F69")
def test_a_notebook_without_such_a_parameter_does_not_start(tmp_path, notebook):
    with pytest.raises(ConfigError, match="parameter 'epoch': book.ipynb does not have it; did you mean 'epochs'"):
        run_notebook(notebook("1"), tmp_path / "out.ipynb", {"epoch": 3}, progress=False)
    assert not (tmp_path / "out.ipynb").exists()


def test_without_papermill_it_is_said_what_to_install(tmp_path, notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(ConfigError, match=r'pip install "msdetr\[notebooks\]"'):
        run_notebook(notebook("1"), tmp_path / "out.ipynb", progress=False)


@pytest.mark.parametrize("content", ["", "hello", "[]", '{"cells": 3, "metadata": {}, "nbformat": 4}'])
def test_a_file_that_is_no_notebook(tmp_path, content):
    (tmp_path / "bad.ipynb").write_text(content)
    with pytest.raises(NotebookError, match=r"bad\.ipynb: is not a Jupyter notebook"):
        run_notebook(tmp_path / "bad.ipynb", tmp_path / "out.ipynb", progress=False)


@pytest.mark.fault("F73")
def test_a_failing_cell_fails_the_run_and_keeps_what_ran(tmp_path, notebook):
    output = tmp_path / "run" / "out.ipynb"
    output.parent.mkdir()
    (output.parent / "config.yaml").touch()
    (output.parent / "results.json").write_text('{"status": "running", "steps": 3}')
    with pytest.raises(NotebookError, match="ZeroDivisionError: division by zero"):
        run_notebook(notebook("print('before')", "1 / 0", "print('after')"), output, progress=False)
    assert "before" in output.read_text()
    results = json.loads((output.parent / "results.json").read_text())
    assert results["status"] == "failed" and "ZeroDivisionError" in results["error"] and results["steps"] == 3


@pytest.mark.fault("F73")
@pytest.mark.parametrize(
    "results",
    [
        {"status": "finished", "metrics": {"AP": 0.4}},
        {"status": "terminated"},
        {"title": "a study", "sections": []},
    ],
)
def test_a_failing_cell_leaves_other_results_alone(tmp_path, results):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "results.json").write_text(json.dumps(results))
    mark_failed(tmp_path, "notebook: cell 1: ValueError")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results.json"]


@pytest.mark.fault("F74")
@pytest.mark.parametrize("leave", ["import sys; sys.exit()", "raise SystemExit(0)", "import os; os._exit(0)"])
def test_leaving_a_notebook_early_is_not_success(tmp_path, notebook, leave):
    with pytest.raises(NotebookError, match="failed in"):
        run_notebook(notebook("1", leave, "print('after')"), tmp_path / "out.ipynb", progress=False)


@pytest.mark.fault("F59")
@pytest.mark.parametrize(
    ("cell", "number", "status"),
    [
        ("wait()", signal.SIGTERM, 143),
        ("engine_stops()", signal.SIGTERM, 143),
        ("engine_stops()", signal.SIGINT, 130),
    ],
)
def test_signals_reach_the_kernel(tmp_path, notebook, cell, number, status):
    """Whether the cell that runs has a way to stop, as a training does, or not. A training finishes its step, saves, and says
    itself how it ended."""
    prepare = """
import pathlib, signal, sys, time
def wait():
    pathlib.Path(where).touch()
    time.sleep(900)
def engine_stops():
    came = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: came.append(number))
    pathlib.Path(where).touch()
    while not came:
        time.sleep(0.05)
    time.sleep(0.5)
    pathlib.Path(where + '.saved').touch()
    if came[0] == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(143)
"""
    output, flag = tmp_path / "run" / "out.ipynb", tmp_path / "flag"
    output.parent.mkdir()
    (output.parent / "results.json").write_text('{"status": "terminated"}')
    command = [sys.executable, "-m", "msdetr", "notebook", str(notebook(prepare, cell)), "--output", str(output)]
    process = subprocess.Popen([*command, "-p", f"where={flag}"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status and "run it again to go on" in said
    assert (
        "DeadKernel" not in said and "Kernel died" not in said and ("stopped by SIGTERM" in said) == (cell == "wait()")
    )
    assert flag.with_suffix(".saved").exists() == (cell == "engine_stops()")
    assert json.loads((output.parent / "results.json").read_text()) == {"status": "terminated"}


@pytest.mark.fault("F59")
@pytest.mark.parametrize(
    ("when", "number", "raised", "ran"),
    [
        ("before the kernel", signal.SIGTERM, Terminated, []),
        ("between cells", signal.SIGINT, KeyboardInterrupt, ["first"]),
        ("after the last cell", signal.SIGINT, KeyboardInterrupt, ["first", "second"]),
    ],
)
def test_signals_that_no_kernel_takes_stop_the_notebook(tmp_path, notebook, monkeypatch, when, number, raised, ran):
    """There is none yet, or it is idle: ipykernel ignores Ctrl-C then."""
    import papermill.execute
    from papermill.clientwrap import PapermillNotebookClient as Client

    owner, name, at = {
        "before the kernel": (papermill.execute, "parameterize_notebook", None),
        "between cells": (Client, "execute_cell", 3),
        "after the last cell": (Client, "set_widgets_metadata", None),
    }[when]
    call = getattr(owner, name)

    def sends(*arguments, **more):
        if at in (None, arguments[-1]):
            os.kill(os.getpid(), number)
        return call(*arguments, **more)

    monkeypatch.setattr(owner, name, sends)
    output = tmp_path / "out.ipynb"
    with pytest.raises(raised, match="run it again to go on"):
        run_notebook(notebook("print('first')", "print('second')"), output, {"epochs": 2}, progress=False)
    cells = nbformat.read(output, as_version=4).cells
    assert [word for word in ("first", "second") for cell in cells for said in cell.outputs if word in said.text] == ran
