"""Settings that have moved since version 0.1: configurations written then are still read, and old names are explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "model.variant": "ms_detr.variant",
    "model.separate_heads": "ms_detr.heads",
    "model.candidate_ffn": "ms_detr.candidate_ffn",
    "model.two_stage": "two_stage",
    "model.mixed_selection": "two_stage.mixed_selection",
    "matching.one_to_many": "ms_detr.rule",
    "matching.alpha": "ms_detr.alpha",
    "matching.threshold": "ms_detr.threshold",
    "matching.k": "ms_detr.k",
    "matching.merge": "ms_detr.merge",
    **{f"loss.one_to_many_{term}_weight": f"ms_detr.{term}_weight" for term in ("class", "l1", "giou")},
    **{f"loss.encoder_{term}_weight": f"two_stage.{term}_weight" for term in ("class", "l1", "giou")},
}
_WORDS: dict[str, dict[Any, str]] = {
    "ms_detr.heads": {None: "auto", True: "separate", False: "shared"},
    "ms_detr.candidate_ffn": {None: "auto", True: "with", False: "without"},
}


def modernized(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested values of a configuration, those of version 0.1 under their present names."""
    model = values.get("model")
    if not isinstance(model, Mapping) or not {"variant", "two_stage"} & set(model):
        return values
    new = {name: dict(section) if isinstance(section, Mapping) else section for name, section in values.items()}
    sections: dict[str, dict[str, Any]] = {"ms_detr": {}, "two_stage": {}}
    for old, path in MOVED.items():
        section, name = old.split(".")
        if isinstance(new.get(section), dict) and name in new[section]:
            value = new[section].pop(name)
            owner, _, field = path.partition(".")
            if field:
                known = value is None or isinstance(value, bool)
                sections[owner][field] = _WORDS.get(path, {}).get(value, value) if known else value
    off = {"ms_detr"} if model.get("variant", "c") == "baseline" else set()
    if model.get("two_stage", True) is False:
        off.add("two_stage")
    return new | {name: None if name in off else section for name, section in sections.items()}


def moved_to(path: str) -> str | None:
    """Where a setting of version 0.1 is now, in words; None for a name that did not move."""
    if path == "model.variant":
        return "is now ms_detr.variant (a, b, c or d); ms_detr=null is the baseline"
    if path == "model.two_stage":
        return "is now the section two_stage; two_stage=null is a one-stage model"
    return f"is now {MOVED[path]}" if path in MOVED else None
