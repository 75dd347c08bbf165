"""Timing by turns: what is compared runs one after the other, over and over, so that all share the
noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

Work = Callable[[], object]


def by_turns(work: Mapping[str, tuple[Work, Work]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, run `repeats` times in turns after one that does not count.

    work: name -> (its preparation, which is not timed, and the work itself)."""
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


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in a new process, with clean memory. function: at a module's top level."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
