"""The published implementation's numbers: the small cases always, a full directory where there is one."""

import os
from pathlib import Path

import conformance
import pytest

HERE = Path(__file__).parent
FULL = Path(os.environ.get("MSDETR_GOLDEN", HERE.parent.parent / "shared" / "golden"))


@pytest.mark.parametrize("item", [item for item in conformance.ITEMS if (HERE / "golden_small" / item).is_dir()])
def test_small_cases(item, capsys):
    passed, failed = conformance.run(HERE / "golden_small", [item])
    assert failed == 0, capsys.readouterr().out
    assert passed > 0


@pytest.mark.parametrize("item", conformance.ITEMS)
def test_full_directory(item, capsys):
    if not (FULL / item).is_dir():
        pytest.skip(f"no conformance data at {FULL / item}; set MSDETR_GOLDEN to a directory that has it")
    passed, failed = conformance.run(FULL, [item])
    assert failed == 0, capsys.readouterr().out
    assert passed > 0


def test_a_wrong_number_fails():
    """The comparison itself: an error beyond the tolerance, a NaN and a wrong shape are all failures."""
    for got in ([1.0, 2.1], [1.0, float("nan")], [1.0]):
        case = conformance.Case()
        case.close("x", got, [1.0, 2.0], rtol=1e-3)
        assert not case.passed
    case = conformance.Case()
    assert not case.passed
    case.close("x", [1.0, 2.0], [1.0, 2.0])
    assert case.passed
