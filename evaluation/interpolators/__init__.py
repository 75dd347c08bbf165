"""Interpolators to compare with: they fill in the key frames that a checkpoint made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from zerosmooth.extensions import METHODS
from zerosmooth.fields import UserError

from .interpolator import Blend, Hold, Interpolator, Minterpolate, TorchScript
from .lavie import LaVieInterpolator
from .ldmvfi import LDMVFIInterpolator

LAVIE, LDMVFI = "lavie-interpolation", "ldmvfi"
PLAIN: dict[str, type[Interpolator]] = {"hold": Hold, "blend": Blend, "minterpolate": Minterpolate}
ROWS = (LAVIE, LDMVFI, *PLAIN)


def open_interpolators(files: Sequence[Path], device: torch.device,
                       dtype: torch.dtype) -> dict[str, Interpolator]:
    """Interpolators by row: those that need no file, and those of files. UserError for a file that
    is none.

    files: checkpoints of LaVie's interpolation as converted (.safetensors), of LDMVFI as published
    (.ckpt), and TorchScript files, whose rows have their names.
    """
    found: dict[str, Interpolator] = {name: plain() for name, plain in PLAIN.items()}
    for path in files:
        if path.suffix == ".safetensors":
            found[LAVIE] = LaVieInterpolator(path, device, dtype)
        elif path.suffix == ".ckpt":
            found[LDMVFI] = LDMVFIInterpolator(path, device)
        elif path.stem in found or path.stem in METHODS:
            raise UserError(f"a row {path.stem} is there already; give {path} another name")
        else:
            found[path.stem] = TorchScript(path, device)
    return found
