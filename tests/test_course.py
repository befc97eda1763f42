"""The course as files: found by name, copied to work in, never overwritten, and brought along by a wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from msdetr import __version__, course
from msdetr.errors import ConfigError, NotebookError
from msdetr.notebook import project_root

ROOT = Path(__file__).parent.parent
BUILT_FROM = [
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "csrc", "msdetr"),
    *("notebooks", "docs", "benchmarks/results", "data/README.md", "data/samples"),
]  # a checkout holds more: data sets, runs, an environment


@pytest.mark.parametrize("name", ["05_train", "05_train.ipynb", "5", "05", Path("5")])
def test_a_notebook_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert course.find(name) == course.root() / "notebooks" / "05_train.ipynb"


def test_a_file_at_hand_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("05_train.ipynb").write_text("{}")
    assert course.find("05_train.ipynb") == Path("05_train.ipynb")


def test_an_unknown_notebook_is_named_with_those_there_are():
    with pytest.raises(NotebookError, match=r"06_train: there is no such file.*05_train, 06_compare_runs"):
        course.find("06_train")


def test_a_copy_is_a_project_of_its_own(tmp_path, monkeypatch):
    copied = course.copy(tmp_path / "mine")
    assert len(copied) >= 10 and all(path.is_file() for path in copied)
    assert (tmp_path / "mine" / "data" / "samples" / "annotations" / "instances_train.json").is_file()
    assert (tmp_path / "mine" / "notebooks" / "solutions" / "03_one_to_many_matching.py").is_file()
    assert (tmp_path / "mine" / "benchmarks" / "results" / "variants" / "results.json").is_file()
    assert not list((tmp_path / "mine" / "benchmarks").rglob("*.py"))
    monkeypatch.chdir(tmp_path / "mine" / "notebooks")
    assert project_root() == tmp_path / "mine"
    course.copy(tmp_path / "mine")  # once more changes nothing


def test_runs_of_a_sweep_among_the_results_are_not_part_of_the_course(tmp_path, monkeypatch):
    checkout, kept = tmp_path / "checkout", Path("benchmarks", "results", "mine", "cells", "a-s0.json")
    left_out = Path("benchmarks", "results", "mine", "runs", "a-s0", "results.json")
    for name in (kept, left_out, Path("notebooks", "01_mine.ipynb")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("{}")
    monkeypatch.setattr(course, "root", lambda: checkout)
    course.copy(tmp_path / "copy")
    assert (tmp_path / "copy" / kept).is_file() and not (tmp_path / "copy" / left_out).exists()


def test_work_in_a_copy_is_never_overwritten(tmp_path):
    edited = course.copy(tmp_path)[3]
    edited.write_text("my answers")
    other = tmp_path / "notebooks" / "01_deformable_attention.ipynb"
    other.unlink()
    with pytest.raises(ConfigError, match=f"{edited.name}: there already, with other contents"):
        course.copy(tmp_path)
    assert edited.read_text() == "my answers" and not other.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        course.copy(tmp_path / "file")


def test_the_course_copied_onto_itself_stays_as_it_is(tmp_path, monkeypatch):
    notebook = tmp_path / "notebooks" / "01_mine.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    monkeypatch.setattr(course, "root", lambda: tmp_path)
    assert course.copy(tmp_path) == [notebook] and notebook.read_text() == "{}"


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_wheel_serves_every_python_and_brings_the_course(compiled, tmp_path):
    """Built from a copy of what a wheel is built from, so that the checkout's own build files do not matter."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for part in BUILT_FROM:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "*.so")
            shutil.copytree(ROOT / part, source / part, ignore=ignored)
        else:
            (source / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "setup.py", "bdist_wheel", "-q", "-d", str(tmp_path)]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MSDETR_BUILD": str(int(compiled))}
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert ("-py3-none-any" in wheel.name) == (not compiled) and "-py3-none-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    [about] = (zipfile.ZipFile(wheel).read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {__version__}\n" in about and "# msdetr" in about
    raw, blob = (f"https://github.com/OWNER_NAME/msdetr/{kind}/main/" for kind in ("raw", "blob"))
    assert f"]({raw}docs/figures/page.png)" in about and f"]({blob}README.md#the-course)" in about
    assert not re.findall(r"\]\((?!https?://).*?\)", about), "a link that leads nowhere on a page elsewhere"
    for notebook in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert f"msdetr/course/notebooks/{notebook.name}" in names
    for solution in (ROOT / "notebooks" / "solutions").glob("*.py"):
        assert f"msdetr/course/notebooks/solutions/{solution.name}" in names
    committed = ("*.json", "*/*.json", "*/cells/*.json")
    for result in (path for pattern in committed for path in (ROOT / "benchmarks" / "results").glob(pattern)):
        assert f"msdetr/course/{result.relative_to(ROOT)}" in names
    assert {"msdetr/ops/csrc/ms_deform_attn.cu", "msdetr/course/data/samples/manifest.json"} <= names
    assert ("msdetr/ops/libms_deform_attn.so" in names) == compiled
    front_end = {f"msdetr/viz/page/{path.name}" for path in (ROOT / "msdetr/viz/page").glob("*.[jc]s*")}
    assert len(front_end) > 10 and front_end <= names
