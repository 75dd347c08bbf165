"""Writes a checkpoint of the published size, as its authors ship it, with weights fixed by the rule of `tests.parity`.

    python -m tests.full_size vc2 model.ckpt        # 7.4 GB; then convert it and run sample.py on it, at a small size

Nobody needs the real weights to see that the whole way works; what such a network shows is noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from zerosmooth.config import FAMILIES

from .parity import weight

MANIFESTS = Path(__file__).parent / "manifests"
PARTS = {"vc2": ("vc2_unet", "vc2_vae", "vc2_text"), "vc1": ("vc1_unet", "vc2_vae", "vc2_text")}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a published checkpoint, without its schedule's buffers."""
    found: dict[str, tuple[int, ...]] = {}
    for part in PARTS[family]:
        found |= {k: tuple(v) for k, v in json.loads((MANIFESTS / f"{part}.json").read_text())["tensors"].items()}
    return found


def buffers(family: str) -> dict[str, torch.Tensor]:
    """The schedule's buffers that say something of the family; the others follow from them."""
    sampler = FAMILIES[family].sampler
    values = {"alphas_cumprod": sampler.alphas_cumprod()}
    if family == "vc2":
        values["scale_arr"] = np.append(sampler.data_scales(), np.full(400, sampler.data_scale))
    return {name: torch.from_numpy(value).float() for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=PARTS)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    state = {name: weight(name, shape) for name, shape in shapes(args.family).items()}
    torch.save({"state_dict": {**state, **buffers(args.family)}}, args.file)


if __name__ == "__main__":
    main()
