"""The text that a file carries beside its frames: mp4's and GIF's comment, PNG's text "Comment".

Written by `video.write_video` and `video.write_picture`; any player, ffprobe or exiftool shows it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import one_line

KEY = "Comment"  # PNG's word for it
LARGEST = 4_000_000  # bytes of a comment, or of a json
BOXES = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")  # the way to it in an mp4, from outside in


def as_comment(record: dict[str, Any]) -> str:
    """A record as one line that is text in any encoding of Unicode: half a surrogate pair stays JSON's escape."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def png_text(comment: str) -> PngInfo | None:
    """What Pillow writes into a PNG; None for an empty comment."""
    info = PngInfo()
    info.add_text(KEY, comment)
    return info if comment else None


def read_comment(path: Path) -> str:
    """Of an mp4, a GIF or a PNG; of a json, all of it. Empty if it has none. ValueError, which names the path, for any
    other file, and one that cannot be read."""
    if not path.is_file():  # to read a pipe could take for ever
        raise ValueError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if path.suffix.lower() == ".json":
                comment = file.read(LARGEST)
            elif head[4:] == b"ftyp":
                comment = _mp4(file, path.stat().st_size)
            elif head.startswith((b"GIF8", b"\x89PNG")):
                with Image.open(file, formats=("GIF", "PNG")) as image:
                    found = image.info.get("comment", image.info.get(KEY, ""))
                comment = found.encode(errors="replace") if isinstance(found, str) else found
            else:
                raise ValueError("it is no mp4, GIF, PNG or json")
        return comment.decode("utf-8")
    except Exception as error:  # whatever damage makes of a file
        raise ValueError(f"{path} cannot be read ({one_line(error)})") from error


def _mp4(file: BinaryIO, end: int) -> bytes:
    start = 0
    for name in BOXES:
        box = next((inner for kind, *inner in _boxes(file, start, end) if kind == name), None)
        if box is None:
            return b""
        start, end = box
        start += 4 if name == b"meta" else 0  # its version
    start += 8  # of `data`: its type and locale
    file.seek(start)
    return file.read(max(0, min(end - start, LARGEST)))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and where what it holds begins and ends, of the boxes of a stretch of an mp4."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        elif size == 0:  # to the end of the file
            size = end - start
        if size < head or start + size > end:
            return
        yield kind, start + head, start + size
        start += size
