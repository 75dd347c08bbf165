"""Names of the files of a result, by a template: "{prompt}_{seed}_{frames}"."""

from __future__ import annotations

import hashlib
import json
import re
import string
from typing import Any

from .settings import Settings, values

NAME = "{prompt}_seed{seed}_{digest}"  # no two results share it
LETTERS = 200  # of a name: file systems take 255 bytes, of which some are for what is added
FORBIDDEN = '<>:"/\\|?*{}'  # in names of files, somewhere, or in templates


def slug(text: str) -> str:
    """Of a text that people read, what any file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"


def digest(everything: list[Any]) -> str:
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]


def fields(settings: Settings) -> dict[str, Any]:
    """What a template may name beside prompt, seed, frames and digest: the frames for one key frame, and each setting
    by the name of its flag."""
    of = values(settings)
    of["key_frames"], of["scale"] = of.pop("frames"), settings.cascade.scale_of(settings.cascade.stages - 1)
    del of["scales"]
    return of


def used(template: str, settings: Settings) -> set[str]:
    """The fields that a template names. ValueError, which says what would do, for one that gives no names of files."""
    known = ["prompt", "seed", "frames", "digest", *fields(settings)]
    whole, found = {"seed", "frames"} | {k for k, v in fields(settings).items() if type(v) is int}, set()
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"--name {template!r}: {error}; write {{prompt}}, {{seed}} or {{seed:04}}") from error
    for _, name, width, conversion in parts:
        if name is None:
            continue
        if name not in known:
            raise ValueError(f"--name {template!r} has {{{name}}}; use {', '.join(known)}")
        if conversion or width and not (re.fullmatch(r"0?[1-9]", width) and name in whole):
            raise ValueError(f"--name {template!r}: only whole numbers take a width, as in {{seed:04}}")
        found.add(name)
    text = "".join(literal for literal, *_ in parts)
    if bad := next((c for c in text if c in FORBIDDEN or not c.isprintable()), None):
        raise ValueError(
            f"--name {template!r} has {bad!r}, which names of files cannot have; --outdir names the folder"
        )
    if not template.strip() or text.startswith((".", "-", " ")) and template.startswith(text[0]):
        raise ValueError(f"--name {template!r}: a name is needed that begins with a letter, a digit or a field")
    return found


def fill(template: str, **of: Any) -> str:
    """A template with the values of its fields. ValueError if it becomes too long for a file system."""
    name = template.format(**{k: slug(v) if isinstance(v, str) else v for k, v in of.items()})
    if len(name.encode()) > LETTERS:
        raise ValueError(
            f"--name makes a name of {len(name.encode())} bytes; up to {LETTERS} are possible: {name[:60]}.."
        )
    return name
