"""The course: what every committed notebook promises, and a run of each of them, small, in the order of the course."""

import ast
import functools
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import symtable
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from browser import browser_page, jupyter_lab, needs_browser, open_notebook, run_all_cells
from small import SMALL

from msdetr import recipes
from msdetr.analysis.ladder import ladder_recipes
from msdetr.analysis.look import training_output
from msdetr.analysis.specimen import Specimen
from msdetr.analysis.stability import MatchRecorder
from msdetr.errors import ConfigError
from msdetr.methods import build_detector, matching_rules
from msdetr.structures import ImageBatch, Targets
from msdetr.viz import algorithm

nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install msdetr[notebooks]")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
COURSE = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
NAMES = [path.stem for path in COURSE]
HEADER = ("Goal", "You need", "Time, hardware", "Previous / next")
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|home|tmp|Users|opt|var|mnt)/\w|[A-Z]:\\\\")
PROGRESS = re.compile(r"(\w[\w -]*: )?\w+ \d+/\d+ \([\d:]+(, [\d:]+ left)?\)|epoch [\d.]+, step \d+: ")
NOISE = re.compile(r"\w*Warning\b|Traceback|\d%\|", re.ASCII)


@functools.cache
def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book):
    return [output for cell in code_cells(book) for output in cell.outputs]


def text_of(output):
    """All that an output says in words: pictures are left out."""
    said = [output.get("text", ""), *output.get("traceback", [])]
    said += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(map(str, said))


def tagged(book, tag):
    return [cell for cell in book.cells if tag in cell.metadata.get("tags", [])]


def noise(book):
    """What an executed notebook should not show: errors, warnings, and stderr other than progress in plain lines."""
    found = []
    for output in outputs(book):
        if output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        elif output.output_type == "stream" and output.name == "stderr":
            found += [line for line in output.text.splitlines() if line.strip() and not PROGRESS.match(line)]
        if match := NOISE.search(text_of(output)):
            found.append(match.group())
    return found


def assigned(source):
    return [target.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]


def test_there_is_a_course():
    assert NAMES, f"no notebooks in {FOLDER}"
    numbers = [name[:2] for name in NAMES]
    assert len(set(numbers)) == len(numbers), "two notebooks with one number"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_valid_small_notebook(name):
    nbformat.validate(read(name))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
    assert read(name).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_executed_from_top_to_bottom(name):
    book = read(name)
    counts = [cell.execution_count for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1)), "restart the kernel, run all cells, save"
    assert not tagged(book, "injected-parameters"), "executed with other parameters than its own"
    assert any(kind.startswith("image/") for output in outputs(book) for kind in output.get("data", {})), "no picture"
    assert any(text_of(output).strip() for output in outputs(book))


@pytest.mark.parametrize("name", NAMES)
def test_its_outputs_are_clean(name):
    book = read(name)
    assert noise(book) == []
    said = [cell.source for cell in book.cells] + [text_of(output) for output in outputs(book)]
    said += [json.dumps(cell.metadata) for cell in book.cells] + [json.dumps(book.metadata)]
    for text in said:
        match = MACHINE_PATH.search(text)
        assert match is None, f"a machine's path: {text[max(0, match.start() - 40) : match.end() + 40]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_are_short(name):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(read(name))]
    assert max(lengths) <= 25
    assert statistics.median(lengths) <= 8


@pytest.mark.parametrize("name", NAMES)
def test_its_code_fits_the_page(name):
    """JupyterLab cuts longer lines at a notebook's usual width."""
    exercises = tagged(read(name), "exercise")
    cells = [cell for cell in code_cells(read(name)) if cell not in exercises]
    assert [line for cell in cells for line in cell.source.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_tagged_and_checked(name):
    book = read(name)
    cells = tagged(book, "parameters")
    checked = [
        ast.literal_eval(call.args[1])
        for cell in code_cells(book)
        if "check_parameters(" in cell.source
        for call in ast.walk(ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check_parameters"
    ]
    assert len(cells) == len(checked) <= 1
    if cells:
        assert set(assigned(cells[0].source)) == set(checked[0])


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_what_a_reader_needs(name):
    head = read(name).cells[0].source
    assert head.startswith(f"# {name[:2]} · ")
    for row in HEADER:
        assert re.search(rf"^\| \*\*{re.escape(row)}\*\* \| \S.* \|$", head, re.MULTILINE), f"no row {row}"
    place = NAMES.index(name)
    row = re.search(r"^\| \*\*Previous / next\*\* \|(.*)\|$", head, re.MULTILINE)[1]
    neighbours = [other for other in (place - 1, place + 1) if 0 <= other < len(NAMES)]
    assert re.findall(r"\]\(([\w]+)\.ipynb\)", row) == [NAMES[other] for other in neighbours]


@pytest.mark.parametrize("name", NAMES)
def test_its_links_lead_somewhere(name):
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$", "", cell.source, flags=re.DOTALL)
            for link in re.findall(r"\]\(([^)\s]+)\)", prose):
                if not link.startswith(("http://", "https://", "#")):
                    assert (FOLDER / link.split("#")[0]).exists(), f"{link} leads nowhere"


def plain(cell):
    """A code cell's source without IPython's own lines."""
    return re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def global_names(source):
    """(names bound, names read before) of a cell at its top level. What a function reads counts where it is defined."""
    bound, needed = set(), set()
    for statement in ast.parse(source).body:
        top = symtable.symtable(ast.unparse(statement), "cell", "exec")
        inside, tables = set(), top.get_children()
        while tables:
            table = tables.pop()
            inside |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
            tables += table.get_children()
        binds = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        reads = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()} | inside
        blocks = isinstance(statement, (ast.For, ast.With, ast.If, ast.Try))
        needed |= reads - bound - (binds if blocks else set())
        bound |= binds
    return bound, needed


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_can_be_run_again(name):
    """No cell needs a name that it or a later cell binds to something else; parameters are what a person gives."""
    book = read(name)
    exempt = {parameter for cell in tagged(book, "parameters") for parameter in assigned(cell.source)}
    exercises = tagged(book, "exercise")
    cells = [global_names(plain(cell)) for cell in code_cells(book) if cell not in exercises]
    for number, (_, needed) in enumerate(cells):
        before = set().union(*(bound for bound, _ in cells[:number]))
        after = set().union(*(bound for bound, _ in cells[number:]))
        assert needed & before & after <= exempt, f"code cell {number + 1}"


@pytest.mark.parametrize("name", NAMES)
def test_papermill_is_given_a_folder_that_exists(name):
    text = "\n".join(cell.source for cell in read(name).cells)
    for command in re.finditer(r"papermill \S+\.ipynb (\S+)/\S+\.ipynb", text):
        assert f"mkdir -p {command[1]}" in text[: command.start()], command[0]


def run_cells(name, space, start="", stop=None, **changes):
    """Executes a notebook's code cells in ``space``, without a kernel, from the one that holds ``start`` to before the one that
    holds ``stop``. changes: values for names, put in where a cell assigns them."""
    going = not start
    for cell in code_cells(read(name)):
        going = going or start in cell.source
        if stop is not None and stop in cell.source:
            break
        source = plain(cell)
        for changed, value in changes.items():
            source = re.sub(rf"^{changed} = \S+", f"{changed} = {value!r}", source, flags=re.MULTILINE)
        if going:
            exec(source, space)  # noqa: S102, the notebook's own code


@pytest.mark.parametrize("change", [{"tau": 0.55}, {"tau": 0.6}, {"k": 2}, {"alpha": 0.5}], ids=str)
def test_03_can_be_shown_with_other_settings(monkeypatch, change):
    for drawn in [name for name in vars(algorithm) if name.endswith("_figure")]:
        monkeypatch.setattr(algorithm, drawn, lambda *_, **__: None)
    space = {}
    run_cells("03_one_to_many_matching", space, stop="simulated_scenes()", **change)
    assert {name: space[name] for name in change} == change
    assert space["found"] == space["one_to_many"](space["scores"], space["tau"], space["k"])


def microscope(tmp_path, monkeypatch, specimen):
    """Names that the cells of notebook 08 find after its own have looked at an image."""
    monkeypatch.chdir(tmp_path)
    space = {"run": "runs", "image": None, "output": str(tmp_path / "out"), "device": "cpu"}
    run_cells("08_matching_microscope", space, start="import base64", stop="toy = ")
    return space | {"specimen": specimen, "found": specimen.explain()}


def test_08_takes_a_detector_whose_decoder_is_not_matched_one_to_one(tmp_path, monkeypatch):
    config = recipes.get("shapes/deta").override(SMALL | {"model.num_queries": 20})
    torch.manual_seed(0)
    detector, batch = build_detector(config), ImageBatch.from_images([torch.randn(3, 64, 64)])
    boxes = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.7, 0.7, 0.3, 0.3], [0.99, 0.99, 0.001, 0.001]])
    targets = Targets.from_list([torch.tensor([0, 1, 2])], [boxes])
    names = tuple(f"class {i}" for i in range(config.model.num_classes))
    output = training_output(detector, batch, targets)
    specimen = Specimen(output, targets, matching_rules(config), class_names=names, config=config)
    space = microscope(tmp_path, monkeypatch, specimen)
    assert sorted(len(space["found"].one_to_one.serving(target)) for target in range(3)) != [1, 1, 1]
    run_cells("08_matching_microscope", space, start="outcomes = found", stop="explorer = ")
    assert space["now"].status is not None


def test_08_asks_for_another_image_where_there_is_no_object(tmp_path, monkeypatch):
    specimen = Specimen.from_arrays([[0.5, 0.5, 0.2, 0.2]] * 6, [[0.5]] * 6, [], [], name="empty.png")
    space = microscope(tmp_path, monkeypatch, specimen)
    with pytest.raises(ConfigError, match=r"image: empty\.png has no objects"):
        run_cells("08_matching_microscope", space, start="outcomes = found", stop="explorer = ")


def test_09_refuses_a_folder_that_has_not_cocos_layout(tmp_path, monkeypatch):
    (tmp_path / "other" / "annotations").mkdir(parents=True)
    (tmp_path / "other" / "annotations" / "instances_test.json").touch()
    monkeypatch.chdir(tmp_path)
    for data in ("mistyped", "other"):
        space = {"data": str(tmp_path / data), "limit": 0, "steps": 1, "output": str(tmp_path / "out"), "device": "cpu"}
        with pytest.raises(
            ConfigError, match=rf"data: .*{data} .*annotations/instances_train\*\.json and .*val\*\.json"
        ):
            run_cells("09_coco", space, start="import json", stop="report = check")


# ---------------------------------------------------------------- all of them, executed

TINY = SMALL | {
    "model.ffn_dim": 64,
    "model.num_queries": 20,
    "data.num_train": 12,
    "data.num_val": 4,
    "train.batch_size": 2,
    "train.micro_batch": 2,
    "train.log_every": 1,
    "train.eval_every": 0.5,
}


SHOWN = re.compile(r"```\n(mkdir.*?)```", re.DOTALL)  # the command line in notebook 05


def clone(folder):
    for part in ("msdetr", "notebooks", "data/samples"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what a clone holds: package, notebooks and samples; its kernels import this package."""
    pytest.importorskip("papermill", reason="no papermill: pip install msdetr[notebooks]")
    pytest.importorskip("ipykernel", reason="no ipykernel: pip install msdetr[notebooks]")
    folder = clone(tmp_path_factory.mktemp("clone"))
    spec = tmp_path_factory.mktemp("jupyter") / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(spec.parent.parent))
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("OMP_NUM_THREADS", str(min(2, torch.get_num_threads())))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.delenv("MSDETR_ROOT", raising=False)
        patch.delenv("MSDETR_COCO_TINY", raising=False)
        yield folder


def start(project, tmp_path, monkeypatch, way):
    """Goes to where a notebook is started from: by hand in its own folder, from the project's root, or anywhere else."""
    place = {"by hand": project / "notebooks", "from the root": project, "from elsewhere": tmp_path / "elsewhere"}[way]
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    return place


def execute(project, into, name, /, **parameters):
    """Runs a notebook of the project from the current folder and gives back what it shows."""
    from msdetr.notebook import run_notebook

    executed = run_notebook(project / "notebooks" / f"{name}.ipynb", into, parameters, progress=False)
    return nbformat.read(executed, as_version=4)


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    """The project after notebook 05 by hand, with its own folders, and after the command that it shows."""
    overrides = " ".join(f"{path}={value}" for path, value in TINY.items())
    with pytest.MonkeyPatch.context() as patch:
        start(project, project, patch, "by hand")
        output = tmp_path_factory.mktemp("executed") / "05.ipynb"
        book = execute(project, output, "05_train", epochs=1.0, overrides=overrides, device="cpu")
    assert noise(book) == []
    [shown] = [found[1] for cell in read("05_train").cells if (found := SHOWN.search(cell.source))]
    command = f"{shown.strip()} -p epochs 1.0 -p device cpu -p overrides '{overrides}'"
    done = subprocess.run(["bash", "-e", "-c", command], check=False, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return project


@pytest.mark.slow
def test_05_trains_a_detector_by_hand_and_by_the_command_that_it_shows(trained):
    for name in ("shapes-ms-detr-c-seed0", "shapes-baseline-seed3"):
        results = json.loads((trained / "runs" / name / "results.json").read_text())
        assert (results["status"], results["steps"]) == ("finished", 6)
    assert noise(nbformat.read(trained / "runs" / "mine" / "05_train.ipynb", as_version=4)) == []


def test_05_leaves_the_run_directory_to_the_training(tmp_path, monkeypatch):
    """The recorder's files are written once the run is held."""
    given = {}
    monkeypatch.setattr("msdetr.engine.train", lambda config, run_dir, **options: given.update(options))
    [cell] = [cell for cell in code_cells(read("05_train")) if "MatchRecorder" in cell.source]
    run = SimpleNamespace(device="cpu")
    exec(cell.source, {"config": None, "run_dir": tmp_path / "run", "run": run, "resume": "auto", "record": True})  # noqa: S102
    assert given["recorder"] == MatchRecorder.of_run and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ladder_recipes().values())
def test_05_spells_out_a_step_of_every_method(tmp_path, monkeypatch, recipe):
    """What comes before the package call, without a kernel."""
    monkeypatch.chdir(tmp_path)
    before = itertools.takewhile(lambda cell: "MatchRecorder" not in cell.source, code_cells(read("05_train")))
    values = {"recipe": recipe, "device": "cpu", "overrides": TINY | {"data.root": str(tmp_path / "shapes")}}
    space = {}
    for cell in before:
        exec(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE), space)  # noqa: S102, the notebook's own code
        if "parameters" in cell.metadata.get("tags", []):
            space |= values
    assert space["losses"].total.isfinite()


@pytest.mark.slow
def test_05_to_08_take_a_method_with_queries_made_from_the_objects(project, tmp_path, monkeypatch):
    start(project, tmp_path, monkeypatch, "by hand")
    overrides = " ".join(f"{path}={value}" for path, value in TINY.items())
    runs = tmp_path / "runs"
    own = {"recipe": "shapes/dino-ms-c", "epochs": 1.0, "overrides": overrides, "device": "cpu", "runs": str(runs)}
    assert noise(execute(project, tmp_path / "05.ipynb", "05_train", **own)) == []
    for name, folder in LOOK.items():
        given = {"run" if name.startswith("08") else "runs": str(runs), "output": str(tmp_path / folder)}
        assert noise(execute(project, tmp_path / f"{name}.ipynb", name, **given)) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["by hand", "from the root", "from elsewhere"])
def test_05_to_08_find_what_the_one_before_left(trained, tmp_path, monkeypatch, way):
    """With their default parameters, wherever they are started; nothing is left anywhere but in the project's folders."""
    place = start(trained, tmp_path, monkeypatch, way)
    before = {path.name for path in place.iterdir()}
    for name, folder in LOOK.items():
        shutil.rmtree(trained / "runs" / folder, ignore_errors=True)
        assert noise(execute(trained, tmp_path / f"{name}.ipynb", name)) == []
        assert any((trained / "runs" / folder).iterdir())
    if way != "by hand":  # 05 finds the data set and the finished run, and trains nothing
        overrides = " ".join(f"{path}={value}" for path, value in TINY.items())
        began = time.time()
        execute(trained, tmp_path / "05.ipynb", "05_train", epochs=1.0, overrides=overrides, device="cpu")
        assert (trained / "runs" / "shapes-ms-detr-c-seed0" / "metrics.jsonl").stat().st_mtime < began
    assert {path.name for path in place.iterdir()} == before


LOOK = {"06_compare_runs": "compare", "07_candidate_quality": "candidates", "08_matching_microscope": "microscope"}


@pytest.mark.slow
def test_08_takes_a_run_that_is_still_going(trained, tmp_path):
    run = shutil.copytree(trained / "runs" / "shapes-ms-detr-c-seed0", tmp_path / "some runs" / "going")
    results = json.loads((run / "results.json").read_text()) | {"status": "running", "metrics": {}}
    (run / "results.json").write_text(json.dumps(results))
    output = str(tmp_path / "out")
    book = execute(trained, tmp_path / "08.ipynb", "08_matching_microscope", run=str(run.parent), output=output)
    assert noise(book) == []
    assert "going, " in "".join(map(text_of, outputs(book)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name[:2] in ("01", "02", "03", "04", "09", "10", "11", "12")]
)
def test_it_runs(project, tmp_path, monkeypatch, name):
    start(project, tmp_path, monkeypatch, "from elsewhere")
    known = [parameter for cell in tagged(read(name), "parameters") for parameter in assigned(cell.source)]
    small = {"fast": True, "steps": 6, "limit": 4, "output": str(tmp_path / "out"), "device": "cpu"}
    values = {parameter: value for parameter, value in small.items() if parameter in known}
    assert noise(execute(project, tmp_path / "done.ipynb", name, **values)) == []


@pytest.mark.parametrize("name", NAMES)
def test_whatever_needs_the_projects_folders_goes_there_first(name):
    """Every way of starting a notebook then comes to the same; the executions above take one or two ways each."""
    sources = [cell.source for cell in code_cells(read(name))]
    assert not any(re.search(r"chdir\(\"|getcwd|cwd\(\)", source) for source in sources)
    goes = next((i for i, source in enumerate(sources) if "os.chdir(project_root())" in source), len(sources))
    opens = re.compile(
        r"open_folder\(|find_runs\(|parameters\(\w*recipe|\"(data|runs|notebooks)/|run_path\(|read_image\("
    )
    for number, source in enumerate(sources):
        found = opens.search(source)
        if found and "parameters" not in code_cells(read(name))[number].metadata.get("tags", []):
            assert number > goes or (number == goes and source.index("os.chdir") < found.start()), source


@pytest.mark.slow
@needs_browser
def test_05_to_08_in_a_real_jupyterlab(project, tmp_path, monkeypatch):
    """Opened one after the other, Run All, with default parameters but for the size of the detector in 05."""
    pytest.importorskip("jupyterlab", reason="no jupyterlab: pip install msdetr[notebooks]")
    copy, book = clone(tmp_path / "clone"), nbformat.read(FOLDER / "05_train.ipynb", as_version=4)
    overrides = " ".join(f"{path}={value}" for path, value in TINY.items())
    [cell] = tagged(book, "parameters")
    cell.source += f'\nepochs, overrides, device = 1.0, "{overrides}", "cpu"'
    nbformat.write(book, copy / "notebooks" / "05_train.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(copy))
    (tmp_path / "server").mkdir()
    with jupyter_lab(copy, tmp_path / "server") as address, browser_page(1300, 1100) as page:
        for name in ("05_train", *LOOK):
            open_notebook(page, address, f"notebooks/{name}.ipynb")
            run_all_cells(page)
            if keep := os.environ.get("MSDETR_SCREENSHOTS"):
                page.screenshot(path=Path(keep, f"{name}.png"))
            done = nbformat.read(copy / "notebooks" / f"{name}.ipynb", as_version=4)
            assert [found for found in noise(done) if not found.endswith("%|")] == []  # progress is a widget here
            assert all(cell.execution_count for cell in code_cells(done)), "some cells never ran"
    assert {path.name for path in (copy / "runs").iterdir()} == {"shapes-ms-detr-c-seed0", *LOOK.values()}
    assert not list((copy / "notebooks").glob("[!0-9s.]*")), "nothing is left beside the notebooks"
