"""What must hold of windows, fusion and positions (paper Eq. 16-22)."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zerosmooth.attention import (
    TemporalAttention,
    attend_frames,
    frame_positions,
    fusion_matrix,
    fusion_weights,
    windowed,
    windows,
)
from zerosmooth.bus import HiddenStateBus
from zerosmooth.models.positions import RelativePosition

CASES = [
    (f, w, o) for w, o in ((16, 8), (14, 7), (25, 12), (8, 0), (5, 3), (1, 0)) for f in (w, w + 1, 2 * w, 4 * w, 71)
]


@pytest.mark.parametrize("f,window,overlap", CASES)
def test_windows_cover_every_frame_and_have_one_length(f, window, overlap):
    spans = windows(f, window, overlap)
    assert {frame for start, end in spans for frame in range(start, end)} == set(range(f))
    assert all(end - start == min(f, window) for start, end in spans)
    assert len(spans) == max(0, ceil((f - window) / (window - overlap))) + 1
    assert len(set(spans)) == len(spans)


def test_windows_of_the_paper():
    assert windows(32, 16, 8) == [(0, 16), (8, 24), (16, 32)]
    assert windows(30, 16, 8) == [(0, 16), (8, 24), (14, 30)]  # the last one is clamped


@pytest.mark.parametrize("f,window,overlap", CASES)
def test_fusion_weights_sum_to_one(f, window, overlap):
    spans = windows(f, window, overlap)
    total = torch.zeros(f)
    for (start, end), share in zip(spans, fusion_matrix(spans)):
        total[start:end] += share
    assert_close(total, torch.ones(f))


def test_fusion_is_a_pyramid():
    assert fusion_weights(16).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert fusion_weights(25).tolist() == [*range(1, 13), 13, *range(12, 0, -1)]


def qkv(f: int) -> list[torch.Tensor]:
    return [torch.randn(2, 3, f, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def test_relative_positions_restart_in_every_window():
    """A window attends as the same frames would alone."""
    torch.manual_seed(0)
    attend = RelativePosition(8, 16)
    q, k, v = qkv(20)
    spans = windows(20, 8, 4)
    expected = torch.zeros_like(q)
    for (start, end), share in zip(spans, fusion_matrix(spans)):
        expected[..., start:end, :] += share[:, None] * attend(*(x[..., start:end, :].clone() for x in (q, k, v)))
    assert_close(windowed(attend, q, k, v, spans), expected)


def test_relative_positions_matter():
    """The order of frames is seen: or the test above could not fail."""
    torch.manual_seed(0)
    attend, (q, k, v) = RelativePosition(8, 16), qkv(6)
    back = [x.flip(-2) for x in (q, k, v)]
    assert not torch.allclose(attend(*back).flip(-2), attend(q, k, v), atol=1e-3)


def test_zero_relative_positions_are_plain_attention():
    attend, (q, k, v) = RelativePosition(8, 16), qkv(6)
    attend.keys.zero_(), attend.values.zero_()
    assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_frames_outside_a_window_do_not_reach_it():
    q, k, v = qkv(24)
    spans = windows(24, 8, 4)
    before = windowed(F.scaled_dot_product_attention, q, k, v, spans)
    v[..., 20:, :] += 100.0
    after = windowed(F.scaled_dot_product_attention, q, k, v, spans)
    assert torch.equal(before[..., :16, :], after[..., :16, :])
    assert not torch.allclose(before[..., 20:, :], after[..., 20:, :])


def test_key_frames_keep_their_absolute_positions():
    bus = HiddenStateBus(14, (2, 2))
    base = frame_positions(14, None)
    for s, rate in enumerate((1, 2, 4)):
        assert torch.equal(frame_positions(14 * rate, bus.stage(s))[::rate], base)


def test_one_window_is_plain_attention_bitwise():
    torch.manual_seed(0)
    attn, h = TemporalAttention(16, 2, 8), torch.randn(1, 8, 3, 16)
    assert torch.equal(attn(h), attn(h, HiddenStateBus(8).stage(0)))


@pytest.mark.parametrize("biased", [False, True])
def test_attention_written_out_is_the_fused_one(biased):
    q, k, v = torch.randn(3, 5, 2, 16, 8)
    bias = torch.randn(2, 16, 16) if biased else None
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert_close(attend_frames(q, k, v, bias), fused, rtol=0, atol=1e-5)
