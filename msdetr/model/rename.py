"""Names by a table of patterns."""

from __future__ import annotations

import re


def rename(name: str, table: list[tuple[str, str]]) -> str | None:
    """The name that the first fitting entry (old, new) gives; None where none fits. {i} stands for a number, {*} for the
    rest of the name."""
    for old, new in table:
        pattern = re.escape(old).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{\*\}", "(?P<rest>.+)")
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            return new.replace("{i}", groups.get("i", "")).replace("{*}", groups.get("rest", ""))
    return None
