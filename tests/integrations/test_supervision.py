"""Detections to and from supervision's form, with a stand-in where the library is not installed."""

import sys
import types

import numpy as np
import pytest
import torch

from msdetr.errors import ConfigError, InputError
from msdetr.integrations.supervision import from_supervision, to_supervision
from msdetr.predictor import NamedDetections

NAMES = ("cat", "dog")
FOUND = NamedDetections(
    torch.tensor([0.9, 0.4]),
    torch.tensor([1, 0]),
    torch.tensor([[0.0, 1, 20, 30], [5, 5, 9, 9]]),
    torch.tensor([3, 7]),
    class_names=NAMES,
)


@pytest.fixture(params=["library", "stand-in"])
def library(request, monkeypatch):
    if request.param == "library":
        return pytest.importorskip("supervision", reason="supervision is not installed")
    stand_in = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    return stand_in


def test_there_and_back(library):
    converted = to_supervision(FOUND)
    assert converted.xyxy.tolist() == FOUND.boxes.tolist() and converted.data["class_name"].tolist() == ["dog", "cat"]
    back = from_supervision(converted, NAMES)
    assert back.names == FOUND.names and torch.equal(back.boxes, FOUND.boxes) and torch.equal(back.scores, FOUND.scores)
    assert back.query.tolist() == [-1, -1]


def test_none_at_all(library):
    empty = FOUND.above(0.95)
    assert len(from_supervision(to_supervision(empty), NAMES)) == 0


def test_the_best_come_first():
    unsorted = types.SimpleNamespace(xyxy=np.zeros((2, 4)), confidence=np.array([0.1, 0.7]), class_id=np.array([0, 1]))
    assert from_supervision(unsorted, NAMES).names == ["dog", "cat"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": None}, "need confidence and class_id"),
        ({"class_id": np.array([0, 5])}, "do not fit 2 class names"),
    ],
)
def test_what_cannot_be_converted(changes, message):
    fields = {"xyxy": np.zeros((2, 4)), "confidence": np.ones(2), "class_id": np.zeros(2, int)} | changes
    with pytest.raises(InputError, match=message):
        from_supervision(types.SimpleNamespace(**fields), NAMES)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r'pip install "msdetr\[supervision\]"'):
        to_supervision(FOUND)
