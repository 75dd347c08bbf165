"""Corrections carried along the motion between key frames."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zerosmooth.extensions.motion import carried, match
from zerosmooth.extensions.predictions import anchored, lines
from zerosmooth.operators import S

N, K = 4, 4


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texture(size: int = 64) -> torch.Tensor:
    x = noise(1, 3, size, size)
    for _ in range(3):
        x = F.avg_pool2d(x, 3, 1, 1)
    return x / x.std()


def pan(speed: float, frames: int = (K - 1) * N + 1) -> torch.Tensor:
    """A camera that moves `speed` pixels a key frame over a texture: 1 f c h w."""
    big, out = texture(), []
    for i in range(frames):
        y, x = torch.meshgrid(torch.arange(16) + 20.0, torch.arange(16) + 10.0 + speed * i / N,
                              indexing="ij")
        at = torch.stack([x, y], -1)[None] * 2 / (big.shape[-1] - 1) - 1
        out.append(F.grid_sample(big, at, "bicubic", align_corners=True)[0])
    return torch.stack(out)[None]


def disc(speed: float) -> torch.Tensor:
    """A disc of 2.3 pixels that crosses an even ground: 1 f c h w."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    frames = [torch.sigmoid(3 * (2.3 - ((x - 3 - speed * i / N) ** 2 + (y - 8) ** 2).sqrt()))
              for i in range((K - 1) * N + 1)]
    return torch.stack(frames)[None, :, None] * torch.tensor([1.0, -0.5, 2.0]).view(3, 1, 1)


def error(lift, video: torch.Tensor) -> float:
    """Of the frames between, over the video's variance, where its own key frames are lifted."""
    keys = video[:, ::N]
    inserted = torch.arange(video.shape[1]) % N > 0
    made = lift(N, keys, keys)[:, : video.shape[1]]
    return ((made - video)[:, inserted].square().mean() / video.var()).item()


def test_key_frames_are_themselves_and_the_last_one_stays():
    y, keys = noise(2, K, 3, 8, 10), noise(2, K, 3, 8, 10, seed=1)
    out = carried(N, y, keys)
    assert torch.equal(S(N).measure(out), y)
    assert torch.equal(out[:, -N:], y[:, -1:].expand(-1, N, -1, -1, -1))


def test_what_is_the_same_everywhere_stays_so():
    keys, y = pan(3)[:, ::N], torch.full((1, K, 3, 16, 16), 0.7)
    assert_close(carried(N, y, keys), torch.full((1, K * N, 3, 16, 16), 0.7))


def test_between_key_frames_that_stand_still_it_is_lines_bitwise():
    keys = pan(0)[:, ::N]
    y = noise(1, K, 3, 16, 16)
    assert torch.equal(carried(N, y, keys), lines(N, y, keys))


@pytest.mark.parametrize("speed", [1.0, -2.0, 3.0])
def test_matching_reads_a_pan(speed):
    keys = pan(speed)[0, ::N]
    flow = match(keys[:-1], keys[1:])[:, :, 4:-4, 4:-4]
    assert_close(flow[:, 0], torch.full_like(flow[:, 0], -speed), rtol=0, atol=0.1)
    assert flow[:, 1].abs().max() < 0.1


@pytest.mark.parametrize(("video", "share"), [
    (pan(1.5), 0.3), (pan(3.0), 0.3), (disc(1.5), 0.3), (disc(3.0), 0.1), (disc(4.0), 0.2)])
def test_what_moves_far_is_followed(video, share):
    assert error(carried, video) < share * error(lines, video)


@pytest.mark.parametrize("video", [pan(0.3), disc(0.3), disc(0.6)])
def test_what_moves_little_is_no_worse_than_by_lines(video):
    assert error(carried, video) < error(lines, video) + 6e-4


def test_noise_is_not_followed():
    keys, y = noise(1, K, 4, 8, 8), noise(1, K, 4, 8, 8, seed=1)
    assert (carried(N, y, keys) - lines(N, y)).abs().mean() < 0.35 * y.std()


def test_anchored_along_motion_keeps_key_frames_in_all_stages():
    x0s = [noise(1, K * n, 3, 8, 8, seed=n) for n in (1, 2, 4)]
    got = anchored((2, 2), carried)(0, x0s)
    assert got[0] is x0s[0]
    assert torch.equal(got[1][:, ::2], x0s[0]) and torch.equal(got[2][:, ::2], got[1])


def facade(offsets: list[float], period: int) -> torch.Tensor:
    """A grid of windows that moves by so many of 8 pixels a latent, seen as latents."""
    at = torch.arange(256.0)
    lit = [((at + offset) % period < period / 2).float() for offset in offsets]
    return torch.stack([F.avg_pool2d((x[:, None] * x)[None, None], 8)[0] for x in lit])[None]


def test_a_pattern_that_fits_at_many_places_is_left_to_lines():
    """Matching alone was up to 58 times as wrong as lines here."""
    worse = []
    for period in (14, 18, 20, 22, 28, 36):
        for step in (2, 3, 4):  # of 8 from key frame to key frame
            true = facade([i * step / 4 for i in range(9)], period)
            keys = true[:, ::4]
            wrong = [(lift(4, keys, keys)[:, :9] - true).square().mean()
                     for lift in (lines, carried)]
            worse.append((wrong[1] / wrong[0]).item())
    assert max(worse) < 3 and sum(worse) / len(worse) < 1.5
