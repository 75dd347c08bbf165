"""What must hold of windows, fusion, positions and gradients (paper Eq. 16-22)."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zerosmooth.attention import (
    CrossAttention,
    SpatialSelfAttention,
    TemporalAttention,
    TokenCrossAttention,
    attend_frames,
    frame_positions,
    fusion_matrix,
    fusion_weights,
    windowed,
    windows,
)
from zerosmooth.bus import HiddenStateBus
from zerosmooth.models.positions import RelativePosition, RotaryBias

CASES = pytest.mark.parametrize("f,window,overlap", [
    (16, 16, 8), (17, 16, 8), (28, 14, 7), (71, 25, 12), (16, 8, 0), (6, 5, 3), (4, 1, 0)])


@CASES
def test_windows_cover_every_frame_once_and_have_one_length(f, window, overlap):
    spans = windows(f, window, overlap)
    assert {frame for start, end in spans for frame in range(start, end)} == set(range(f))
    assert all(end - start == window for start, end in spans) and len(set(spans)) == len(spans)


def test_windows_of_the_paper():
    assert windows(32, 16, 8) == [(0, 16), (8, 24), (16, 32)]
    assert windows(30, 16, 8) == [(0, 16), (8, 24), (14, 30)]  # the last one is clamped


@CASES
def test_fusion_weights_sum_to_one(f, window, overlap):
    spans, total = windows(f, window, overlap), torch.zeros(f)
    for (start, end), share in zip(spans, fusion_matrix(spans)):
        total[start:end] += share
    assert_close(total, torch.ones(f))


def test_fusion_is_a_pyramid():
    assert fusion_weights(6).tolist() == [1, 2, 3, 3, 2, 1]
    assert fusion_weights(5).tolist() == [1, 2, 3, 2, 1]


def qkv(f: int) -> list[torch.Tensor]:
    return [torch.randn(2, 3, f, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def test_relative_positions_restart_in_every_window():
    torch.manual_seed(0)
    attend, (q, k, v), spans = RelativePosition(8, 16), qkv(20), windows(20, 8, 4)
    expected = torch.zeros_like(q)
    for (start, end), share in zip(spans, fusion_matrix(spans)):
        alone = attend(*(x[..., start:end, :].clone() for x in (q, k, v)))
        expected[..., start:end, :] += share[:, None] * alone
    assert_close(windowed(attend, q, k, v, spans), expected)


def test_the_order_of_frames_matters_to_relative_positions():
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
    before = windowed(attend_frames, q, k, v, spans)
    v[..., 20:, :] += 100.0
    after = windowed(attend_frames, q, k, v, spans)
    assert torch.equal(before[..., :16, :], after[..., :16, :])
    assert not torch.allclose(before[..., 20:, :], after[..., 20:, :])


def test_key_frames_keep_their_absolute_positions():
    bus = HiddenStateBus(14, (2, 2))
    for s, n in enumerate((1, 2, 4)):
        positions = frame_positions(14 * n, bus.stage(s))
        assert torch.equal(positions[::n], frame_positions(14, None))


def test_one_window_is_plain_attention_bitwise():
    torch.manual_seed(0)
    attn, h = TemporalAttention(16, 2, 8), torch.randn(1, 8, 3, 16)
    assert torch.equal(attn(h), attn(h, HiddenStateBus(8).stage(0)))


@pytest.mark.parametrize("biased", [False, True])
def test_attention_written_out_is_the_fused_one(biased):
    q, k, v = torch.randn(3, 5, 2, 16, 8)
    bias = torch.randn(2, 16, 16) if biased else None
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert_close(attend_frames(q, k, v, bias), fused, rtol=0, atol=1e-5)


@torch.inference_mode(False)
@pytest.mark.parametrize("make", [
    lambda: SpatialSelfAttention(8, 1, 8), lambda: CrossAttention(8, 6, 1, 8),
    lambda: TokenCrossAttention(8, 6), lambda: TemporalAttention(8, 1, 8),
    lambda: TemporalAttention(8, 1, 8, RelativePosition(8, 4)),
    lambda: TemporalAttention(8, 1, 8, RotaryBias(1, 8))])
def test_every_module_on_the_bus_can_be_differentiated(make):
    """In both stages, with respect to every weight and to both hidden states."""
    module, bus = make(), HiddenStateBus(4, (2,))
    inputs = [torch.randn(1, f, 3, 8, requires_grad=True) for f in (4, 8)]
    more = []
    one_token = isinstance(module, TokenCrossAttention)
    if hasattr(module, "project"):
        more = [{module.name: module.project(torch.randn(1, 1 if one_token else 5, 6))}]
    outputs = [module(h, *more, bus.stage(s, strength=0.5)) for s, h in enumerate(inputs)]
    loss = sum((y * torch.randn_like(y)).sum() for y in outputs)
    wanted = [*module.parameters(), *(() if one_token else inputs)]
    assert all(g.any() and g.isfinite().all() for g in torch.autograd.grad(loss, wanted))
