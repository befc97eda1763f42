"""Checkpoints: a directory of safetensors files and a manifest that vouches for every byte of them.

    checkpoints/step_00001200/
        model.safetensors       weights and buffers
        ema.safetensors         their moving average, where one is kept
        optimizer.safetensors   AdamW's moments, keyed "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME"
        rng.safetensors         random generator states, keyed "cpu.RANK" and "cuda.RANK"
        manifest.json           SHA-256 and size of each file, step, config, class names, category ids, metrics

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a name without a leading dot is
always complete. It is verified when it is read. Nothing is pickled.

Checksums tell damage, not intent: whoever writes a checkpoint can write checksums that agree. So every field of the
manifest, every header, shape and dtype is checked before torch sees it.
"""

from .manifest import FORMAT, MANIFEST, changes
from .optimizer import check_generator_states, optimizer_files, restore_optimizer
from .storage import Checkpoint, available, best, find, latest, read, verify, verify_weights, write
from .weights import TakenOver, load_weights
from .writer import Writer, copy_to_host

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Checkpoint",
    "TakenOver",
    "Writer",
    "available",
    "best",
    "changes",
    "check_generator_states",
    "copy_to_host",
    "find",
    "latest",
    "load_weights",
    "optimizer_files",
    "read",
    "restore_optimizer",
    "verify",
    "verify_weights",
    "write",
]
