"""Renames the tensors of a published checkpoint to ours, as tables say.

A row maps a pattern of source names to a target name. In a pattern `{}` stands for an index and `*`
for the rest of a name; in a target `{}` takes the next index and `{-1}` that index minus one.
Targets that end in `#0`, `#1`, .. are parts of one tensor, joined along the first axis (q, k and v,
say); those that end in `^T` are transposed. 1x1 convolutions may become linear layers: trailing
axes of size one that the target lacks are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor

from zerosmooth.fields import UserError

Shapes = Mapping[str, tuple[int, ...]]
Rows = list[tuple[str, str]]


class ConversionError(UserError):
    """The source is not the checkpoint that it should be; the text says what it looks like."""


@dataclass(frozen=True)
class Table:
    """Where the tensors of a source go.

    rows: (source pattern, target); the first that matches counts. dropped: source pattern -> why it
    is not needed; looked at before the rows. filled: target -> a function of its shape that makes
    it where the source has nothing for it.
    """

    rows: Rows
    dropped: dict[str, str] = field(default_factory=dict)
    filled: dict[str, Callable[..., Tensor]] = field(default_factory=dict)

    def within(self, source: str, target: str) -> Rows:
        """The rows, with a prefix put before each side."""
        return [(source + left, target + right) for left, right in self.rows]

    def drops(self, name: str) -> bool:
        """Whether a source tensor is not needed."""
        return any(_compile(pattern).fullmatch(name) for pattern in self.dropped)

    def place(self, name: str) -> tuple[str, int] | None:
        """The target of a source tensor, and which part of it the tensor is; None if no row matches
        it."""
        heads = self._by_head
        rows = sorted(row for end in range(len(name) + 1) for row in heads.get(name[:end], ()))
        for _, source, target in rows:
            if match := _compile(source).fullmatch(name):
                base, _, part = _fill(target.removesuffix("^T"), match).partition("#")
                return base, int(part or 0)
        return None

    @cached_property
    def _by_head(self) -> dict[str, list[tuple[int, str, str]]]:
        """The rows and their order, by what comes before the first wildcard: there are thousands,
        and few of them can match a name."""
        heads: dict[str, list[tuple[int, str, str]]] = {}
        for i, (source, target) in enumerate(self.rows):
            heads.setdefault(re.split(r"[{*]", source)[0], []).append((i, source, target))
        return heads


def same(*names: str) -> Rows:
    """Rows of modules whose names stay."""
    return [(f"{name}.*", f"{name}.*") for name in names]


def plan(table: Table, names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The source tensors that make each target, and the source names without a place: those that
    neither a row nor a `dropped` pattern matches, and those whose place is taken."""
    parts: dict[str, dict[int, str]] = {}
    unknown = []
    for name in names:
        if table.drops(name):
            continue
        place = table.place(name)
        if place is None or parts.setdefault(place[0], {}).setdefault(place[1], name) != name:
            unknown.append(name)
    return {target: [names[i] for i in sorted(names)] for target, names in parts.items()}, unknown


def convert(table: Table, shapes: Shapes, read: Callable[[str], Tensor],
            expected: Shapes) -> Iterator[tuple[str, Tensor]]:
    """Our tensors by name, read one at a time.

    shapes: of the source's tensors; read: returns one of them; expected: the shapes of ours.
    ConversionError, before anything is read, if a tensor is missing, unexpected or misshapen.
    """
    sources, unknown = plan(table, list(shapes))
    transposed = {target.removesuffix("^T") for _, target in table.rows if target.endswith("^T")}
    filled = {name: make for name, make in table.filled.items()
              if name in expected and name not in sources}
    wrong = []
    for target in expected.keys() & sources.keys():
        names, shape = sources[target], tuple(expected[target])
        shape = shape[::-1] if target in transposed else shape
        part = (shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape
        if any(_squeezed(shapes[name], part) != part for name in names):
            wrong.append(f"{' + '.join(f'{name} {shapes[name]}' for name in names)} for {shape}")
    unknown += [names[0] for target, names in sources.items() if target not in expected]
    missing = [name for name in expected if name not in sources and name not in filled]
    problems = {"no tensor for": missing, "unexpected tensors": unknown,
                "tensors of another shape": wrong}
    if any(problems.values()):
        raise ConversionError("the source " + "; ".join(
            f"has {what} {_some(names)}" for what, names in problems.items() if names))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for target in expected:
            if target in filled:
                yield target, filled[target](*expected[target])
                continue
            parts = [read(name) for name in sources[target]]
            joined = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield target, (joined.T if target in transposed else joined).reshape(expected[target])

    return tensors()


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", r"(.+)")
    return re.compile(text)


def _fill(target: str, match: re.Match[str]) -> str:
    """A target's name, its holes filled in order with what the pattern matched."""
    groups = iter(match.groups())

    def hole(found: re.Match[str]) -> str:
        value = next(groups)
        return str(int(value) - 1) if found.group() == "{-1}" else value

    return re.sub(r"\{\}|\{-1\}|\*", hole, target)


def _squeezed(got: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    head, tail = tuple(got[: len(expected)]), got[len(expected) :]
    return head if all(size == 1 for size in tail) else tuple(got)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}"
