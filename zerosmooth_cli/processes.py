"""Several processes of one command, as torchrun starts them: who is who, and what they tell each
other."""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from zerosmooth.fields import UserError
from zerosmooth.settings import device_of

from .command import told

T = TypeVar("T")


def first() -> bool:
    """Whether this process is the one that speaks for all; the only one if there are no others."""
    return int(os.environ.get("RANK", 0)) == 0


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def said_once() -> Iterator[None]:
    """What all processes print within is printed by the first one alone."""
    with nullcontext() if first() else redirect_stdout(io.StringIO()):
        yield


@contextmanager
def processes(args: Namespace) -> Iterator[tuple[int, int]]:
    """This process's number and how many there are, as torchrun says it; each on its own GPU."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    device = device_of(args.device)
    if device.type == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device_of(args.device))
    distributed.init_process_group("gloo", timeout=timedelta(days=7))  # for Python objects
    try:
        yield distributed.get_rank(), world
    finally:
        distributed.destroy_process_group()


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
