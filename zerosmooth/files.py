"""Files that are whole or not there, whatever happens to the process that writes them."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there, what a dead process left stays
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\..+\.\d+\.part(\.\w+)?")  # names of files that are being written
FULL = {
    errno.ENOSPC: "the disk is full; make room, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; make room, or write elsewhere",
    errno.EFBIG: "it grows beyond the largest size of a file (see ulimit -f)",
}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be the file `path`, which it becomes at the end if nothing was raised.

    OSError, which names the path and the likely reason, if it cannot be written.
    """
    with scratch(path) as part:
        yield part
        part.replace(path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A file beside `path`, with its suffix, that is gone at the end. It is locked, which tells it from those that a
    dead process left: they are removed. OSError as `whole`."""
    remove_left(path.absolute().parent)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with part.open("wb") as lock:
            if fcntl is not None:
                _lock(lock.fileno())
            yield part
    except OSError as error:
        reason = FULL.get(error.errno or 0) or (error.strerror if error.filename == str(part) else None)
        if reason is None:  # of something else
            raise
        raise OSError(f"{path} cannot be written: {reason}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # the place was no folder
            part.unlink()


@cache
def remove_left(folder: Path) -> None:
    """Remove what dead processes began to write in a folder; once is enough for a process."""
    if fcntl is None or not folder.is_dir():
        return
    for part in folder.iterdir():
        if not PART.fullmatch(part.name) or not part.is_file():
            continue
        try:
            with part.open("rb") as file:
                young = time.time() - part.stat().st_mtime < 1  # perhaps not locked yet
                if not young and _lock(file.fileno()):
                    part.unlink(missing_ok=True)
        except OSError:  # gone, or another user's
            continue


def _lock(file: int) -> bool:
    """Whether a file is now locked by us, until it is closed; not if another process has it, or no locks are kept."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or what it is if that is nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
