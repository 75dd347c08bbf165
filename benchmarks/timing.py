"""Timing by turns: what is compared runs one after the other, again and again, so that noise is
noise to all."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

Work = Callable[[], object]
LEVELS = [(320, 16, 24), (640, 8, 12), (1280, 4, 6), (1280, 2, 3)]  # channels, height, width of latents of 16x24


def layer_arguments(doc: str | None) -> argparse.Namespace:
    """The command line of a benchmark of single layers."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="images in a batch (default: 16)")
    parser.add_argument("--repeats", type=int, default=9,
                        help="runs of each, by turns (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    return parser.parse_args()


def by_turns(work: Mapping[str, tuple[Work, Work]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, `repeats` of each in turns, after one of each that does not
    count.

    work: name -> (what prepares it and is not timed, the work itself)."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, (prepare, run) in work.items():
            prepare()
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], *theirs: list[float]) -> float:
    """Median of ours over the smallest median of theirs."""
    return median(ours) / min(median(t) for t in theirs)


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in a process of its own, which starts and ends with clean memory. function:
    at a module's top."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
