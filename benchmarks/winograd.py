"""Would Winograd's 3x3 convolution make the networks faster on a CPU? Written in torch against the one they have.

    python -m benchmarks.winograd

F(2x2, 3x3) of Lavin and Gray (2015, arXiv 1509.09308) takes 4 products a pixel instead of 9, a transform of every tile
before and after them, and 16 numbers of a kernel instead of 9. Each line: the ratio where the transformed kernels are
kept, where they are made anew in every call, and the largest difference of the results in standard deviations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zerosmooth.kernels import Conv2d

from .timing import LEVELS, Work, by_turns, layer_arguments, ratio


def kernel(w: Tensor) -> Tensor:
    """The transformed kernel, 16 i o, of a convolution's o i 3 3."""
    g = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
    return (torch.kron(g, g) @ w.permute(2, 3, 1, 0).reshape(9, -1)).unflatten(1, (w.shape[1], w.shape[0]))


def convolve(x: Tensor, u: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with padding 1. x: n c h w in channels-last layout, h and w even; u: `kernel` of its weight."""
    n, c, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    tiles = torch.empty(4, 4, n, h // 2, w // 2, c)
    for i, rows in enumerate(combined(padded, 1)):
        for j, tile in enumerate(combined(rows, 2)):
            tiles[i, j] = tile
    m = (tiles.view(16, -1, c) @ u).view(4, 4, n, h // 2, w // 2, -1)
    y = torch.empty(n, h, w, u.shape[2])
    for i, rows in enumerate((m[0] + m[1] + m[2], m[1] - m[2] - m[3])):
        y[:, i::2, 0::2] = rows[0] + rows[1] + rows[2] + bias
        y[:, i::2, 1::2] = rows[1] - rows[2] - rows[3] + bias
    return y.permute(0, 3, 1, 2)


def combined(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of tiles of 4 that overlap by 2 along `dim`, the four sums and differences."""
    length = x.shape[dim] - 3
    index = torch.arange(0, length, 2)
    d0, d1, d2, d3 = (x.narrow(dim, k, length).index_select(dim, index) for k in range(4))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def main() -> None:
    args = layer_arguments(__doc__)
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        for channels, h, w in LEVELS[:-1]:  # the transform takes even sides
            x = torch.randn(args.frames, channels, h, w).contiguous(memory_format=torch.channels_last)
            layer = Conv2d(channels, channels, 3, padding=1)
            u, bias, y = kernel(layer.weight), layer.bias, layer(x)
            assert bias is not None
            error = ((convolve(x, u, bias) - y).abs().max() / y.std()).item()
            work: dict[str, tuple[Work, Work]] = {
                "kept": (lambda: None, lambda: convolve(x, u, bias)),
                "anew": (lambda: None, lambda: convolve(x, kernel(layer.weight), bias)),
                "ours": (lambda: None, lambda: layer(x)),
            }
            seconds = by_turns(work, args.repeats)
            kept, anew = (ratio(seconds[name], seconds["ours"]) for name in ("kept", "anew"))
            print(f"{channels} channels, {h}x{w}  kept {kept:.2f}  made anew {anew:.2f}  error {error:.0e}", flush=True)


if __name__ == "__main__":
    main()
