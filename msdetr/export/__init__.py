"""Trained detectors as files for other programs: ONNX, PyTorch's exported programs, and slim weights.

Imported only where it is asked for (``msdetr export``, ``msdetr.export.export``): ONNX needs the extra ``onnx``.
"""

from .check import Comparison, compare
from .files import export, read_metadata
from .graph import Graph

__all__ = ["Comparison", "Graph", "compare", "export", "read_metadata"]
