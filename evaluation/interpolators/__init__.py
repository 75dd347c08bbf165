"""Interpolators to compare with: they fill in the key frames that a checkpoint made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .interpolator import Blend, Interpolator, TorchScript
from .lavie import LaVieInterpolator
from .ldmvfi import LDMVFIInterpolator

LAVIE, LDMVFI, BLEND = "lavie-interpolation", "ldmvfi", "blend"
ROWS = (LAVIE, LDMVFI, BLEND)


def open_interpolators(files: Sequence[Path], device: torch.device,
                       dtype: torch.dtype) -> dict[str, Interpolator]:
    """Interpolators by row: a blend, and those of files. UserError for a file that is none.

    files: checkpoints of LaVie's interpolation as converted (.safetensors), of LDMVFI as published
    (.ckpt), and TorchScript files, whose rows have their names.
    """
    found: dict[str, Interpolator] = {BLEND: Blend()}
    for path in files:
        if path.suffix == ".safetensors":
            found[LAVIE] = LaVieInterpolator(path, device, dtype)
        elif path.suffix == ".ckpt":
            found[LDMVFI] = LDMVFIInterpolator(path, device)
        else:
            found[path.stem] = TorchScript(path, device)
    return found
