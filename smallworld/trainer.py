"""A resumable training loop: Adam or Muon, a cosine, a running average of the weights, and a state
that lies in one file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True)
class Schedule:
    steps: int
    rate: float  # highest learning rate: reached after a warm-up, then a cosine to zero
    warmup: int = 100
    # share of a step's running average that goes on into the next, at the most
    average: float = 0.999
    bfloat16: bool = False  # products in it: several times faster on CPUs that have AMX
    muon: bool = False  # its steps instead of Adam's, for matrices and kernels

    def share(self, step: int, start: int = 0) -> float:
        """Of the rate, at a step. start: the step at which Adam began."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return min(1.0, (step - start + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    def add(self, average: Any, weights: Any, n: Tensor | int) -> None:
        """To an average of n steps' weights, of which less goes on while they are few: the first
        are soon forgotten."""
        get_ema_multi_avg_fn(min(self.average, int(n) / (9 + int(n))))(average, weights, n)


class Muon(torch.optim.AdamW):
    """Adam, but matrices and kernels move along their momentum made orthogonal (Muon: Jordan et al.
    2024), as far as Adam would (Liu et al. 2025, arXiv 2502.16982)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or p.ndim < 2:
                    continue
                self.state[p].setdefault("step", torch.zeros(()))  # or Adam's would not be resumed
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonal(momentum.lerp(p.grad, 0.05).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(update.shape) ** 0.5
                p.sub_(update.view_as(p), alpha=group["lr"] * size)
                p.grad = None  # nothing is left for Adam
        return super().step(closure)


def orthogonal(x: Tensor) -> Tensor:
    """A matrix with the singular vectors of x and singular values near 1, by five steps of Newton
    and Schulz with Jordan's polynomial. x: m n."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
    return x


class Trainer:
    """Adam, or Muon, on the parameters of a module, with a running average of them, saved in and
    resumed from a folder.

    What is saved is of torch's own making; what is missing in it, as in what `lay_out` wrote,
    begins anew."""

    def __init__(self, module: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.module, self.steps, self.folder = module, schedule.steps, folder
        self.bfloat16 = schedule.bfloat16
        state = read_state(folder)
        self.start = start = state.get("start", 0)
        self.seconds, self.log = state.get("seconds", 0.0), state.get("log", [])
        module.load_state_dict(state.get("module", module.state_dict()))
        kind = Muon if schedule.muon else torch.optim.AdamW
        self.optimizer = kind(module.parameters(), schedule.rate, betas=(0.9, 0.99),
                              weight_decay=0.01)
        self.rate = LambdaLR(self.optimizer, lambda n: schedule.share(start + n, start))
        self.average = AveragedModel(module, multi_avg_fn=schedule.add)
        # what the module starts with, or the first update would only copy
        self.average.n_averaged += 1
        self.parts: dict[str, Any] = {
            "average": self.average,
            "optimizer": self.optimizer,
            "rate": self.rate
        }
        for name, part in self.parts.items():
            if name in state:
                part.load_state_dict(state[name])
        if state:
            print(f"{folder.name} goes on from step {self.step}" if self.step < self.steps else
                  f"{folder.name} has all of {self.steps} steps; give it more to go on", flush=True)

    @property
    def step(self) -> int:
        return self.start + self.rate.last_epoch

    def train(self,
              loss_at: Callable[[int], Tensor],
              show: Callable[[int, Any], None],
              every: int = 250) -> Any:
        """Train to the schedule's end, saving every so many steps. loss_at(step) gives the loss;
        show(step, averaged) writes samples of the module with its average weights, every fifth
        time. Returns that module."""
        since, losses = time.perf_counter(), []
        device = next(self.module.parameters()).device.type
        while self.step < self.steps:
            # on CPUs the backward pass of fused attention takes longer than plain products
            plain = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
            with torch.autocast(device, torch.bfloat16, self.bfloat16), plain:
                loss = loss_at(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.average.update_parameters(self.module)
            losses.append(loss.item())
            if self.step % 25 == 0:
                now = time.perf_counter()
                self.seconds, since = self.seconds + now - since, now
                self.log.append({
                    "step": self.step,
                    "loss": sum(losses) / len(losses),
                    "seconds": round(self.seconds)
                })
                print(f"{self.folder.name} {self.log[-1]}", flush=True)
                losses = []
            end = self.step == self.steps
            if self.step % every == 0 or end:
                self.save()
            if self.step % (5 * every) == 0 or end:
                show(self.step, self.average.module)
        return self.average.module

    def save(self) -> None:
        numbers = {"start": self.start, "seconds": self.seconds, "log": self.log}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        write_state(self.folder, {**numbers, "module": self.module.state_dict(), **parts})


def read_state(folder: Path) -> dict[str, Any]:
    """What was saved in a folder, on the CPU; nothing if nothing was. ValueError if another version
    saved it."""
    if (folder / "state.json").exists():
        raise ValueError(
            f"{folder} holds a run of an earlier version, which cannot go on; export it with that "
            "version, remove it, "
            "and go on from the exported file with --start")
    file = folder / "state.pt"
    return torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.pt.part"
    torch.save(state, part)
    part.replace(folder / "state.pt")


def lay_out(folder: Path, weights: dict[str, Tensor], step: int) -> None:
    """The state of a run of which only its weights at `step` are left: Adam and the average begin
    anew."""
    write_state(folder, {"module": weights, "start": step})
