"""A resumable training loop: Adam, a cosine, a running average of the weights, and a state that lies in a few files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ADAM = ("exp_avg", "exp_avg_sq", "step")  # of each parameter: moments, and how often it was trained


@dataclass(frozen=True)
class Schedule:
    steps: int
    rate: float  # highest learning rate: reached after a warm-up, then a cosine to zero
    warmup: int = 100
    average: float = 0.999  # of the weights, a step

    def rate_at(self, step: int, start: int = 0) -> float:
        """start: the step at which Adam began."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        warm = min(1.0, (step - start + 1) / self.warmup)
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Adam on the parameters of a module, with a running average of them, saved in and resumed from a folder."""

    def __init__(self, module: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.module, self.schedule, self.folder = module, schedule, folder
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.step, self.start, self.seconds = 0, 0, 0.0
        self.log: list[dict[str, float]] = []
        if (folder / "state.json").exists():
            self._resume()

    def train(self, loss_at: Callable[[int], Tensor], show: Callable[[int], None], every: int = 250) -> None:
        """Train to the schedule's end, saving every so many steps. loss_at(step) gives the loss; show(step) writes
        samples, with the average, every fifth time."""
        since, losses = time.perf_counter(), []
        while self.step < self.schedule.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.step, self.start)
            loss = loss_at(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            seen = self.step - self.start
            decay = min(self.schedule.average, (1 + seen) / (10 + seen))
            with torch.no_grad():
                for name, p in self.module.named_parameters():
                    self.average[name].lerp_(p, 1 - decay)
            losses.append(loss.item())
            self.step += 1
            if self.step % 25 == 0:
                now = time.perf_counter()
                self.seconds, since = self.seconds + now - since, now
                self.log.append({"step": self.step, "loss": sum(losses) / len(losses), "seconds": round(self.seconds)})
                print(f"{self.folder.name} {self.log[-1]}", flush=True)
                losses = []
            end = self.step == self.schedule.steps
            if self.step % every == 0 or end:
                self.save()
            if self.step % (5 * every) == 0 or end:
                with self.averaged():
                    show(self.step)

    def averaged(self) -> _Swapped:
        """Within `with`, the module has the running average of its weights."""
        return _Swapped(self.module, self.average)

    def save(self) -> None:
        named: dict[str, Tensor] = dict(self.module.named_parameters())
        untrained = {n: _untrained(p) for n, p in named.items()}
        adam = {key: {n: self.optimizer.state[p].get(key, untrained[n][key]) for n, p in named.items()} for key in ADAM}
        state = {"step": self.step, "start": self.start, "seconds": self.seconds, "log": self.log}
        write_state(self.folder, state, {"weights": named, "average": self.average, **adam})

    def _resume(self) -> None:
        state = json.loads((self.folder / "state.json").read_text())
        self.step, self.start = state["step"], state["start"]
        self.seconds, self.log = state["seconds"], state["log"]
        saved = {name: load_file(self.folder / f"{name}.safetensors") for name in ("weights", "average", *ADAM)}
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(saved["weights"][name])
                self.average[name].copy_(saved["average"][name])
                moments = {key: saved[key][name].to(p.device) for key in ADAM if key != "step"}
                self.optimizer.state[p] = {"step": saved["step"][name], **moments}
        print(f"{self.folder.name} goes on from step {self.step}", flush=True)


def write_state(folder: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
    """What `Trainer` resumes from. tensors: "weights", "average" and ADAM, each by parameter."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, named in tensors.items():
        path = folder / f"{name}.safetensors"
        parts[path] = path.with_suffix(".part")
        save_file({k: v.detach().contiguous() for k, v in named.items()}, parts[path])
    parts[folder / "state.json"] = folder / "state.json.part"
    parts[folder / "state.json"].write_text(json.dumps(state))
    for path, part in parts.items():  # all are written before any is replaced, the step that they are of last
        part.replace(path)


def lay_out(folder: Path, weights: dict[str, Tensor], step: int) -> None:
    """The state of a run of which only its weights at `step` are left: Adam begins anew."""
    adam = {key: {name: _untrained(x)[key] for name, x in weights.items()} for key in ADAM}
    state = {"step": step, "start": step, "seconds": 0.0, "log": []}
    write_state(folder, state, {"weights": weights, "average": weights, **adam})


def _untrained(p: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter that it has not trained."""
    return {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.tensor(0.0)}


class _Swapped:
    def __init__(self, module: nn.Module, values: dict[str, Tensor]) -> None:
        self.module, self.values = module, values

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._put(self.values)

    def __exit__(self, *exception: object) -> None:
        self._put(self.kept)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(values[name])
