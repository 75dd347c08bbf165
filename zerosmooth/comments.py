"""The text that a file carries beside its frames: mp4's and GIF's comment, PNG's text "Comment".

`video.write_video` and `video.write_picture` write it; players, ffprobe and exiftool show it.
"""

from __future__ import annotations

import json
from typing import Any

from PIL.PngImagePlugin import PngInfo

KEY = "Comment"  # PNG's name for it


def as_comment(record: dict[str, Any]) -> str:
    """A record as one line of valid Unicode: half a surrogate pair stays JSON's escape."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def png_text(comment: str) -> PngInfo | None:
    """A comment as Pillow writes it into a PNG; None for an empty one."""
    info = PngInfo()
    info.add_text(KEY, comment)
    return info if comment else None
