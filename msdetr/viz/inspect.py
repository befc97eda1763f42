"""``msdetr inspect``: the microscope on one image of a run, as files and as text for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msdetr import files
from msdetr.analysis.health import health
from msdetr.analysis.matching import BranchExplanation, Explanation
from msdetr.analysis.runs import open_folder
from msdetr.analysis.specimen import Microscope, Specimen
from msdetr.errors import ConfigError, InputLookupError, RunError
from msdetr.viz.matching import assignment_figure, outcome_figure, query_figure, ranking_figure, why_not_figure
from msdetr.viz.text import assignment_text, candidate_text, health_text, outcome_text, path_text, served_text


@dataclass(frozen=True)
class Inspection:
    """What was found: the report as plain text, the figures written, and what lies under the microscope."""

    text: str
    figures: list[Path]
    specimen: Specimen
    explanation: Explanation


def inspect(
    run: str | Path,
    image: int | str | Path | None = None,
    out: str | Path | None = None,
    *,
    object: int | None = None,
    query: int | None = None,
    branch: str | None = None,
    layer: int = 0,
    threshold: float | None = None,
    k: int | None = None,
    alpha: float | None = None,
    score_threshold: float = 0.5,
    data: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> Inspection:
    """Explains why a run's detector matched, kept or lost the objects of an image.

    run: run or checkpoint directory. image: an image id or a file name of the validation set (or of ``data``/``split``);
    the first image with objects by default. out: folder for the figures; none are written without. object, query: what
    to look at in detail (counted from 0); with both, also why the one does not serve the other. branch: the branch whose
    objects, queries and layers these are, by default one-to-one and one-to-many. layer: decoder layer counted from 1, the
    last by default. threshold, k, alpha: try other matching settings than the run's.
    score_threshold: detections count from here on.

    Raises ConfigError, CheckpointError or RunError saying what cannot be found or used.
    """
    out = None if out is None else open_folder(out)
    microscope = Microscope(run, data, split, device)
    if image is None:
        image = _first_with_objects(microscope)
    specimen = microscope.look(image)
    changes = {"threshold": threshold, "k": k, "alpha": alpha}
    found = specimen.explain(**{name: value for name, value in changes.items() if value is not None})
    looked_at = [found.one_to_one, found.one_to_many] if branch is None else [_branch(found, branch)]
    layers, objects, queries = looked_at[0].score.shape
    if not 0 <= layer <= layers:
        raise ConfigError(f"layer: {layer} is not among the decoder layers, 1 to {layers}")
    index = layer - 1 if layer else layers - 1
    for name, value, count in (("object", object, objects), ("query", query, queries)):
        if value is not None and not 0 <= value < count:
            raise ConfigError(f"{name}: {value} does not exist; the image has {count}, counted from 0")
    outcomes = found.outcomes(score_threshold, max_detections=microscope.config.train.max_detections)
    picture, figures = specimen.picture, {}
    texts = [specimen.name, "", "WHO SERVES WHOM", assignment_text(found, index if layer and branch is None else None)]
    texts += ["", f"THE OUTPUT (score at least {score_threshold:g})", outcome_text(outcomes)]
    figures["assignments"] = assignment_figure(found, picture)
    figures["outcome"] = outcome_figure(found, outcomes, picture)
    if object is not None:
        for one in looked_at:
            texts += ["", candidate_text(one, object, index)]
            figures[f"object_{object}_{one.name}"] = ranking_figure(one, object, index, picture=picture)
    if query is not None and branch is not None:
        texts += ["", served_text(looked_at[0], query)]
    elif query is not None:
        texts += ["", path_text(found.query_path(query), query, specimen.class_names, found.one_to_one.title)]
        figures[f"query_{query}"] = query_figure(found, query, picture, specimen.sampling)
    if object is not None and query is not None:
        texts += ["", "WHY NOT?"]
        for one in looked_at:
            texts.append(f"{one.title}: {one.why_not(query, object, index).text}")
            figures[f"why_not_{one.name}"] = why_not_figure(one, query, object, index, picture)
    if (Path(run) / "config.yaml").exists():
        texts += ["", "HEALTH OF THE RUN", health_text(health(run))]
    text = "\n".join(texts) + "\n"
    written = []
    if out is not None:
        for name, figure in figures.items():
            written.append(out / f"{name}.png")
            files.save_figure(figure, written[-1], dpi=130)
        files.write_atomically(out / "report.txt", text)
    return Inspection(text, written, specimen, found)


def _branch(found: Explanation, name: str) -> BranchExplanation:
    try:
        return found.branch(name)
    except InputLookupError as error:
        raise ConfigError(str(error)) from None


def _first_with_objects(microscope: Microscope) -> int:
    dataset = microscope.dataset
    for index, image_id in enumerate(dataset.image_ids):
        if len(dataset[index].labels):
            return image_id
    raise RunError("no image of the data set has an object; give another data folder")
