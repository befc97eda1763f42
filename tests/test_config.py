import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import msdetr.config as config_module
from msdetr import recipes
from msdetr.config import (
    MatchingConfig,
    ModelConfig,
    Range,
    RunConfig,
    TrainConfig,
    all_paths,
    flatten,
    from_dict,
    harmless_in_comparison,
    harmless_on_resume,
    load,
    parse_overrides,
    register_section,
    unregister_section,
)
from msdetr.errors import ConfigError
from msdetr.methods import MSDETRConfig


@pytest.mark.fault("F69")
@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("train.lrr", "train.lr"),
        ("lr", "train.lr"),
        ("model.num_querys", "model.num_queries"),
        ("sead", "seed"),
        ("ms_dert.k", "ms_detr.k"),
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
        ("train.tensorboard", "true", True),
        ("ms_detr.merge", "False", False),
        ("two_stage.mixed_selection", "false", False),
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
        ("data.cache", 1),
        ("data.cache", "yes"),
        ("ms_detr.variant", "e"),
        ("ms_detr.variant", ["c"]),
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
    "path, value", [("ms_detr.k", 0), ("ms_detr.alpha", 1.1), ("ms_detr.threshold", -0.1), ("ms_detr.alpha", "nan")]
)
def test_impossible_matching(path, value):
    with pytest.raises(ConfigError, match=path):
        RunConfig().override({path: value})


def test_variants_that_would_be_two_copies_of_one_branch():
    with pytest.raises(ConfigError, match="both branches would be the same"):
        RunConfig().override({"ms_detr.variant": "a", "ms_detr.heads": "shared"})


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
    assert from_dict(yaml.safe_load(yaml.safe_dump(config_module.plain(config.to_dict())))) == config


def test_small_gpu_recipes_keep_the_global_batch():
    for name in recipes.names():
        if name.startswith("small-gpu/"):
            small, full = recipes.get(name), recipes.get(name.replace("small-gpu/", "coco/"))
            assert small.train.batch_size == full.train.batch_size == (32 if "lw-detr" in name else 16)
            assert recipes.describe()[name].endswith(f"accumulated to {full.train.batch_size}")
            assert small.train.micro_batch == 1
            assert small.train.gradient_checkpointing


@pytest.mark.fault("F101")
@pytest.mark.parametrize(
    "path, value",
    [
        ("train.betas", (2, 2)),
        ("train.betas", "0.9,1"),
        ("data.train_sizes", ()),
        ("data.train_sizes", "480,0"),
        ("data.root", ""),
        ("data.val_split", "a\0b"),
        ("model.hidden_dim", 40),
        ("model.hidden_dim", 10**9),
        ("model.dropout", 1.0),
        ("train.ema_decay", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("loss.focal_alpha", 1.5),
        ("loss.class_weight", "inf"),
        ("train.batch_size", 10**400),
        ("model.pretrained", ""),
    ],
)
def test_values_outside_their_domain_name_the_field(path, value):
    with pytest.raises(ConfigError, match=re.escape(path)):
        RunConfig().override({path: value})


@pytest.mark.fault("F101")
def test_a_configuration_made_in_python_is_checked_as_well():
    with pytest.raises(ConfigError, match="train.epochs: expected float, got '3'"):
        RunConfig(train=TrainConfig(epochs="3"))
    with pytest.raises(ConfigError, match="ms_detr.k: must be at least 1"):
        RunConfig(methods={"ms_detr": MSDETRConfig(k=0)})
    with pytest.raises(ConfigError, match="model: expected ModelConfig"):
        RunConfig(model={})
    with pytest.raises(ConfigError, match=r"model.num_queries: expected int, got 300\.0"):
        RunConfig(model=ModelConfig(num_queries=300.0))
    assert RunConfig(train=TrainConfig(epochs=12)).train.epochs == 12


def test_large_whole_numbers_are_exact():
    assert RunConfig().override({"seed": "9007199254740993"}).seed == 2**53 + 1


def test_what_is_suggested_is_accepted_as_it_stands():
    """The full dotted path, wherever the mistake was made."""
    for mistake in ({"model": {"num_clases": 3}}, {"num_clases": 3}):
        with pytest.raises(ConfigError, match=r"did you mean 'model\.num_classes'\?"):
            from_dict(mistake)
    with pytest.raises(ConfigError, match=r"did you mean 'model\.num_classes'\?"):
        RunConfig().override({"model.num_clases": 3})


def test_overrides_as_text():
    assert parse_overrides("train.lr=1e-4 ms_detr.variant=d") == {"train.lr": "1e-4", "ms_detr.variant": "d"}
    with pytest.raises(ConfigError, match="not of the form name=value"):
        parse_overrides("train.lr")
    with pytest.raises(ConfigError, match=r"train.lr: given twice, as '1' and as '2'"):
        parse_overrides("train.lr=1 train.lr=2")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_overrides("data.root='a")


# ---------------------------------------------------------------- sections that are registered


@dataclass(frozen=True)
class Doubled:
    k: Annotated[int, Range(1)] = 6
    groups: Literal["one", "two"] = "one"

    def check(self, run):
        if self.k > run.model.num_queries:
            raise ConfigError("doubled.k: more than model.num_queries")


@pytest.fixture
def doubled():
    register_section("doubled", Doubled)
    yield
    unregister_section("doubled")


def test_a_registered_section_is_off_until_a_field_is_given(doubled):
    assert {"doubled.k", "doubled.groups"} <= set(all_paths())
    off = RunConfig()
    assert (
        list(off.methods) == ["ms_detr", "two_stage"]
        and "doubled" not in off.to_dict()
        and flatten(off)["doubled.k"] is None
    )
    on = off.override({"doubled.k": "3"})
    assert on.methods["doubled"] == Doubled(3) and on != off
    assert on.to_dict()["doubled"] == {"k": 3, "groups": "one"} and flatten(on)["doubled.k"] == 3
    assert on.override({"seed": 1}).methods == on.methods
    assert on.override({"doubled": "none"}) == on.override({"doubled": None}) == off
    assert (
        off.override({"doubled": True}).methods["doubled"]
        == Doubled()
        == off.override({"doubled": {}}).methods["doubled"]
    )
    assert off.override({"doubled": "true", "doubled.groups": "two"}).methods["doubled"] == Doubled(groups="two")


def test_a_registered_section_survives_yaml(doubled, tmp_path):
    config = RunConfig().override({"doubled.k": 3})
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    (tmp_path / "off.yaml").write_text("doubled: null\n")
    assert load(tmp_path / "off.yaml") == RunConfig()


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("doubled.k", 0, "doubled.k: must be at least 1"),
        ("doubled.kk", 1, "doubled.kk: unknown parameter; did you mean 'doubled.k'"),
        ("doubled.groups", "three", "doubled.groups: 'three' is not one of"),
        ("doubled.k", 301, "doubled.k: more than model.num_queries"),
        ("doubled", 3, "doubled: expected true, false or one of its fields, e.g. doubled.k"),
    ],
)
def test_errors_in_a_registered_section(doubled, path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunConfig().override({path: value})


def test_what_cannot_be_registered(doubled):
    for name, section in [("model", Doubled), ("a.b", Doubled), ("other", dict), ("doubled", MatchingConfig)]:
        with pytest.raises(ConfigError, match=re.escape(f"section '{name}'")):
            register_section(name, section)
    with pytest.raises(ConfigError, match="unknown parameter"):
        RunConfig().override({"never_registered.k": 1})


@dataclass(frozen=True)
class Owner:
    inner: Doubled | None = None


def test_a_field_may_be_a_section_or_none():
    assert from_dict({}, Owner).inner is None
    assert from_dict({"inner": {"k": 2}}, Owner).inner == Doubled(2)
    assert from_dict({"inner": None}, Owner).inner is None
    assert all_paths(Owner) == ["inner.k", "inner.groups"]
    with pytest.raises(ConfigError, match="inner.k"):
        from_dict({"inner": {"k": 0}}, Owner)


def test_settings_that_make_no_other_experiment():
    assert "train.tensorboard" in harmless_on_resume() & harmless_in_comparison()
    assert "seed" in harmless_in_comparison() - harmless_on_resume()
    assert not {"train.lr", "ms_detr.variant"} & (harmless_on_resume() | harmless_in_comparison())


def test_a_default_section_stays_off_through_yaml(tmp_path):
    config = RunConfig().override({"ms_detr": None})
    config.save(tmp_path / "config.yaml")
    assert "ms_detr" not in load(tmp_path / "config.yaml").methods
    assert load(tmp_path / "config.yaml") == config and config.override({"seed": 1}).methods == config.methods


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"variant": "c"}, {"ms_detr.variant": "c"}),
        ({"variant": "baseline", "mixed_selection": False}, {"ms_detr": None, "two_stage.mixed_selection": False}),
        ({"variant": "a", "separate_heads": True, "candidate_ffn": None}, {"ms_detr.variant": "a", "ms_detr.heads": "separate"}),
        ({"variant": "d", "two_stage": False, "mixed_selection": False}, {"ms_detr.variant": "d", "two_stage": None}),
    ],
)  # fmt: skip
def test_configurations_of_version_0_1_are_read(old, new):
    values = {"model": old, "matching": {"k": 4, "cost_l1": 3.0}, "loss": {"encoder_l1_weight": 1.0}}
    want = RunConfig().override({"matching.cost_l1": 3.0} | new)
    want = want.override({"ms_detr.k": 4} if "ms_detr" in want.methods else {})
    want = want.override({"two_stage.l1_weight": 1.0} if "two_stage" in want.methods else {})
    assert from_dict(values) == want


def test_a_name_that_moved_is_explained():
    with pytest.raises(ConfigError, match="model.variant: is now ms_detr.variant"):
        RunConfig().override({"model.variant": "d"})
    with pytest.raises(ConfigError, match="matching.k: is now ms_detr.k"):
        RunConfig().override({"matching.k": 3})


def test_a_damaged_configuration_of_version_0_1_is_an_error_of_its_own_kind():
    with pytest.raises(ConfigError, match="ms_detr.heads"):
        from_dict({"model": {"variant": "c", "separate_heads": []}})
