"""The repository's own promises: environments in step, imports one way, notebooks that show something."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "msdetr"

# a part may import itself, the base, and what stands in its line
BASE = {"environment", "errors", "checks", "files", "lock", "processes", "streams"}
CORE = {"structures", "boxes", "config"}
NETWORK = CORE | {"ops", "modules"}
DETECTOR = NETWORK | {"model", "matching", "losses", "methods"}
LAYERS = {
    "structures": set(),
    "boxes": set(),
    "files": set(),
    "config": set(),
    "ops": CORE,
    "modules": NETWORK,
    "model": NETWORK,
    "matching": CORE,
    "losses": CORE | {"matching"},
    "methods": DETECTOR,
    "data": CORE,
    "recipes": {"config"},
    "engine": DETECTOR | {"data", "recipes"},
    "predictor": DETECTOR | {"data", "recipes", "engine"},
    "analysis": DETECTOR | {"data", "recipes", "engine", "predictor"},
    "viz": DETECTOR | {"data", "recipes", "engine", "predictor", "analysis"},
    "model_card": {"config", "engine", "analysis", "viz"},
    "notebook": {"config", "recipes", "engine"},
    "course": DETECTOR | {"data", "recipes", "engine", "predictor", "analysis"},  # the exercises; files need none of it
    "results": {"__version__", "data", "engine", "predictor"},
    "integrations": DETECTOR | {"data", "engine", "predictor"},
    "export": DETECTOR | {"__version__", "data", "engine", "predictor"},
    "sweep": DETECTOR | {"data", "recipes", "engine", "predictor", "analysis", "viz", "notebook", "course"},
}


def internal_imports(path: Path) -> set[str]:
    """Names directly under msdetr that a file imports."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:  # from ..x import y, seen from a sub-package
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "msdetr":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("msdetr.")}
    return found


def files_of(part: str) -> list[Path]:
    files = sorted((PACKAGE / part).rglob("*.py"))
    return files or [path for path in [PACKAGE / f"{part}.py"] if path.exists()]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    for path in files_of(layer):
        allowed = LAYERS[layer] | BASE | {layer}
        assert internal_imports(path) <= allowed, f"{path.relative_to(ROOT)} imports {internal_imports(path) - allowed}"


def test_no_part_of_the_package_imports_one_that_imports_it():
    """Parts are the files and folders directly under msdetr; imports inside functions count as well."""
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    parts -= {"__init__", "__main__"}
    imports = {
        part: set().union(*(internal_imports(path) for path in files_of(part))) & parts - {part} for part in parts
    }
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError, which names the cycle


def test_no_file_needs_one_that_needs_it_while_it_is_imported():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    imports = {name: imports_at_once(name, path, modules.keys()) - {name} for name, path in modules.items()}
    tuple(TopologicalSorter(imports).static_order())


def imports_at_once(name: str, path: Path, modules) -> set[str]:
    """The package's modules that a file imports as it is imported itself: not inside a function, not for type checking."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found, todo = set(), list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in modules else source for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found & set(modules) - {"msdetr"}


def test_environment_yml_lists_what_pyproject_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"])
    for extra in ("notebooks", "dev"):
        wanted |= set(project["optional-dependencies"][extra])
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(pip) == wanted
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_library_does_not_print():
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), f"{path}:{node.lineno}"


def test_the_fault_catalogue_lists_every_id_that_a_test_carries():
    listed = re.findall(r"^\| (F\d+) \|", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert len(set(listed)) == len(listed) >= 109
    carried = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r'fault\("(F\d+)"', path.read_text())
    }
    assert carried <= set(listed)


def test_forms_for_issues_have_no_field_that_github_would_refuse():
    """An unquoted comma in a label makes a field of what follows it, and GitHub then shows no form at all."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        for part in yaml.safe_load(path.read_text())["body"]:
            assert set(part) <= {"type", "id", "attributes", "validations"}, path.name
            known = {"label", "description", "placeholder", "value", "render", "options", "multiple"}
            assert set(part["attributes"]) <= known, f"{path.name}: {part['attributes']}"


def test_jobs_of_the_workflows_need_jobs_that_are_there():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for name, job in jobs.items():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(jobs), f"{path.name}: {name}"
