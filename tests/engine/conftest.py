import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A tiny generated data set: 16 training and 6 validation images."""
    from msdetr.data import shapes as generator

    return generator.generate(tmp_path_factory.mktemp("data") / "shapes", 16, 6)
