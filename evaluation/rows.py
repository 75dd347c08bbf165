"""The rows of the paper's tables: what is compared, and what the paper measured."""

from __future__ import annotations

from typing import Any

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.extensions import METHODS
from zerosmooth.fields import UserError
from zerosmooth.settings import DENSE, PRESETS, Settings, options, settings_for

from .interpolators import LAVIE, LDMVFI
from .interpolators import ROWS as INTERPOLATORS

# each row of Table 3 adds to the one above, and corrects at full strength in every step; the last
# one is the method
FULL = {"strength": 1.0, "strength_schedule": "constant"}
ABLATION: dict[str, dict[str, Any]] = {
    "+ spatial": {"temporal": False, "kv_operator": "S", **FULL},
    "+ temporal": {"kv_operator": "S", **FULL},
    "+ A1/A2": FULL,
}
OWN: dict[str, dict[str, Any]] = {  # settings of each row
    **{preset: {"preset": preset} for preset in PRESETS},
    **{method: {"method": method, "preset": "paper"} for method in METHODS},
    **{row: {"preset": "paper", **part} for row, part in ABLATION.items()},
}
BASELINES = ("direct", "windowed", "freenoise", "ddnm")
TABLES = {
    "1": (*BASELINES, "zerosmooth"),
    "2": ("zerosmooth", *INTERPOLATORS),
    "3": ("direct", *ABLATION, "zerosmooth"),
}
OTHERS = [m for m in METHODS if m not in (*BASELINES, "zerosmooth")]  # not in the paper
ORDER = [*BASELINES, *OTHERS, *ABLATION, "zerosmooth", *(p for p in PRESETS if p != "paper"),
         *INTERPOLATORS]
CHANGES = {o.name: o for o in options(Settings) if o.name in (*DENSE, "reuse")}

# FVD, IS, PSNR, SSIM at 2x, then at 4x (Tables 1 to 3; others of our rows are not in the paper)
NONE = (None, None, None, None)
PAPER: dict[str, dict[str, tuple[tuple[float | None, ...], ...]]] = {
    "vc2": {
        "direct": ((1202.3, 30.31, 10.90, 0.426), (1183.9, 21.63, 10.81, 0.409)),
        "ddnm": ((1139.6, 40.99, 23.50, 0.841), (1100.4, 35.90, 22.21, 0.813)),
        "+ spatial": ((1251.2, 42.40, 22.96, 0.739), (1116.8, 41.19, 22.31, 0.721)),
        "+ temporal": ((1221.0, 43.25, 24.03, 0.826), (1156.1, 42.54, 22.63, 0.817)),
        "+ A1/A2": ((1199.8, 43.09, 23.22, 0.768), (1108.4, 42.43, 22.14, 0.755)),
        "zerosmooth": ((1085.8, 43.92, 24.12, 0.852), (1020.6, 43.77, 22.68, 0.837)),
        LDMVFI: ((1304.6, 41.40, 34.60, 0.948), NONE),
        LAVIE: (NONE, (1172.1, 35.78, 28.44, 0.874)),
    },
    "lavie": {
        "direct": ((682.0, 28.11, 10.21, 0.438), (834.7, 24.23, 10.19, 0.447)),
        "ddnm": ((729.5, 35.59, 24.39, 0.824), (721.0, 29.42, 26.47, 0.817)),
        "zerosmooth": ((703.2, 39.23, 26.90, 0.876), (697.6, 38.67, 24.17, 0.831)),
    },
    "svd": {
        "direct": ((1350.7, None, 17.33, 0.651), (1090.2, None, 15.75, 0.604)),
        "ddnm": ((846.6, None, 29.12, 0.875), (895.2, None, 28.12, 0.864)),
        "zerosmooth": ((779.6, None, 30.92, 0.927), (752.1, None, 30.74, 0.921)),
    },
}


def settings_of_row(row: str, checkpoint: Checkpoint, asked: dict[str, Any]) -> Settings:
    """A row's settings. asked: those that all rows share, by name. UserError if there is no such
    row.

    "zerosmooth" is the paper's method; another preset is a row by its name. Settings of CHANGES
    that differ follow a colon: "zerosmooth:a1_probability=0.5,overlap=12".
    """
    name, _, changes = row.partition(":")
    if name not in OWN:
        raise UserError(f"there is no row {name!r}; use {', '.join(ORDER)}")
    own = {**OWN[name]}
    for change in filter(None, changes.split(",")):
        key, _, text = change.partition("=")
        if key not in CHANGES:
            raise UserError(f"row {row!r} changes {key!r}; use one of {', '.join(CHANGES)}")
        own[key] = CHANGES[key].read(text)
    return settings_for(checkpoint.family, checkpoint.config, **{**asked, **own})
