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

from zerosmooth.checkpoint import sha256
from zerosmooth.fields import UserError
from zerosmooth_cli.command import out_of_memory

CLIP = 16  # frames


@dataclass(frozen=True)
class Detector:
    """answer: clip (float 1 3 f h w, 0 to 255) -> 1 d numbers. protocol: its name, and everything
    else that a number depends on besides the videos."""

    answer: Callable[[Tensor], Any]
    protocol: str
    device: torch.device

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """The numbers of a video's middle clip: d, float32 on the CPU. frames: uint8 f h w 3.
        UserError if the network does not take such a clip, or answers with something else."""
        start, name = max(0, (len(frames) - CLIP) // 2), f"detector {self.protocol.split(' ')[0]}"
        clip = frames[start : start + CLIP].to(self.device).permute(3, 0, 1, 2)[None].float()
        try:
            answer = self.answer(clip)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            shape, last = " ".join(map(str, clip.shape)), f"\n{error}".strip().splitlines()[-1]
            raise UserError(f"the {name} does not take clips of {shape} ({last})") from error
        if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
            what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise UserError(f"the {name} answers a clip with {what}; 1 x numbers is needed")
        return answer[0].float().cpu()


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

    how = " ".join(f"{name}=True" for name in asked) or "frames as they are"
    what = protocol(path, f"0 to 255, {how}")
    detector = Detector(lambda clip: network(clip, **asked), what, device)
    answer = detector(torch.zeros(CLIP, 64, 64, 3, dtype=torch.uint8))
    if probabilities and not abs(answer.sum().item() - 1) <= 1e-3:
        raise UserError(f"the detector {path} answers with numbers that do not sum to 1; class "
                        "probabilities are needed")
    return detector


def protocol(path: Path, how: str) -> str:
    """What a detector's numbers depend on. how: the range of its input, and what it answers."""
    return (f"{path.name} (sha256 {sha256(path)[:16]}), {how}; one clip a video, its middle {CLIP} "
            "frames (or all of fewer) at the video's own rate; covariance over n - 1, no splits")
