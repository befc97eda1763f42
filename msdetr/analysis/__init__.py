"""Pure functions that look at predictions: predictions and targets in, tables of numpy arrays out."""

from msdetr.analysis.candidates import CandidateQuality, CandidateTable

__all__ = ["CandidateQuality", "CandidateTable"]
