"""What there is: ``msdetr recipes | doctor``."""

from __future__ import annotations

import json

from .. import __version__
from .app import Argument, command


@command("recipes")
def list_recipes(name: Argument[str] = "") -> None:
    """List the recipes, or show one in full.

    Args:
        name: Recipe to show as YAML; save it to a file, change it and train that.
    """
    import yaml

    from .. import recipes

    if name:
        print(yaml.safe_dump(json.loads(json.dumps(recipes.get(name).to_dict())), sort_keys=False), end="")
        return
    described = recipes.describe()
    width = max(map(len, described))
    for recipe, text in described.items():
        print(f"{recipe:{width}}  {text}")
    print("\n`msdetr recipes NAME` shows one in full; `msdetr train NAME` trains it.")


@command("doctor")
def doctor() -> None:
    """Report what is installed, which devices and operator backends are used, and what would make training faster."""
    import platform

    import torch
    import torchvision

    from .. import ops
    from ..engine.metric import check_metric, metric_backend

    print(f"msdetr {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} CPU threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            print(f"cuda:{index}  {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}")
    else:
        print("no CUDA device: training runs on the CPU, in fp32")
    for found in ops.describe():
        print(f"deformable attention on {found.device}: {found.backend} ({found.reason})")
        if found.advice:
            print(f"  faster: {found.advice}")
    evaluator = metric_backend()
    check_metric(evaluator)
    advice = (
        "; with hotcoco (`pip install hotcoco`) the same numbers take a fraction of the time"
        if evaluator.name == "pycocotools"
        else ""
    )
    print(f"COCO metric: {evaluator.name}, self-test passed{advice}")
