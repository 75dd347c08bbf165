"""How a command ends: what its user is told of an error, and the exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..header import CheckpointError

MEMORY = "try --offload, --sequential_guidance, --frame_chunk 4, a smaller --decode_chunk_size or size"


def run_command(name: str, work: Callable[[], int], interrupted: str) -> int:
    """The exit status of `work`. A mistake of the user is one line without a traceback; ours keeps it.

    interrupted: what holds after Ctrl-C, or after SIGTERM, which ends work in the same way.
    """
    try:
        with _stoppable():
            return work()
    except (CheckpointError, ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if (what := out_of_memory(error)) is None:
            raise
        print(f"{name}: {what}; {MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; {interrupted}", file=sys.stderr)
        return 130


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, and SIGTERM, which schedulers and containers send, raise a KeyboardInterrupt: what was begun is removed.
    Who lets Ctrl-C be ignored, as nohup does, keeps that."""
    try:
        before = {x: signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)}
        for number in [x for x, handler in before.items() if handler != signal.SIG_IGN]:
            signal.signal(number, signal.default_int_handler)
    except ValueError:  # not in the main thread, to which alone signals come
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def out_of_memory(error: RuntimeError) -> str | None:
    """What to tell if the device, or the machine, had no more memory, else None; on the CPU torch has no class of its
    own for that."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    return f"the device is out of memory: {str(error).partition(chr(10))[0]}".rstrip(": ")
