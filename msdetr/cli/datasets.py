"""Public data sets: ``msdetr data list | get NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import ConfigError
from .app import Argument, command


@command("data")
def data(
    action: Argument[Literal["list", "get"]],
    name: Argument[str] = "",
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    root: Path = Path("data"),
) -> None:
    """List public data sets with a free licence, or get one: fetched, checked, unpacked, with source and licence shown.

    For example:
        msdetr data list
        msdetr data get bccd
        msdetr data get aquarium --from downloads/aquarium.zip

    A download that breaks off is gone on with by the same command.

    Args:
        action: list, or get.
        name: Name of a data set.
        source: A folder or archive at hand to take it from, instead of the internet.
        root: Where data sets are kept, each in a folder of its name.
    """
    from ..data import public

    if action == "list":
        width = max(map(len, public.SETS))
        for found in public.SETS.values():
            here = f"in {root / found.name}" if (root / found.name / public.RECORD).is_file() else "not here"
            print(f"{found.name:{width}}  {found.title}, {found.classes} classes ({found.licence}); {here}")
            print(f"{'':{width}}  {found.source}")
        return
    if not name:
        raise ConfigError(f"name: say which data set to get: {', '.join(public.SETS)}")
    wanted = public.known(name)
    print(f"{wanted.name}: {wanted.title}\n  source       {wanted.source}\n  licence      {wanted.licence}")
    print(f"  attribution  {wanted.attribution}", flush=True)
    folder = public.get(name, root, source, on_bytes=_bar(), say=print)
    record = public.record_of(folder)
    print(f"  from         {record['from']}, {record['date']}\n  checked      {record['checked']}")
    if record["sha256"]:
        print(f"  SHA-256      {record['sha256']}")
    print(f"to train on it: msdetr train photos/ms-detr-c --data {folder}")


def _bar():
    """Called with bytes done and in all, shows them."""
    from tqdm import tqdm

    bar = tqdm(unit="B", unit_scale=True, leave=False, disable=None)

    def show(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show
