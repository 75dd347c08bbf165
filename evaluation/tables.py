"""From records to tables: means with standard errors, paired differences from a row, and the
paper's numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .metrics import frechet_distance, gaussian, inception_score
from .rows import ORDER, PAPER

Key = tuple[str, int, str]  # subject, seed, and an image's digest
Value = tuple[float, float | None]  # a number and its standard error
FEWEST = 4  # videos from which FVD and IS are computed
STATISTICS = ("FVD", "IS")  # of many videos together
# group: measure: digits to show, and what it says
GROUPS = {
    "As the paper measures": {
        "FVD": (2, "Frechet distance of features from the reference videos'; less is better"),
        "IS": (2, "inception score; more is better"),
        "PSNR": (2, "of the key frames against the base video, dB; more is better"),
        "SSIM": (3, "of the key frames against the base video; more is better"),
    },
    "How the inserted frames fit": {
        "jitter": (2, "second difference of the shape's path, RMS, pixels; less is better"),
        "off path": (2, "RMS distance from uniform motion between keys, pixels; less is better"),
        "color": (1, "distance of the colour from the key frames', of 255; less is better"),
        "area": (3, "relative difference of the area from the key frames'; less is better"),
        "redrawn": (2, "PSNR against what they should show, drawn from the key frames, dB"),
        "redrawn keys": (2, "the same of the key frames, dB: about the most `redrawn` can reach"),
        "uneven": (2, "deviation of the change from frame to frame over the places between keys, "
                      "relative to its mean; less is better"),
        "blend": (2, "PSNR against a linear blend of the key frames, dB: a mere fade scores high"),
    },
    "Inserted frames by the far world's law": {
        "law": (2, "PSNR against what the key frames' law says, dB; more is better"),
        **{kind: (2, f"the same where things {what}") for kind, what in
           {"bounce": "bounce", "spin": "spin", "hide": "hide", "pan": "are panned over"}.items()},
        **{speed: (2, f"the same where they go {much} latent pixels a key frame") for speed, much in
           {"slowly": "0.5", "steadily": "1", "quickly": "2"}.items()},
        "worst": (2, "the same, of each video's worst twentieth of frames"),
        "dip": (2, "from the best time between two key frames to the worst, dB; less is better"),
        "place": (2, "pixels from where the shape should be; less is better"),
        "angle": (1, "degrees from how it should be turned; less is better"),
        "ghost": (3, "share of colour beside the shape; of a pan, of variance not its own"),
        "missing": (3, "share of the shape that should be seen and is not; less is better"),
        "hidden": (3, "error of the share of the shape that a pillar hides; less is better"),
    },
    "What the videos show": {
        **{f"{what} right": (2, "share of videos")
           for what in ("color", "shape", "direction", "speed")},
        "lost": (2, "share of frames (of videos in the far world) without a shape; less is better"),
        "seconds": (1, "to make a video, all its stages"),
    },
}
MEASURES = {name: facts for group in GROUPS.values() for name, facts in group.items()}
WORST = {  # measures that have a worst end, and whether that is the high one
    **dict.fromkeys(("PSNR", "SSIM", "redrawn"), False),
    **dict.fromkeys(("jitter", "off path", "color", "area", "uneven"), True)}
PAPER_MEASURES = list(GROUPS["As the paper measures"])
NOTE = ("Mean ± standard error over videos. FVD and IS are of the {} subjects and seeds that rows "
        "have, with errors by jackknife; few videos raise FVD, even that of a perfect row. "
        "Videos whose shape is lost in a frame have no motion. The worst twentieth is the mean of "
        "that share of the videos, of fewer than 20 the worst one. FreeNoise draws no fresh noise: "
        "where others do, it has base videos of its own. The paper's numbers are of the real "
        "checkpoint, other prompts and other detectors: only their order compares.")


class Results:
    """Records by row, and what they measure by stage.

    references: of each stage, features n d of reference videos. FVD and IS depend on the number of
    videos, so all rows are measured on the same subjects and seeds, those that every row has; rows
    that lack some of them, and were not `asked` for, have neither.
    """

    def __init__(self, records: Sequence[dict[str, Any]], references: dict[int, Tensor],
                 asked: Collection[str] = ()) -> None:
        self.references = references
        self.rows: dict[str, dict[Key, dict[str, Any]]] = {}
        for record in sorted(records, key=_place):
            key = record["subject"], record["seed"], record.get("image_sha256", "")
            self.rows.setdefault(record["row"], {})[key] = record
        self.frames = [stage["frames"] for stage in records[0]["stages"]]
        self.stages = len(self.frames)
        those = [row for row in self.rows if row in asked] or self.rows
        self.shared = sorted(set.intersection(*(set(self.rows[row]) for row in those)))
        self.features = {
            row: [load_file(of_row[k]["features"]) for k in self.shared
                  if k in of_row and of_row[k]["features"]]
            for row, of_row in self.rows.items()
        }

    @cache
    def value(self, row: str, stage: int, measure: str, less: str | None = None) -> Value | None:
        """Mean and standard error; None if it was not measured. Videos whose shape is lost (NaN)
        are left out. less: a row that is subtracted, over the subjects and seeds of both."""
        rows = [row] if less is None else [row, less]
        if measure in STATISTICS:
            features = [self._features(row, stage, measure) for row in rows]
            there = [x for x in features if x is not None]
            if len(there) < len(rows):
                return None
            return statistic(measure, there[0], self.references.get(stage), *there[1:])
        of = [self.rows[row] for row in rows]
        each = ([_get(x[key], stage, measure) for x in of] for key in of[0] if key in of[-1])
        return mean_and_error([one[0] - sum(one[1:]) for one in each])

    def worst(self, row: str, stage: int, measure: str) -> Value | None:
        """Mean of the worst twentieth of its videos."""
        return worst(measure, [_get(x, stage, measure) for x in self.rows[row].values()])

    def as_json(self, to: str = "zerosmooth") -> dict[str, dict[str, Any]]:
        """By row: the number of videos, and for each stage the mean and standard error of every
        measure and of its difference from the row `to`."""

        def values(row: str, stage: int, less: str | None = None) -> dict[str, Value]:
            return {m: v for m in MEASURES if (v := self.value(row, stage, m, less))}

        def of_stage(row: str, s: int) -> dict[str, Any]:
            low = {m: v[0] for m in WORST if (v := self.worst(row, s, m))}
            return {"frames": self.frames[s], "values": values(row, s), "worst twentieth": low,
                    f"less {to}": values(row, s, to) if to in self.rows else {}}

        return {row: {"videos": len(x), "stages": [of_stage(row, s) for s in range(self.stages)]}
                for row, x in self.rows.items()}

    def _features(self, row: str, stage: int, measure: str) -> Tensor | None:
        """n d, of the shared subjects and seeds; None if there are too few, or no references."""
        name = f"{measure}/{stage}"
        rows = [file[name] for file in self.features[row] if name in file]
        if len(rows) < max(FEWEST, len(self.shared)):
            return None
        return None if measure == "FVD" and stage not in self.references else torch.stack(rows)


def _place(record: dict[str, Any]) -> tuple[int, str, str, int]:
    """The order of records: rows as in the paper, then others by name."""
    name = record["row"].partition(":")[0]
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return place, record["row"], record["subject"], record["seed"]


def _get(record: dict[str, Any], stage: int, measure: str) -> float:
    """NaN if it was not measured."""
    return (record if measure == "seconds" else record["stages"][stage]).get(measure, math.nan)


def mean_and_error(values: Sequence[float]) -> Value | None:
    """Of the finite values; the error of a single one is None."""
    x = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    if not len(x):
        return None
    return x.mean().item(), (x.std() / len(x) ** 0.5).item() if len(x) > 1 else None


def worst(measure: str, values: Sequence[float]) -> Value | None:
    """Mean of the worst twentieth of the finite values, or of the worst one of fewer than 20; None
    if the measure has no worst end."""
    x = sorted((v for v in values if math.isfinite(v)), reverse=WORST.get(measure, False))
    if measure not in WORST or not x:
        return None
    some = x[: math.ceil(len(x) / 20)]
    return sum(some) / len(some), None


def statistic(measure: str, rows: Tensor, reference: Tensor | None,
              less: Tensor | None = None) -> Value:
    """FVD or IS of features or class probabilities (n d). less: those of other videos in the same
    order, whose FVD or IS is subtracted."""

    def one(x: Tensor) -> float:
        if measure == "IS":
            return inception_score(x)
        assert reference is not None
        return frechet_distance(*gaussian(x), *gaussian(reference))

    if less is None:
        return jackknife(rows, one)
    return jackknife(torch.stack([rows, less], dim=1), lambda x: one(x[:, 0]) - one(x[:, 1]))


def jackknife(rows: Tensor, of: Callable[[Tensor], float], folds: int = 10) -> tuple[float, float]:
    """of(rows), and its standard error by leaving out one of `folds` parts at a time."""
    folds = min(folds, len(rows))
    part = torch.arange(len(rows)) % folds
    left_out = torch.tensor([of(rows[part != i]) for i in range(folds)], dtype=torch.float64)
    spread = (left_out - left_out.mean()).square().sum() * (folds - 1) / folds
    return of(rows), spread.sqrt().item()


def show(value: Value | None, digits: int, sign: str = "") -> str:
    """sign: "+" to write that of positive numbers too."""
    if value is None:
        return "-"
    error = "" if value[1] is None else f" ± {value[1]:.{digits}f}"
    return f"{value[0]:{sign}.{digits}f}{error}"


def markdown(results: Results, family: str, to: str = "zerosmooth") -> str:
    """For each stage a table of all rows for each group of measures, and one of the differences
    from the row `to`."""
    parts: list[str] = []
    said: dict[str, str] = {}
    for stage in range(results.stages):
        parts.append(f"### {results.frames[stage]} frames")
        for title, group in GROUPS.items():
            values = {m: [results.value(row, stage, m) for row in results.rows] for m in group}
            measured = [m for m in group if any(values[m])]
            if not measured:
                continue
            said |= {m: group[m][1] for m in measured}
            paper = PAPER.get(family, {}) if "PSNR" in measured and stage in (1, 2) else {}
            beside = PAPER_MEASURES if paper else []
            head = [title, "videos", *measured, *(f"paper's {m}" for m in beside)]
            body = []
            for i, (row, of_row) in enumerate(results.rows.items()):
                theirs = paper[row][stage - 1] if row in paper else [None] * len(beside)
                body.append([row, str(len(of_row)),
                             *(show(values[m][i], group[m][0]) for m in measured),
                             *("-" if v is None else str(v) for v in theirs)])
            parts.append(table(head, body))
        low = {m: [results.worst(row, stage, m) for row in results.rows] for m in WORST}
        if measured := [m for m in low if any(low[m])]:
            body = [[row, *(show(low[m][i], MEASURES[m][0]) for m in measured)]
                    for i, row in enumerate(results.rows)]
            parts.append(table(["Worst twentieth of the videos", *measured], body))
        others = [row for row in results.rows if row != to]
        if stage > 0 and to in results.rows and others:
            less = {m: [results.value(row, stage, m, to) for row in others]
                    for m in MEASURES if m != "seconds"}
            paired = [m for m in less if any(less[m])]
            body = [[row, *(show(less[m][i], MEASURES[m][0], "+") for m in paired)]
                    for i, row in enumerate(others)]
            parts.append(table([f"Row minus {to}, pair by pair", *paired], body))
    parts.append(NOTE.format(len(results.shared)))
    parts.append("\n".join(f"- `{m}`: {says}." for m, says in said.items()))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
