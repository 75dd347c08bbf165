"""Files that are whole or not there, whatever happens to the process that writes them."""

from __future__ import annotations

import errno
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, what a killed process left behind stays
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\..+\.(\d+|[0-9a-f]{16})\.part(\.\w+)?")  # files that are being written
DAY = 86_400  # seconds
FULL = {errno.ENOSPC: "the disk is full; make room, or write elsewhere",
        errno.EDQUOT: "the disk quota is used up; make room, or write elsewhere",
        errno.EFBIG: "it exceeds the largest size of a file (see ulimit -f)"}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write the file `path`: a temporary file, which gets that name if nothing is raised.

    OSError, which names the path and the reason, if it cannot be written.
    """
    with scratch(path) as part:
        yield part
        part.replace(path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffix, removed at the end. OSError as `whole`.

    It is locked while it is in use: unlocked ones were left by killed processes, and are removed.
    Its name is drawn: in containers and on other machines, others have this process's number.
    """
    remove_left(path.absolute().parent)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        with part.open("wb") as file:
            _lock(file.fileno())
            yield part
    except OSError as error:
        reason = FULL.get(error.errno or 0) or (error.filename == str(part) and error.strerror)
        if not reason:  # it is about another file
            raise
        raise OSError(f"{path} cannot be written: {reason}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()


@cache
def remove_left(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder, once in a process."""
    for part in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # it is gone, or another user's
            if not PART.fullmatch(part.name) or -DAY < time.time() - part.stat().st_mtime < 1:
                continue  # a new file may not be locked yet; another machine's clock may be ahead
            with part.open("rb") as file:
                if _lock(file.fileno()):
                    part.unlink(missing_ok=True)


def _lock(file: int) -> bool:
    """Lock a file until it is closed. False if another process has, or the system cannot."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (OSError, AttributeError):  # no locks on its file system, or on Windows
        return False


def one_line(error: BaseException) -> str:
    """The first line of an exception's text, or its class if that is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
