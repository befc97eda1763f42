"""What conformance checks compare with: one collector for the comparisons of a case, and matchings up to ties."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor


class Case:
    """Collects the comparisons of one case; the worst, relative to what is allowed, is what gets printed."""

    def __init__(self):
        self.worst, self.report, self.count = -1.0, "nothing compared", 0
        self.ties: list[str] = []

    def close(self, name: str, got, want, rtol: float = 0.0, atol: float = 0.0) -> None:
        got, want = (
            torch.as_tensor(np.asarray(x.detach() if isinstance(x, Tensor) else x)).double() for x in (got, want)
        )
        self.count += 1
        if got.shape != want.shape:
            self._record(float("inf"), f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
            return
        error = (got - want).abs()
        allowed = atol + rtol * want.abs()
        ratio = (
            torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=float("inf")).max().item()
            if error.numel()
            else 0.0
        )
        if not torch.isfinite(got).eq(torch.isfinite(want)).all():
            ratio = float("inf")
        largest = error.nan_to_num(nan=float("inf")).max().item() if error.numel() else 0.0
        self._record(ratio, f"{name}: error {largest:.1e}, tolerance rtol {rtol:.0e} atol {atol:.0e}")

    def equal(self, name: str, got, want) -> None:
        self.count += 1
        same = got == want
        self._record(
            0.0 if same else float("inf"), f"{name}: " + ("exact" if same else f"got {got}, expected {want}"[:300])
        )

    def pairs(self, name: str, got: list, want: list, made: Tensor, keeps_both: bool = False) -> bool:
        """Pairs (query, object) of one image; whether they are the same only because queries are tied.

        made: [Q, ...] what each query predicts.   keeps_both: the published rule may take several tied queries where one
        is taken here.
        """
        got, want = sorted(got), sorted(want)
        tie = got != want and same_but_for_ties(got, want, made, keeps_both)
        if tie:
            self.count += 1
            changed = [sorted({q for q, _ in set(a) - set(b)}) for a, b in ((got, want), (want, got))]
            self.ties.append(f"{name}: queries {changed[0]} here, {changed[1]} recorded")
            self._record(0.0, f"{name}: tied")
        else:
            self.equal(name, got, want)
        return tie

    def _record(self, ratio: float, report: str) -> None:
        if ratio > self.worst:
            self.worst, self.report = ratio, report

    @property
    def passed(self) -> bool:
        return 0 <= self.worst <= 1


SAME = 1e-9  # predictions that differ by no more are copies: the same numbers, summed in another order


def same_but_for_ties(got: list, want: list, made: Tensor, keeps_both: bool = False) -> bool:
    """Whether pairs are the same once every query is called by the first one that predicts the same."""
    rows = made.detach().flatten(1).double()
    if any(not 0 <= query < len(rows) for query, _ in got + want):
        return False
    first = {q: (rows - rows[q]).abs().amax(1).le(SAME).int().argmax().item() for q in {q for q, _ in got + want}}
    ours, theirs = (Counter((first[query], target) for query, target in pairs) for pairs in (got, want))
    return ours == theirs or (keeps_both and ours.keys() == theirs.keys() and ours <= theirs)
