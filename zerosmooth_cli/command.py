"""How a command runs and ends: as one process or, by torchrun, several; its exit status, and what
its user is told of an error. Nothing that it prints ends it."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from zerosmooth.fields import UserError, printable, short
from zerosmooth.files import one_line
from zerosmooth.settings import device_of

T = TypeVar("T")
MEMORY = ("try --set offload=true sequential_guidance=true frame_chunk=4, a smaller "
          "decode_chunk_size or size")
_ended: list[int] = []  # signals that asked to end the command that runs
ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_command(name: str, work: Callable[[], int], interrupted: str) -> int:
    """The exit status of `work`. A mistake of the user is one line without a traceback; ours keeps
    it.

    interrupted: what holds after Ctrl-C, SIGTERM or SIGHUP, which all end it in the same way; empty
    to say nothing.
    """
    with _patient_output(), _ends():
        try:
            return work()
        except (Exception, KeyboardInterrupt) as error:
            if _ended or isinstance(error, KeyboardInterrupt):
                if interrupted:
                    print(f"\n{name}: stopped; {interrupted}", file=sys.stderr)
                if not isinstance(error, KeyboardInterrupt):  # other code made this of it
                    what = f"{type(error).__name__}: {text_of(error)}"
                    print(f"{name}: while stopping, {what}", file=sys.stderr)
                return 128 + _ended[0] if _ended else 130
            if (said := told(error)) is None:
                raise
            print(f"{name}: {said}", file=sys.stderr)
            return 1


def told(error: BaseException) -> str | None:
    """What to tell the user of an error; None if it is a fault of ours, or may come from an
    interruption."""
    if _ended:
        return None
    if isinstance(error, (UserError, OSError)):  # the system's words of a file
        return text_of(error)
    if isinstance(error, (RuntimeError, MemoryError)):
        what = out_of_memory(error)
        return None if what is None else f"{what}; {MEMORY}"
    return None


def text_of(error: Exception) -> str:
    """In one line, `printable`."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return printable(text)


def out_of_memory(error: BaseException) -> str | None:
    """What to tell if the device, or the machine, had no more memory, else None. torch has a class
    for errors of its own GPU allocator alone; the driver, cuBLAS and the CPU say it in words."""
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    said = any(word in str(error) for word in words)
    if not said and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return None
    return f"the device is out of memory: {str(error).partition(chr(10))[0]}".rstrip(": ")


@contextmanager
def _ends() -> Iterator[None]:
    """Signals that ask a process to end raise KeyboardInterrupt and are put into `_ended`. What is
    ignored, as under nohup, stays so. The second one ends the process at once."""

    def end(number: int, _: Any) -> None:
        _ended.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    def swallowed(unraisable: Any) -> None:
        """A callback, such as those of a fork, swallows what is raised in it: raise it again a
        little later."""
        hook(unraisable)
        if _ended and unraisable.exc_type is KeyboardInterrupt:
            signal.signal(_ended[0], end)
            again.append(threading.Timer(0.1, os.kill, (os.getpid(), _ended[0])))
            again[-1].start()

    again: list[threading.Timer] = []
    hook, before = sys.unraisablehook, {}
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler)
        found = {number: signal.getsignal(number) for number in ENDS}
        before = {number: old for number, old in found.items() if old in usual}
    for number in before:
        signal.signal(number, end)
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        _ended.clear()
        sys.unraisablehook = hook
        for timer in again:
            timer.cancel()
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _patient_output() -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Patient(out), _Patient(err)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = out, err


class _Patient:
    """A text stream that no writing to fails: what it cannot encode is escaped, and what nobody
    takes any more (a pipe whose reader is gone, a full disk) is dropped. What a terminal would obey
    is escaped, too: names and records are strangers'. It obeys the ends of lines, and what begins
    with a carriage return, as progress bars do."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):  # a pipe or file gets lines as they are printed, too
            stream.reconfigure(errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        begin = "\r" * text.startswith("\r")
        shown = begin + "\n".join(map(printable, text[len(begin) :].split("\n")))
        self._try(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, ValueError):  # ValueError: it is closed
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            except (OSError, ValueError):  # it is no file
                pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def first() -> bool:
    """Whether this process is the one that speaks for all; the only one if there are no others."""
    return os.environ.get("RANK", "0") == "0"


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def said_once() -> Iterator[None]:
    """What all processes print within is printed by the first one alone."""
    with nullcontext() if first() else redirect_stdout(io.StringIO()):
        yield


@contextmanager
def processes(args: Namespace) -> Iterator[tuple[int, int]]:
    """This process's number and how many there are, as torchrun says it; each on its own GPU.
    UserError if that does not fit together."""
    rank, world, local = (_told(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    hint = "start several processes by torchrun, or unset RANK and WORLD_SIZE"
    if (rank or 0) >= (world or 1):
        raise UserError(f"RANK={rank} of WORLD_SIZE={world}; {hint}")
    if world in (None, 1):
        yield 0, 1
        return
    device = device_of(args.device)
    if None in (rank, local):
        raise UserError(f"WORLD_SIZE={world} without RANK and LOCAL_RANK; {hint}")
    if device.type == "cuda":
        args.device = f"cuda:{local}"
        torch.cuda.set_device(device_of(args.device))
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=7))  # for Python objects
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the {world} processes do not meet ({one_line(error)}); {hint}") from error
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def _told(name: str) -> int | None:
    """A number in the environment. UserError if it is none."""
    if (text := os.environ.get(name)) is not None and not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{name}={short(text)} in the environment is no number; unset it")
    return None if text is None else int(text)


def together(value: T) -> list[T]:
    """The values of all processes, by number; waits for all of them."""
    if not _several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def once(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, given to all: for what can be read only once, such
    as a pipe. A UserError or OSError that it raises is a UserError in all processes."""
    found, error = None, None
    if first():
        try:
            found = work()
        except (UserError, OSError) as raised:
            if (error := told(raised)) is None:
                raise
    found, error = together((found, error))[0]
    if error:
        raise UserError(error)
    return found  # type: ignore[return-value]


def agreed(name: str, check: Callable[[], T]) -> T:
    """What `check` returns, once it has returned in all processes. A user's mistake that it raises
    in any ends all of them; the first process that met it prints it. name: of the command."""
    if not _several():
        return check()
    found, said = None, None
    try:
        found = check()
    except Exception as error:
        if (said := told(error)) is None:
            raise
    everyone = together(said)
    if not any(everyone):
        return found  # type: ignore[return-value]
    if said and everyone.index(said) == distributed.get_rank():
        print(f"{name}: {said}", file=sys.stderr)
    together(None)  # torchrun stops the others as soon as one ends
    raise SystemExit(1)
