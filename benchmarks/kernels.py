"""What `zerosmooth.kernels` brings on this machine: its layers against torch's, in the sizes of
VideoCrafter2's UNet.

    python -m benchmarks.kernels

Each line: a layer, its operations a second in GFLOP, and the ratio of its time to that of torch's
own layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zerosmooth.kernels import Conv2d, Linear

from .timing import LEVELS, Work, by_turns, layer_arguments, ratio


def layers(c: int, h: int, w: int, frames: int) -> dict[str,
                                                        tuple[nn.Module, type[nn.Module], Tensor]]:
    """Of one level: ours, torch's class of it, and its input as it comes in the network."""
    tokens = torch.randn(1, frames, h * w, c)
    pixels = torch.randn(frames, c, h, w).contiguous(memory_format=torch.channels_last)
    return {"linear, 8 times as many out": (Linear(c, 8 * c), nn.Linear, tokens),
            "linear, as many out": (Linear(c, c), nn.Linear, tokens),
            "convolution 3x3": (Conv2d(c, c, 3, padding=1), nn.Conv2d, pixels)}


def main() -> None:
    args = layer_arguments(__doc__)
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        for c, h, w in LEVELS:
            for name, (ours, kind, x) in layers(c, h, w, args.frames).items():
                work: dict[str, tuple[Work, Work]] = {"ours": (lambda: None, lambda: ours(x)),
                                                      "torch": (lambda: None, lambda: kind.forward(
                            ours, x))}
                seconds = by_turns(work, args.repeats)
                rate = 2 * args.frames * h * w * ours.get_parameter("weight").numel() / min(seconds[
                        "ours"]) / 1e9
                value = ratio(seconds["ours"], seconds["torch"])
                print(f"{c} channels, {h}x{w}, {name}  {rate:.0f} GFLOP/s  {value:.2f}", flush=True)


if __name__ == "__main__":
    main()
