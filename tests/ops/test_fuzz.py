"""A short run of the sanitized fuzzer; ``python benchmarks/fuzz_ms_deform_attn.py`` runs 10^6 calls."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_ms_deform_attn.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the sanitized library with")
def test_sanitizers_find_nothing_but_planted_bugs(tmp_path):
    spec = importlib.util.spec_from_file_location("fuzz_ms_deform_attn", _SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    clean = script.run(script.build(tmp_path / "as it is", baseline_only=True), 3000, 0)
    assert clean.returncode == 0, clean.stderr
    assert int(clean.stdout) == 3000
    bug = next(iter(script.PLANTED_BUGS))
    found = script.run(script.build(tmp_path / "bug", bug), 2000, 0)
    assert found.returncode != 0
    assert "AddressSanitizer" in found.stderr
