"""What the package promises to people who import it."""

import inspect
import subprocess
import sys

import pytest
import torch
from small import SMALL

import msdetr

PUBLIC = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Detections",
    "Detector",
    "DetectorOutput",
    "EngineError",
    "EvalResult",
    "ImageBatch",
    "ImageLike",
    "InputError",
    "MSDETRError",
    "Matches",
    "NamedDetections",
    "Predictions",
    "Predictor",
    "RunConfig",
    "RunError",
    "Targets",
    "__version__",
    "build",
    "evaluate",
    "load",
    "register_section",
    "resolve",
    "train",
]


def test_the_public_names():
    """A change of this list is a change of the package's interface."""
    assert msdetr.__all__ == ["__version__", *sorted(name for name in PUBLIC if name != "__version__")]
    for name in PUBLIC:
        assert getattr(msdetr, name) is not None and name in dir(msdetr)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = msdetr.absent


def test_configuration_and_errors_need_no_torch():
    code = "import sys, msdetr; msdetr.RunConfig, msdetr.resolve, msdetr.ConfigError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_error_of_the_package_is_an_msdetr_error():
    from msdetr import errors

    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert len(classes) > 10
    raised = [value for value in classes if issubclass(value, Exception) and not issubclass(value, Warning)]
    assert all(issubclass(value, msdetr.MSDETRError) for value in raised)


def test_the_options_of_training_are_named():
    named = inspect.signature(msdetr.train).parameters
    assert {"data", "epochs", "seed", "init_from", "resume", "device"} <= set(named)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())
    with pytest.raises(msdetr.ConfigError, match=r"train.epochs: given twice"):
        msdetr.train("shapes/baseline", "nowhere", {"train.epochs": 2}, epochs=1)


def test_a_detector_takes_images_as_they_come():
    detector = msdetr.build("shapes/baseline", SMALL).eval()
    images = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        outputs = [detector(form) for form in (images, list(images), msdetr.ImageBatch.from_images(list(images)))]
    assert all(torch.equal(one.one_to_one.boxes, outputs[0].one_to_one.boxes) for one in outputs)
    for wrong in (images[0], "photo.jpg", [], [images[0, :1]], (images * 255).to(torch.uint8)):
        with pytest.raises(msdetr.InputError, match="^images: "):
            detector(wrong)
