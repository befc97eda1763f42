import ast
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import msdetr.config as config_module
from msdetr import recipes
from msdetr.config import RunConfig, all_paths, from_dict, load
from msdetr.errors import ConfigError

PACKAGE = Path(config_module.__file__).parent


@pytest.mark.parametrize("path", all_paths())
def test_every_field_is_read_by_something(path):
    """A setting nobody reads would be a promise that nothing keeps."""
    name = path.rsplit(".", 1)[-1]
    readers = [
        file
        for file in PACKAGE.rglob("*.py")
        if file.name != "config.py" and "recipes" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
    ]
    assert readers, f"{path} is not read anywhere"


@pytest.mark.fault("F69")
@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("train.lrr", "lr"),
        ("lr", "train.lr"),
        ("model.num_querys", "num_queries"),
        ("sead", "seed"),
        ("matchin.k", "matching.k"),
    ],
)
def test_unknown_names_get_a_suggestion(wrong, meant):
    with pytest.raises(ConfigError, match=re.escape(meant)):
        RunConfig().override({wrong: 1})


@pytest.mark.fault("F70")
@pytest.mark.parametrize(
    "path, value, want",
    [
        ("train.lr", "1e-4", 1e-4),
        ("train.epochs", 3, 3.0),
        ("seed", "7", 7),
        ("seed", 7.0, 7),
        ("model.two_stage", "true", True),
        ("matching.merge", "False", False),
        ("model.candidate_ffn", "none", None),
        ("data.train_sizes", "480, 512", (480, 512)),
        ("train.betas", [0.9, "0.99"], (0.9, 0.99)),
    ],
)
def test_values_are_coerced_by_the_declared_type(path, value, want):
    config = RunConfig().override({path: value})
    for name in path.split("."):
        config = getattr(config, name)
    assert config == want
    assert type(config) is type(want)


@pytest.mark.fault("F70")
@pytest.mark.parametrize(
    "path, value",
    [
        ("train.lr", "fast"),
        ("train.lr", True),
        ("train.lr", float("nan")),
        ("train.lr", -1),
        ("seed", 1.5),
        ("model.two_stage", 1),
        ("model.two_stage", "yes"),
        ("model.variant", "e"),
        ("model.variant", ["c"]),
        ("train.betas", [0.9]),
        ("data.root", 3),
        ("model", {}),
        ("model.num_heads", 7),
        ("model.box_refine", False),
        ("seed.x", 1),
    ],
)
def test_impossible_values_name_the_field(path, value):
    with pytest.raises(ConfigError, match=path.split(".")[0]):
        RunConfig().override({path: value})


@pytest.mark.fault("F47")
@pytest.mark.parametrize(
    "path, value", [("matching.k", 0), ("matching.alpha", 1.1), ("matching.threshold", -0.1), ("matching.alpha", "nan")]
)
def test_impossible_matching(path, value):
    with pytest.raises(ConfigError, match=path):
        RunConfig().override({path: value})


def test_variants_that_would_be_two_copies_of_one_branch():
    with pytest.raises(ConfigError, match="both branches would be the same"):
        RunConfig().override({"model.variant": "a", "model.separate_heads": False})


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_survive_yaml(name, tmp_path):
    config = recipes.get(name)
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert config.recipe == name
    assert name in recipes.describe()


@pytest.mark.fault("F71")
def test_unknown_recipe_lists_them():
    with pytest.raises(ConfigError, match=r"did you mean 'shapes/ms-detr-c'\?.*shapes/baseline"):
        recipes.get("shapes/msdetr-c")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.fault("F70")
@given(st.dictionaries(st.sampled_from([*all_paths(), "model", "nonsense"]), values, max_size=3))
def test_anything_else_is_a_config_error(changes):
    """Whatever arrives, the result is a valid configuration or a ConfigError, and never anything else."""
    try:
        config = RunConfig().override(changes)
    except ConfigError:
        return
    assert from_dict(yaml.safe_load(yaml.safe_dump(config_module._plain(config.to_dict())))) == config


def test_small_gpu_recipes_keep_the_global_batch():
    for name in recipes.names():
        if name.startswith("small-gpu/"):
            small, full = recipes.get(name), recipes.get(name.replace("small-gpu/", "coco/"))
            assert small.train.batch_size == full.train.batch_size == 16
            assert small.train.micro_batch == 1
            assert small.train.gradient_checkpointing
