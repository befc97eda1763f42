"""The Shapley value: what each of several causes contributes when it matters which others are mended, too."""

from __future__ import annotations

from math import factorial

import numpy as np


def shapley(values: np.ndarray) -> np.ndarray:
    """The exact Shapley value of each player (Shapley, 1953): its average gain over all orders in which they join.

    values [2^m, ...]: of every set of players; bit i of an index says that player i is in. Returns [m, ...], which sum to
    values[-1] - values[0].
    """
    players = len(values).bit_length() - 1
    sets = np.arange(len(values))
    size = sum(sets >> i & 1 for i in range(players)) if players else np.zeros(1, int)
    orders = np.array([factorial(s) * factorial(players - s - 1) / factorial(players) for s in range(players)])
    shares = []
    for i in range(players):
        without = sets[sets >> i & 1 == 0]
        shares.append(np.tensordot(orders[size[without]], values[without | 1 << i] - values[without], 1))
    return np.array(shares).reshape(players, *values.shape[1:])
