"""What a field of a dataclass may hold: a value of its type, within the range that its annotation
gives; and the error for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


def printable(text: str) -> str:
    """A text as a terminal may have it: one line, in which what files bring along, such as escape
    codes, is written as Python would."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(ValueError):
    """Something that a user gave cannot be used; the text, which is `printable`, says what, and
    what can."""

    def __init__(self, text: object) -> None:
        super().__init__(printable(str(text)))


class Range(NamedTuple):
    """Of a number, or of each item of a tuple; both ends included."""

    low: float
    high: float


SEED = Range(-(2**63), 2**63 - 1)
PART = Range(0, 1)


def check_fields(value: Any) -> None:
    """UserError, which names the field and what would do, for a field of the wrong type or out of
    its range: `fps: Annotated[int, "key frames a second", Range(1, 1000)] = 8`."""
    hints = get_type_hints(type(value), include_extras=True)
    for field in fields(value):
        hint, limit = hints[field.name], None
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            limit = next((extra for extra in extras if isinstance(extra, Range)), None)
        check(field.name, getattr(value, field.name), hint, limit)


def check(name: str, value: Any, hint: Any, limit: Range | None = None) -> None:
    """UserError if a value that is called `name` is not of the type `hint`, or out of the range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return
        hint = next(kind for kind in inner if kind is not NoneType)
    elif origin is Literal:
        if value not in inner or type(value) is not type(inner[0]):
            raise UserError(f"{name}={short(value)}; use {' or '.join(map(str, inner))}")
        return
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise UserError(f"{name}={short(value)}; a tuple is needed, such as (2, 2)")
        for item in value:
            check(name, item, inner[0], limit)
        return
    kinds = (int, float) if hint is float else (hint,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        kind = type(value).__name__
        raise UserError(f"{name}={short(value)} is {kind}; {hint.__name__} is needed")
    if limit is not None and not limit.low <= value <= limit.high:
        raise UserError(f"{name}={short(value)}; use {limit.low} to {limit.high}")


def near(name: Any, names: Iterable[Any], otherwise: str = "") -> str:
    """What a message says of a name that is none of these: which it may have meant, or all.
    otherwise: what it says instead of all."""
    listed = [str(one) for one in names]
    if like := difflib.get_close_matches(name, listed, 1) if isinstance(name, str) else ():
        return f"did you mean {like[0]}?"
    return otherwise or f"use one of {', '.join(listed)}"


def short(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"(a number of {value.bit_length()} bits)"
    return text if len(text := repr(value)) <= 60 else f"{text[:56]}.."
