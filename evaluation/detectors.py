"""Networks that turn clips into features, for Frechet distances, or into class probabilities, for
inception scores.

The field's detectors are TorchScript files: `i3d_torchscript.pt` (Kinetics-400, features) for FVD
and `c3d_ucf101.pt` (UCF-101, class probabilities) for IS, both from StyleGAN-V (Skorokhodov et al.
2022). Numbers compare only where the protocol is the same, so it is printed with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerosmooth.cli.command import out_of_memory
from zerosmooth.fields import UserError
from zerosmooth.header import sha256

CLIP = 16  # frames


@dataclass(frozen=True)
class Detector:
    """answer: clip (float 1 3 f h w, 0 to 255) -> 1 d numbers. protocol: everything that a number
    depends on besides the videos."""

    answer: Callable[[Tensor], Tensor]
    protocol: str
    device: torch.device

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """The numbers of a video's middle clip: d, float32 on the CPU. frames: uint8 f h w 3.
        UserError if the network does not take such a clip."""
        start = max(0, (len(frames) - CLIP) // 2)
        clip = frames[start : start + CLIP].to(self.device).permute(3, 0, 1, 2)[None].float()
        try:
            return self.answer(clip)[0].float().cpu()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            name, shape = self.protocol.split(" ")[0], " ".join(map(str, clip.shape))
            raise UserError(f"{name} does not take clips of {shape} ({_last(error)})") from error


def load_torchscript(what: str, path: Path, device: torch.device) -> Any:
    """The network of a TorchScript file. UserError, which calls it `what`, if it is not one."""
    if not path.is_file():
        raise UserError(f"the {what} {path} does not exist")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"the {what} {path} is not a TorchScript file ({first})") from error


def torchscript(path: Path, device: torch.device, probabilities: bool) -> Detector:
    """The detector in a TorchScript file. UserError if it does not answer a clip with a row of
    numbers, which with `probabilities` must sum to 1."""
    network = load_torchscript("detector", path, device)
    known = {argument.name for argument in network.forward.schema.arguments}
    asked = {name: True for name in ("rescale", "resize", "return_features") if name in known}

    def answer_to(clip: Tensor) -> Tensor:
        return network(clip, **asked)

    try:
        with torch.inference_mode():
            answer = answer_to(torch.zeros(1, 3, CLIP, 64, 64, device=device))
    except RuntimeError as error:
        raise UserError(f"the detector {path} does not take clips of 1 3 {CLIP} h w "
                        f"({_last(error)})") from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"the detector {path} answers a clip with {what}; 1 x numbers is needed")
    if probabilities and not abs(answer.sum().item() - 1) <= 1e-3:
        raise UserError(f"the detector {path} answers with numbers that do not sum to 1; class "
                        "probabilities are needed")
    how = " ".join(f"{name}=True" for name in asked) or "frames as they are"
    return Detector(answer_to, protocol(path, f"0 to 255, {how}"), device)


def protocol(path: Path, how: str) -> str:
    """What a detector's numbers depend on. how: the range of its input, and what it answers."""
    return (f"{path.name} (sha256 {sha256(path)[:16]}), {how}; one clip a video, its middle {CLIP} "
            "frames (or all of fewer) at the video's own rate; covariance over n - 1, no splits")


def _last(error: RuntimeError) -> str:
    """The last line, where TorchScript says what went wrong."""
    return (str(error).strip().splitlines() or [""])[-1]
