"""The course: what every committed notebook promises, and a run of each of them, small, in the order of the course."""

import ast
import functools
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch
from small import SMALL

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


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """``execute(name, **parameters)`` runs a notebook from the root of the repository and gives back what it shows."""
    pytest.importorskip("papermill", reason="no papermill: pip install msdetr[notebooks]")
    pytest.importorskip("ipykernel", reason="no ipykernel: pip install msdetr[notebooks]")
    from msdetr.notebook import run_notebook

    folder = tmp_path_factory.mktemp("course")
    spec = folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))

    def run(name, **parameters):
        executed = run_notebook(FOLDER / f"{name}.ipynb", folder / f"{name}.ipynb", parameters, progress=False)
        return nbformat.read(executed, as_version=4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("OMP_NUM_THREADS", str(min(2, torch.get_num_threads())))
        patch.chdir(ROOT)
        yield run


@pytest.fixture(scope="module")
def two_runs(execute, tmp_path_factory):
    """A folder with two runs of six steps: MS-DETR by notebook 05, its baseline by the package."""
    import msdetr

    folder = tmp_path_factory.mktemp("runs")
    data = str(folder / "data" / "shapes")
    text = " ".join(f"{path}={value}" for path, value in TINY.items())
    runs = folder / "runs"
    book = execute("05_train", data=data, epochs=1.0, overrides=text, run_name="c", runs=str(runs), device="cpu")
    changes = TINY | {"data.root": data, "train.epochs": 1}
    msdetr.train("shapes/baseline", runs / "baseline", changes, device="cpu", progress=False)
    return runs, book


@pytest.mark.slow
def test_05_trains_a_detector(two_runs):
    runs, book = two_runs
    assert noise(book) == []
    results = json.loads((runs / "c" / "results.json").read_text())
    assert (results["status"], results["steps"]) == ("finished", 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in ("06", "07", "08")])
def test_it_looks_at_those_runs(execute, two_runs, tmp_path, name):
    which = {"run": str(two_runs[0] / "c")} if name.startswith("08") else {"runs": str(two_runs[0])}
    book = execute(name, output=str(tmp_path / "out"), **which)
    assert noise(book) == []
    assert any((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in ("01", "02", "03", "04", "09", "10")])
def test_it_runs(execute, tmp_path, name):
    known = [parameter for cell in tagged(read(name), "parameters") for parameter in assigned(cell.source)]
    small = {"fast": True, "steps": 6, "limit": 4, "output": str(tmp_path / "out"), "device": "cpu"}
    book = execute(name, **{parameter: value for parameter, value in small.items() if parameter in known})
    assert noise(book) == []


# ---------------------------------------------------------------- the exercises

EXERCISES = next((name for name in NAMES if name.endswith("_exercises")), None)
SOLUTIONS = (FOLDER / "solutions.py").read_text() if (FOLDER / "solutions.py").exists() else ""
SOLVED = [node.name for node in ast.parse(SOLUTIONS).body if isinstance(node, ast.FunctionDef)]
with_exercises = pytest.mark.skipif(EXERCISES is None, reason="no notebook of exercises")


def plain(cell):
    """A cell's code without IPython's magic lines."""
    return re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def work_through(capsys, solved):
    """The verdicts of the checks, as the notebook stands or with every function replaced by its solution."""
    namespace = {}
    for cell in code_cells(read(EXERCISES)):
        exec(plain(cell), namespace)  # noqa: S102 (this repository's own notebook)
        for node in ast.parse(plain(cell)).body:
            if solved and isinstance(node, ast.FunctionDef) and node.name in SOLVED:
                namespace[node.name] = getattr(namespace["solutions"], node.name)
    return [
        line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("not yet", "solved"))
    ]


@with_exercises
def test_every_broken_function_is_caught_and_its_solution_passes(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert work_through(capsys, solved=False) == ["not yet"] * len(SOLVED)
    assert work_through(capsys, solved=True) == ["solved"] * len(SOLVED)


@with_exercises
def test_folded_hints_and_solutions_are_those_of_the_module():
    prose = "\n".join(cell.source for cell in read(EXERCISES).cells if cell.cell_type == "markdown")
    folded = re.findall(r"<details><summary>Solution</summary>\s+```python\n(.*?)\n```\s+</details>", prose, re.DOTALL)
    assert folded == [
        ast.get_source_segment(SOLUTIONS, node)
        for node in ast.parse(SOLUTIONS).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert prose.count("<details><summary>Hint</summary>") == len(folded)
    assert prose.count("**Symptom.**") == len(folded)


@with_exercises
def test_solutions_stand_on_their_own():
    imported = {
        alias.name for node in ast.walk(ast.parse(SOLUTIONS)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"torch", "torchvision"} and "msdetr" not in SOLUTIONS
