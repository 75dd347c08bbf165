"""From records to tables: means with standard errors, differences to a row in pairs, the paper's numbers beside."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from zerosmooth.metrics import frechet_distance, gaussian, inception_score

from .rows import ORDER, PAPER

Value = tuple[float, float]  # and its standard error
# group: measure: digits to show, and what it says
GROUPS = {
    "As the paper measures": {
        "FVD": (2, "Frechet distance of features from those of the reference videos; less is better"),
        "IS": (2, "inception score; more is better"),
        "PSNR": (2, "of the key frames against the base video, dB; more is better"),
        "SSIM": (3, "of the key frames against the base video; more is better"),
    },
    "How the inserted frames fit": {
        "jitter": (2, "second difference of the shape's path, RMS, pixels; less is better"),
        "off path": (
            2,
            "inserted frames' distance from uniform motion between key frames, RMS, pixels; less is better",
        ),
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
        "seconds": (1, "to make a video, all its stages"),
    },
}
MEASURES = {name: facts for group in GROUPS.values() for name, facts in group.items()}
PAPER_MEASURES = list(GROUPS["As the paper measures"])
PAIRED = [name for name in MEASURES if name not in ("FVD", "IS", "seconds")]


class Results:
    """Records by row, and their measures by stage. references: of each stage, features n d of reference videos."""

    def __init__(self, records: Sequence[dict[str, Any]], references: dict[int, Tensor]) -> None:
        self.references = references
        self.rows: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
        for record in sorted(records, key=_place):
            self.rows[record["row"]][record["subject"], record["seed"]] = record
        self.stages = len(records[0]["stages"])

    def frames(self, stage: int) -> int:
        record = next(iter(next(iter(self.rows.values())).values()))
        return record["stages"][stage]["frames"]

    def value(self, row: str, stage: int, measure: str) -> Value | None:
        """Mean and standard error; None where it was not measured. Lost shapes (NaN) are left out."""
        records = list(self.rows[row].values())
        if measure in ("FVD", "IS"):
            return self._of_features(records, stage, measure)
        values = [_get(record, stage, measure) for record in records]
        return mean_and_error([v for v in values if v is not None and not math.isnan(v)])

    def difference(self, row: str, to: str, stage: int, measure: str) -> Value | None:
        """Mean and standard error of what `row` has more than `to`, over the subjects and seeds that both have."""
        shared = self.rows[row].keys() & self.rows[to].keys()
        pairs = [
            (_get(self.rows[row][k], stage, measure), _get(self.rows[to][k], stage, measure)) for k in sorted(shared)
        ]
        return mean_and_error([a - b for a, b in pairs if a is not None and b is not None and not math.isnan(a - b)])

    def as_json(self) -> dict[str, list[dict[str, Value]]]:
        """Every mean and standard error: by row, then a dictionary a stage."""
        return {
            row: [
                {m: value for m in MEASURES if (value := self.value(row, stage, m)) is not None}
                for stage in range(self.stages)
            ]
            for row in self.rows
        }

    def _of_features(self, records: Sequence[dict[str, Any]], stage: int, measure: str) -> Value | None:
        files = [load_file(record["features"]) for record in records if record["features"]]
        rows = [file[f"{measure}/{stage}"] for file in files if f"{measure}/{stage}" in file]
        if len(rows) < 4 or (measure == "FVD" and stage not in self.references):
            return None
        if measure == "IS":
            return jackknife(torch.stack(rows), inception_score)
        mean, covariance = gaussian(self.references[stage])
        return jackknife(torch.stack(rows), lambda x: frechet_distance(*gaussian(x), mean, covariance))


def _place(record: dict[str, Any]) -> tuple[int, str, str, int]:
    """The order of records: rows as the paper has them, then others by name."""
    name = record["row"].partition(":")[0]
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return place, record["row"], record["subject"], record["seed"]


def _get(record: dict[str, Any], stage: int, measure: str) -> float | None:
    return record["seconds"] if measure == "seconds" else record["stages"][stage].get(measure)


def mean_and_error(values: Sequence[float]) -> Value | None:
    if not values:
        return None
    x = torch.tensor(values, dtype=torch.float64)
    return x.mean().item(), (x.std() / len(x) ** 0.5).item() if len(x) > 1 else math.nan


def jackknife(rows: Tensor, statistic: Callable[[Tensor], float], folds: int = 10) -> Value:
    """A statistic of all rows, and its standard error by leaving out one of `folds` parts at a time."""
    folds = min(folds, len(rows))
    part = torch.arange(len(rows)) % folds
    left_out = torch.tensor([statistic(rows[part != i]) for i in range(folds)], dtype=torch.float64)
    spread = (left_out - left_out.mean()).square().sum() * (folds - 1) / folds
    return statistic(rows), spread.sqrt().item()


def show(value: Value | None, digits: int, sign: bool = False) -> str:
    if value is None or math.isnan(value[0]):
        return "-"
    return f"{value[0]:{'+' if sign else ''}.{digits}f} ± {value[1]:.{digits}f}"


def markdown(results: Results, family: str, to: str = "zerosmooth") -> str:
    """Tables of all rows: for each stage a table a group of measures, and what the rows have more than the row `to`."""
    parts = []
    for stage in range(results.stages):
        parts.append(f"### {results.frames(stage)} frames")
        for title, group in GROUPS.items():
            if not (measured := [m for m in group if any(results.value(row, stage, m) for row in results.rows)]):
                continue
            paper = PAPER.get(family, {}) if "PSNR" in measured and stage in (1, 2) else {}
            head = [f"{title} (videos)", *measured, *(f"paper's {m}" for m in PAPER_MEASURES if paper)]
            body = []
            for row, records in results.rows.items():
                line = [f"{row} ({len(records)})", *(show(results.value(row, stage, m), group[m][0]) for m in measured)]
                theirs = [None] * len(PAPER_MEASURES) if row not in paper else paper[row][stage - 1]
                body.append(line + ["-" if v is None else str(v) for v in theirs if paper])
            parts.append(table(head, body))
        paired = [m for m in PAIRED if any(results.difference(row, to, stage, m) for row in results.rows)]
        if stage > 0 and to in results.rows and len(results.rows) > 1:
            body = [
                [row, *(show(results.difference(row, to, stage, m), MEASURES[m][0], sign=True) for m in paired)]
                for row in results.rows
                if row != to
            ]
            parts.append(table([f"Less {to}, in pairs", *paired], body))
    parts.append(
        "Mean ± standard error over videos, of FVD and IS by jackknife; differences of the same subjects and seeds. "
        "The paper's numbers are of the real checkpoint, other prompts and other detectors: only their order compares."
    )
    parts.append("\n".join(f"- `{m}`: {says}." for m, (_, says) in MEASURES.items()))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
