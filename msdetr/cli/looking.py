"""Looking into a trained detector: ``msdetr inspect``, the budget of lost AP and the matching microscope."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..files import json_text
from .app import Argument, Count, Index, Paths, Share, command
from .output import require_file, require_folder, write

if TYPE_CHECKING:
    from ..analysis.cells import Cell


@command("inspect")
def inspect(
    runs: Argument[Paths],
    image: str | None = None,
    out: Path | None = None,
    object: Index | None = None,
    query: Index | None = None,
    branch: str | None = None,
    layer: Index = 0,
    threshold: Share | None = None,
    k: Count | None = None,
    alpha: Share | None = None,
    score_threshold: Share = 0.5,
    json: Path | None = None,
    html: Path | None = None,
    images: Count | None = None,
    note: tuple[str, ...] = (),
    study: tuple[Path, ...] = (),
    limit: Count | None = None,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Where every lost point of AP went, which images are worst and why, and what to try; of two runs, who wins what.
    With --image, --object, --query, --branch, --layer, --threshold, --k, --alpha or --out: the matching microscope,
    which says why a detector matched, kept or lost the objects of one image, in words and pictures.

    For example:
        msdetr inspect runs/mine
        msdetr inspect runs/baseline runs/mine
        msdetr inspect runs/mine --html mine.html
        msdetr inspect runs/mine --image 7 --object 0 --query 12 --out runs/mine/inspect

    Args:
        runs: Run or checkpoint directory, or two to compare.
        image: Image id or file name of the validation set; the first image with objects by default.
        out: Folder for the microscope's figures; none are written without.
        object: Object to look at in detail, counted from 0.
        query: Query to look at in detail; with an object: why the one does not serve the other.
        branch: Count objects, queries and layers of this branch, as denoising or encoder; one_to_one and one_to_many by
            default.
        layer: Decoder layer counted from 1; 0 is the last.
        threshold: Try another tau than the run's.
        k: Try another number of queries per object.
        alpha: Try another share of the class probability in the score.
        score_threshold: Detections count from this score on, under the microscope.
        json: Also write the budget, or the comparison, to this JSON file.
        html: Also write a page to this file, which any browser opens without a network: the budget, the worst images and
            their matching, of one run or of two side by side.
        images: How many images the page has; 24 by default.
        note: Lines for the page's foot, as where the images come from and their licence.
        study: Folders of studies (msdetr sweep), in which the effect of other settings may have been measured; by default
            this project's own, on generated images.
        limit: Only so many images, the first; all by default. Not under the microscope.
        data: Folder with another data set.
        split: Its split; the run's validation split by default.
        device: auto, cpu, cuda or cuda:N.
    """
    require_folder(out, "--out")
    require_file(json, "--json")
    require_file(html, "--html")
    if html is None and (images is not None or note):
        raise ConfigError("--images, --note: are for a page; name its file with --html")
    if len(runs) > 2:
        raise ConfigError(f"runs: {len(runs)} are given; inspect one run, or compare two")
    details = {
        "--image": image, "--object": object, "--query": query, "--branch": branch, "--layer": layer or None,
        "--threshold": threshold, "--k": k, "--alpha": alpha, "--out": out,
    }  # fmt: skip
    chosen = [name for name, value in details.items() if value is not None]
    if not chosen:
        page = None if html is None else (html, images or 24, note)
        _budgets(runs, json, page, study, limit, data, split, device)
        return
    for name, value in (("--json", json), ("--html", html), ("--limit", limit), ("--study", study or None)):
        if value is not None:
            raise ConfigError(f"{name}: is about the budget of a run; leave it out, or leave out {chosen[0]}")
    if len(runs) == 2:
        raise ConfigError(f"{chosen[0]}: is about one run; give one, or leave it out to compare the two")
    from ..viz.inspect import inspect as look

    name = int(image) if image is not None and image.lstrip("-").isdigit() else image
    found = look(
        runs[0], name, out, object=object, query=query, branch=branch, layer=layer, threshold=threshold, k=k,
        alpha=alpha, score_threshold=score_threshold, data=data, split=split, device=device,
    )  # fmt: skip
    print(found.text)
    if out is not None:
        print(f"figures: {out}")


def _budgets(
    runs: tuple[Path, ...],
    json: Path | None,
    page: tuple[Path, int, tuple[str, ...]] | None,
    study: tuple[Path, ...],
    limit: int | None,
    data: Path | None,
    split: str | None,
    device: str,
) -> None:
    """page: its file, how many images, and the lines for its foot."""
    from ..analysis.budget import compare_budgets
    from ..analysis.budget.run import measure_budget
    from ..viz.budget_text import budget_text, comparison_text

    cells = _measured(study)
    found = [measure_budget(run, data, split, limit, device, cells, progress=True) for run in runs]
    if len(found) == 1:
        budget, diagnosis = found[0]
        text, content = budget_text(budget, diagnosis), budget.to_json() | {"doctor": diagnosis.to_json()}
    else:
        compared = compare_budgets(found[0][0], found[1][0], (str(runs[0]), str(runs[1])))
        text, content = comparison_text(compared), compared.to_json()
    print(text)
    if json is not None:
        write(json, json_text(content) + "\n")
        print(f"\nwritten: {json}")
    if page is not None:
        from ..viz.page import write_page

        html, images, note = page
        made = write_page(html, runs, images, found, data=data, split=split, device=device, text=note)
        how = "to the last bit" if made.exact else "on predictions rounded to 16 bits, so that they fit"
        print(
            f"\nwritten: {html}, {made.images} images, {made.bytes / 1e6:.1f} MB; it matches as the package does, {how}"
        )


def _measured(studies: tuple[Path, ...]) -> list[Cell]:
    """The cells of studies, or those that came along."""
    from .. import course
    from ..analysis.cells import load_cells

    own = course.results("ablations")
    cells = []
    for folder in studies or filter(None, [own]):
        found = load_cells(folder)
        if not found:
            raise ConfigError(f"--study: {folder} has no finished cells; give a folder that `msdetr sweep` wrote")
        cells += found.values()
    return cells
