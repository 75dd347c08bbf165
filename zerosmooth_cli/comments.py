"""Reads the text that a file carries beside its frames, which `zerosmooth.comments` describes."""

from __future__ import annotations

import re
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from zerosmooth.comments import KEY
from zerosmooth.fields import UserError
from zerosmooth.files import one_line

LARGEST = 4_000_000  # bytes of a comment, or of a json
# An mp4's comment: the name of its box, then a box of size, name, type and locale, and the text.
MP4 = re.compile(rb"\xa9cmt(....)data\0\0\0.....", re.DOTALL)


def read_comment(path: Path) -> str:
    """The comment of an mp4, GIF or PNG, or all of a json. Empty if there is none. UserError for
    any other file, and for one that cannot be read."""
    if not path.is_file():  # a pipe might never end
        raise UserError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if path.suffix.lower() == ".json":
                comment = file.read(LARGEST)
            elif head[4:] == b"ftyp":
                comment = _mp4(file)
            elif head.startswith((b"GIF8", b"\x89PNG")):
                with Image.open(file, formats=("GIF", "PNG")) as image:
                    comment = image.info.get("comment", image.info.get(KEY, ""))
            else:
                raise ValueError("it is no mp4, GIF, PNG or json")
        return comment if isinstance(comment, str) else comment.decode("utf-8")
    except Exception as error:  # damaged files make decoders raise anything
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error


def _mp4(file: BinaryIO) -> bytes:
    with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if (found := MP4.search(content)) is None:
            return b""
        size = int.from_bytes(found[1], "big") - 16  # of the text: the box's without its head
        return content[found.end() : found.end() + min(max(size, 0), LARGEST)]
