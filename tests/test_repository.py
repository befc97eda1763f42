"""The repository's own promises: environments in step, imports one way, notebooks that show something."""

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "msdetr"

# a package may import itself, the errors, and what stands in its line
LAYERS = {
    "structures": set(),
    "boxes": set(),
    "config": set(),
    "ops": {"structures", "boxes", "config"},
    "modules": {"structures", "boxes", "config", "ops"},
    "model": {"structures", "boxes", "config", "ops", "modules"},
    "matching": {"structures", "boxes", "config"},
    "losses": {"structures", "boxes", "config", "matching"},
    "data": {"structures", "boxes", "config"},
    "recipes": {"config"},
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


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    files = sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]
    for path in files:
        allowed = LAYERS[layer] | {layer, "errors"}
        assert internal_imports(path) <= allowed, f"{path.relative_to(ROOT)} imports {internal_imports(path) - allowed}"


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
