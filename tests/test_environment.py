"""Environment variables with values that cannot be meant are errors that name them."""

from pathlib import Path

import pytest
import torch

from msdetr.engine.distributed import World, join
from msdetr.engine.progress import style
from msdetr.errors import ConfigError
from msdetr.notebook import project_root
from msdetr.ops import cuda, describe

RANKS = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*RANKS, "MSDETR_TIMEOUT", "MSDETR_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    cuda.cache_folder.cache_clear()
    yield
    cuda.cache_folder.cache_clear()


@pytest.mark.fault("F101")
@pytest.mark.parametrize(
    "name, value",
    [
        ("RANK", "banana"),
        ("RANK", "-1"),
        ("RANK", "2"),
        ("RANK", "1.5"),
        ("LOCAL_RANK", "x"),
        ("LOCAL_RANK", "-1"),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
        ("MASTER_PORT", "http"),
        ("MASTER_PORT", "99999"),
        ("MSDETR_TIMEOUT", "soon"),
        ("MSDETR_TIMEOUT", "0"),
        ("MSDETR_TIMEOUT", "-5"),
        ("MSDETR_TIMEOUT", "nan"),
        ("MSDETR_TIMEOUT", "inf"),
    ],
)
def test_ranks(monkeypatch, name, value):
    for variable, text in {**RANKS, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"^{name} is "):
        join("cpu")


@pytest.mark.fault("F101")
@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MSDETR_TIMEOUT"])
def test_a_process_alone_is_told_as_well(monkeypatch, name):
    monkeypatch.setenv(name, "banana")
    with pytest.raises(ConfigError, match=f"^{name} is 'banana'"):
        join("cpu")


@pytest.mark.fault("F101")
@pytest.mark.parametrize("value", ["banana", "BAR", "on", " lines"])
def test_progress(monkeypatch, value):
    monkeypatch.setenv("MSDETR_PROGRESS", value)
    with pytest.raises(ConfigError, match="^MSDETR_PROGRESS is .*bar, lines, off"):
        style()


@pytest.mark.fault("F101")
def test_folders(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MSDETR_ROOT", str(file))
    with pytest.raises(ConfigError, match="^MSDETR_ROOT"):
        project_root()
    for value in (file, file / "below"):
        monkeypatch.setenv("MSDETR_CACHE", str(value))
        with pytest.raises(ConfigError, match="^MSDETR_CACHE"):
            cuda.cache_folder()
    monkeypatch.setenv("MSDETR_CACHE", str(tmp_path / "new"))
    assert cuda.cache_folder() == tmp_path / "new" / "kernels"


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("MSDETR_CACHE", "XDG_CACHE_HOME", "MSDETR_OPS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    assert cuda.cache_folder() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cuda, "available", lambda: True)
    assert "no cache, as there is no home" in describe()[1].reason


def test_empty_is_not_set(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MSDETR_TIMEOUT", "MSDETR_PROGRESS"):
        monkeypatch.setenv(name, "")
    assert join("cpu") == World()
    assert style() in ("bar", "lines")
