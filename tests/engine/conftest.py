import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A tiny generated data set: 16 training and 6 validation images."""
    from msdetr.data import shapes as generator

    return generator.generate(tmp_path_factory.mktemp("data") / "shapes", 16, 6)


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    """torch.compile finds no C++ compiler, and nothing that was compiled before."""
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):  # monkeypatch cannot put it back
        yield
