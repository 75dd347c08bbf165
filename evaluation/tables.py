"""From records to tables: means with standard errors, differences to a row in pairs, the paper's numbers beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from evaluation.metrics import frechet_distance, gaussian, inception_score

from .rows import ORDER, PAPER

Key = tuple[str, int, str]  # subject, seed, and an image's digest
Value = tuple[float, float | None]  # and its standard error
FEWEST = 4  # videos that FVD and IS are computed of
STATISTICS = ("FVD", "IS")  # of many videos together
# group: measure: digits to show, and what it says
GROUPS = {
    "As the paper measures": {
        "FVD": (2, "Frechet distance of features from those of the reference videos; less is better"),
        "IS": (2, "inception score; more is better"),
        "PSNR": (2, "of the key frames against the base video, dB; more is better"),
        "SSIM": (3, "of the key frames against the base video; more is better"),
    },
    "How the inserted frames fit": {
        "jitter": (2, "second difference of the shape's path over all frames, RMS, pixels; less is better"),
        "off path": (
            2,
            "inserted frames' distance from uniform motion between key frames, RMS, pixels; less is better",
        ),
        "color": (1, "distance of inserted frames' colour from the key frames', of 255; less is better"),
        "area": (3, "relative difference of inserted frames' area from the key frames'; less is better"),
        "redrawn": (2, "PSNR of inserted frames against what they should show, drawn from the key frames, dB"),
        "redrawn keys": (2, "the same of the key frames themselves, dB: about the most that `redrawn` can reach"),
        "blend": (2, "PSNR of inserted frames against a linear blend of the key frames, dB: a mere fade scores high"),
    },
    "What the videos show": {
        "color right": (2, "share of videos"),
        "shape right": (2, "share of videos"),
        "direction right": (2, "share of videos"),
        "speed right": (2, "share of videos"),
        "lost": (2, "share of frames in which no shape is seen; less is better"),
        "seconds": (1, "to make a video, all its stages"),
    },
}
MEASURES = {name: facts for group in GROUPS.values() for name, facts in group.items()}
PAPER_MEASURES = list(GROUPS["As the paper measures"])
PAIRED = [name for name in MEASURES if name != "seconds"]


class Results:
    """Records by row, and what they measure by stage.

    references: of each stage, features n d of reference videos. FVD and IS depend on how many videos there are, so
    all rows are taken over the same subjects and seeds, those that every row has.
    """

    def __init__(self, records: Sequence[dict[str, Any]], references: dict[int, Tensor]) -> None:
        self.references = references
        self.rows: dict[str, dict[Key, dict[str, Any]]] = {}
        for record in sorted(records, key=_place):
            key = record["subject"], record["seed"], record.get("image_sha256", "")
            self.rows.setdefault(record["row"], {})[key] = record
        self.stages = len(records[0]["stages"])
        self.shared = sorted(set.intersection(*(set(of_row) for of_row in self.rows.values())))
        self.features = {
            row: [load_file(of_row[key]["features"]) for key in self.shared if of_row[key]["features"]]
            for row, of_row in self.rows.items()
        }

    def frames(self, stage: int) -> int:
        record = next(iter(next(iter(self.rows.values())).values()))
        return record["stages"][stage]["frames"]

    @cache
    def value(self, row: str, stage: int, measure: str) -> Value | None:
        """Mean and standard error; None where it was not measured. Videos whose shape is lost (NaN) are left out."""
        if measure in STATISTICS:
            rows = self._features(row, stage, measure)
            return None if rows is None else statistic(measure, rows, self.references.get(stage))
        return mean_and_error([_get(record, stage, measure) for record in self.rows[row].values()])

    @cache
    def difference(self, row: str, to: str, stage: int, measure: str) -> Value | None:
        """What `row` has more than `to`, over the subjects and seeds that both have."""
        if measure in STATISTICS:
            rows, others = self._features(row, stage, measure), self._features(to, stage, measure)
            if rows is None or others is None:
                return None
            return statistic(measure, rows, self.references.get(stage), less=others)
        mine, other = self.rows[row], self.rows[to]
        return mean_and_error(
            [_get(mine[k], stage, measure) - _get(other[k], stage, measure) for k in mine if k in other]
        )

    def as_json(self, to: str = "zerosmooth") -> dict[str, dict[str, Any]]:
        """By row: how many videos, and for each stage every mean and standard error, and those of the difference."""
        return {
            row: {
                "videos": len(of_row),
                "stages": [
                    {
                        "frames": self.frames(s),
                        "values": {m: v for m in MEASURES if (v := self.value(row, s, m))},
                        f"less {to}": {
                            m: v for m in MEASURES if to in self.rows and (v := self.difference(row, to, s, m))
                        },
                    }
                    for s in range(self.stages)
                ],
            }
            for row, of_row in self.rows.items()
        }

    def _features(self, row: str, stage: int, measure: str) -> Tensor | None:
        """n d, of the shared subjects and seeds; None if there are too few, or nothing to compare them with."""
        rows = [file[name] for file in self.features[row] if (name := f"{measure}/{stage}") in file]
        if len(rows) < FEWEST or len(rows) < len(self.shared) or (measure == "FVD" and stage not in self.references):
            return None
        return torch.stack(rows)


def _place(record: dict[str, Any]) -> tuple[int, str, str, int]:
    """The order of records: rows as the paper has them, then others by name."""
    name = record["row"].partition(":")[0]
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return place, record["row"], record["subject"], record["seed"]


def _get(record: dict[str, Any], stage: int, measure: str) -> float:
    """NaN where it was not measured."""
    return record["seconds"] if measure == "seconds" else record["stages"][stage].get(measure, math.nan)


def mean_and_error(values: Sequence[float]) -> Value | None:
    """Of what is a number; the error is None for a single one."""
    x = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    if not len(x):
        return None
    return x.mean().item(), (x.std() / len(x) ** 0.5).item() if len(x) > 1 else None


def statistic(measure: str, rows: Tensor, reference: Tensor | None, less: Tensor | None = None) -> Value:
    """FVD or IS of features or classes (n d), or how much more it is than of those in `less`, pair by pair."""

    def one(x: Tensor) -> float:
        if measure == "IS":
            return inception_score(x)
        assert reference is not None
        return frechet_distance(*gaussian(x), *gaussian(reference))

    if less is None:
        return jackknife(rows, one)
    return jackknife(torch.stack([rows, less], dim=1), lambda x: one(x[:, 0]) - one(x[:, 1]))


def jackknife(rows: Tensor, of: Callable[[Tensor], float], folds: int = 10) -> tuple[float, float]:
    """Something of all rows, and its standard error by leaving out one of `folds` parts at a time."""
    folds = min(folds, len(rows))
    part = torch.arange(len(rows)) % folds
    left_out = torch.tensor([of(rows[part != i]) for i in range(folds)], dtype=torch.float64)
    spread = (left_out - left_out.mean()).square().sum() * (folds - 1) / folds
    return of(rows), spread.sqrt().item()


def show(value: Value | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value[0]:{'+' if sign else ''}.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")


def markdown(results: Results, family: str, to: str = "zerosmooth") -> str:
    """Tables of all rows: for each stage a table a group of measures, and what the rows have more than the row `to`."""
    parts = []
    for stage in range(results.stages):
        parts.append(f"### {results.frames(stage)} frames")
        for title, group in GROUPS.items():
            if not (measured := [m for m in group if any(results.value(row, stage, m) for row in results.rows)]):
                continue
            paper = PAPER.get(family, {}) if "PSNR" in measured and stage in (1, 2) else {}
            head = [title, "videos", *measured, *(f"paper's {m}" for m in PAPER_MEASURES if paper)]
            body = []
            for row, of_row in results.rows.items():
                line = [row, str(len(of_row)), *(show(results.value(row, stage, m), group[m][0]) for m in measured)]
                theirs = [None] * len(PAPER_MEASURES) if row not in paper else paper[row][stage - 1]
                body.append(line + ["-" if v is None else str(v) for v in theirs if paper])
            parts.append(table(head, body))
        others = [row for row in results.rows if row != to]
        if stage > 0 and to in results.rows and others:
            paired = [m for m in PAIRED if any(results.difference(row, to, stage, m) for row in others)]
            body = [
                [row, *(show(results.difference(row, to, stage, m), MEASURES[m][0], sign=True) for m in paired)]
                for row in others
            ]
            parts.append(table([f"Row minus {to}, pair by pair", *paired], body))
    parts.append(
        f"Mean ± standard error over videos. FVD and IS are of the {len(results.shared)} subjects and seeds that all "
        "rows have, their errors by jackknife: few videos raise FVD, as a perfect row shows too. Videos whose shape is "
        "lost in a frame have no motion. FreeNoise draws no fresh noise: where others do, its base videos are its own. "
        "The paper's numbers are of the real checkpoint, other prompts and detectors: only their order compares."
    )
    parts.append("\n".join(f"- `{m}`: {says}." for m, (_, says) in MEASURES.items()))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
