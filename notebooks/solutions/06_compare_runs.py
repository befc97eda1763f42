"""Answers to the exercises of notebook 06, two to each. Look here last: every harder exercise has a hint."""

import itertools

import numpy as np


# 6.1
def differing(one, other):
    def flat(settings, path=""):
        found = {}
        for name, value in settings.items():
            found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
        return found

    a, b = flat(one), flat(other)
    return {name: (a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name)}


def another_differing(one, other):
    """Both at once, section by section."""
    found = {}
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) or isinstance(b, dict):
            for path, values in another_differing(a or {}, b or {}).items():
                found[f"{name}.{path}"] = values
        elif a != b:
            found[name] = (a, b)
    return found


# 6.2
def paired_gain(ours, theirs):
    gains = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not gains:
        return None, None, 0
    mean = sum(gains) / len(gains)
    if len(gains) == 1:
        return mean, None, 1
    return mean, (sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)) ** 0.5, len(gains)


def another_paired_gain(ours, theirs):
    gains = np.array([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
    number = len(gains)
    return gains.mean() if number else None, gains.std(ddof=1) if number > 1 else None, number


# 6.3
def p_value(ours, theirs):
    def gap(first, second):
        return abs(sum(first) / len(first) - sum(second) / len(second))

    pool = [*ours, *theirs]
    count, as_large = 0, 0
    for chosen in itertools.combinations(range(len(pool)), len(ours)):
        first = [pool[i] for i in chosen]
        second = [pool[i] for i in range(len(pool)) if i not in chosen]
        count += 1
        as_large += gap(first, second) >= gap(ours, theirs) - 1e-9
    return as_large / count


def another_p_value(ours, theirs):
    """The sum of those chosen says it all: that of the others is the rest."""
    m, n, total = len(ours), len(theirs), sum(ours) + sum(theirs)
    sums = np.array([sum(chosen) for chosen in itertools.combinations([*ours, *theirs], m)])
    gaps = np.abs(sums / m - (total - sums) / n)
    return (gaps >= abs(sum(ours) / m - sum(theirs) / n) - 1e-9).mean()
