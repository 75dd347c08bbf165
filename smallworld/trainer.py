"""A resumable training loop: Adam, a cosine, a running average of the weights, and a state that lies in a few files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    steps: int
    rate: float  # highest learning rate: reached after a warm-up, then a cosine to zero
    warmup: int = 100
    average: float = 0.999  # of the weights, a step

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Adam on the parameters of a module, with a running average of them, saved in and resumed from a folder."""

    def __init__(self, module: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.module, self.schedule, self.folder = module, schedule, folder
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        if (folder / "state.json").exists():
            self._resume()

    def run(self, loss_at: Callable[[int], Tensor], show: Callable[[int], None], every: int = 250) -> None:
        """Train to the schedule's end, saving every so many steps. loss_at(step) gives the loss; show(step) writes
        samples, with the average, every fifth time."""
        since, losses = time.perf_counter(), []
        while self.step < self.schedule.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.step)
            loss = loss_at(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
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
        moments = {  # zeros for what has not been trained yet
            key: {n: self.optimizer.state[p].get(key, torch.zeros_like(p)) for n, p in named.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "seconds": self.seconds, "log": self.log}
        parts = {self.folder / "state.json": self.folder / "state.json.part"}
        for name, tensors in {"weights": named, "average": self.average, **moments}.items():
            path = self.folder / f"{name}.safetensors"
            parts[path] = path.with_suffix(".part")
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, parts[path])
        parts[self.folder / "state.json"].write_text(json.dumps(state))
        for path, part in parts.items():  # all are written before any is replaced
            part.replace(path)

    def _resume(self) -> None:
        state = json.loads((self.folder / "state.json").read_text())
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        saved = {
            name: load_file(self.folder / f"{name}.safetensors")
            for name in ("weights", "average", "exp_avg", "exp_avg_sq")
        }
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(saved["weights"][name])
                self.average[name].copy_(saved["average"][name])
                moments = {k: saved[k][name].to(p.device) for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), **moments}
        print(f"{self.folder.name} goes on from step {self.step}", flush=True)


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
