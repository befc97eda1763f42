"""The number of classes of a run: the data's, unless a person set it."""

from __future__ import annotations

from .. import recipes
from ..config import ModelConfig, RunConfig
from ..data import CocoDetection
from ..data.settings import raw_ids_explained, refuse, unfit_batch, unfit_classes


def classes_were_given(config: RunConfig) -> bool:
    """Whether ``model.num_classes`` is another number than the recipe's (or the default): then a person set it."""
    known = config.recipe in recipes.names()
    usual = recipes.get(config.recipe).model.num_classes if known else ModelConfig.num_classes
    return config.model.num_classes != usual


def resolve_classes(config: RunConfig, given: bool, train_set: CocoDetection) -> tuple[RunConfig, list[str]]:
    """The configuration with the number of classes of the training set, and what to say about that.

    given: whether a person set ``model.num_classes``. Raises ConfigError where it then is not the data's, or where the
    images are too few for a batch, naming both at once.
    """
    refuse(config, unfit_classes(config, train_set.categories, given) + unfit_batch(config, len(train_set)))
    classes, notes = len(train_set.categories), []
    if classes != config.model.num_classes:
        notes.append(f"model.num_classes = {classes}, as many as {config.data.root} has")
        config = config.override({"model.num_classes": classes})
    if explained := raw_ids_explained(train_set.categories):
        notes.append(explained)
    return config, notes
