"""Pure functions that look at predictions: predictions and targets in, tables of numpy arrays out."""

from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.analysis.candidates import CandidateQuality, CandidateTable
from msdetr.analysis.matching import Explanation, Outcome, Status, explain, explain_output

__all__ = [
    "CandidateQuality",
    "CandidateTable",
    "Explanation",
    "Outcome",
    "Status",
    "explain",
    "explain_output",
    "predictions_from_arrays",
    "targets_from_arrays",
]
