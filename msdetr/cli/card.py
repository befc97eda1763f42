"""``msdetr card``."""

from __future__ import annotations

from pathlib import Path

from .app import Argument, Count, command


@command("card")
def card(run: Argument[Path], images: Count = 500, device: str = "auto") -> None:
    """Write the model card of a finished run, README.md in its directory, with a figure of its candidates.

    For example:
        msdetr card runs/mine

    Args:
        run: Run directory.
        images: Validation images that the candidates are measured on, the first.
        device: auto, cpu, cuda or cuda:N.
    """
    from ..model_card import complete

    print(complete(run, device, images, again=True))
