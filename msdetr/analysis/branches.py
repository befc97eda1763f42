"""Names of the criterion's branches for people."""

from __future__ import annotations


def branch_title(name: str, several: bool = False) -> str:
    """'one-to-one', 'one-to-many', 'one-to-many (hybrid)' for the candidates of a further query group, 'denoising'.

    several: an object may have several queries in it; then that of the detector's answer is the 'decoder' (DETA's).
    """
    if name == "one_to_one" and several:
        return "decoder"
    for usual in ("one_to_one", "one_to_many"):
        if name == usual or name.startswith(f"{usual}_"):
            group = name.removeprefix(usual).strip("_").replace("_", " ")
            return usual.replace("_", "-") + (f" ({group})" if group else "")
    return name.replace("_", " ")
