"""What must hold of a network on a bus."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zerosmooth.attention import Attention, CrossAttention, TokenCrossAttention
from zerosmooth.bus import Correction, HiddenStateBus
from zerosmooth.models.layers import Upsample, frame_chunks

from .conftest import FRAMES, latents, told


def run_stages(ask, scales=(2, 2), strength=0.6, **settings):
    bus = HiddenStateBus(FRAMES, scales, **settings)
    outputs, frames = [], FRAMES
    for s in range(len(scales) + 1):
        frames = frames * scales[s - 1] if s else FRAMES
        outputs.append(ask(latents(frames), bus.stage(s, strength=strength)))
    return outputs, bus


def test_stage_zero_is_the_plain_network_bitwise(ask):
    outputs, _ = run_stages(ask)
    assert torch.equal(outputs[0], ask(latents(FRAMES)))


def test_scale_one_is_the_plain_network_bitwise(ask):
    assert torch.equal(ask(latents(FRAMES), HiddenStateBus(FRAMES).stage(0)), ask(latents(FRAMES)))


def test_strength_zero_is_the_windowed_network_bitwise(ask):
    off, _ = run_stages(ask, strength=0.0)
    windowed, _ = run_stages(ask, correction=Correction(spatial=False, temporal=False))
    assert all(torch.equal(a, b) for a, b in zip(off, windowed))
    assert not torch.allclose(off[1], ask(latents(2 * FRAMES)),
                              atol=1e-3)  # which is not attention over all frames


@pytest.mark.parametrize(
    "settings", [dict(), dict(correction=Correction(spatial=False)),
                 dict(correction=Correction(temporal=False))]
)
def test_correction_changes_the_output_and_empties_the_bus(ask, settings):
    off, _ = run_stages(ask, strength=0.0)
    on, bus = run_stages(ask, **settings)
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(off[1:], on[1:]))
    assert bus.held_bytes == 0 < bus.peak_bytes


@pytest.mark.parametrize("scales", [(2,), (3,), (2, 3), (2, 2, 2), (4,)])
def test_any_scales_run(ask, scales):
    outputs, bus = run_stages(ask, scales)
    assert torch.isfinite(outputs[-1]).all() and bus.held_bytes == 0


def test_every_attention_module_publishes_once_a_stage(unet, ask):
    bus, published = HiddenStateBus(FRAMES, (2,)), []
    publish = bus.publish
    bus.publish = lambda stage, module, *rest: (published.append(module),
                                                publish(stage, module, *rest))
    ask(latents(FRAMES), bus.stage(0))
    assert sorted(published) == sorted(n for n, m in unet.named_modules()
                                       if isinstance(m, Attention))


def test_a_batch_equals_single_runs(ask):
    """Two videos at once are corrected each by its own key frames."""
    pair = {f: torch.cat([latents(f, seed=1), latents(f, seed=2)]) for f in (FRAMES, 2 * FRAMES)}

    def corrected(rows):
        bus = HiddenStateBus(FRAMES, (2,))
        return [ask(pair[FRAMES * (s + 1)][rows], bus.stage(s, strength=0.8)) for s in (0, 1)][1]

    both = corrected(slice(None))
    for i in (0, 1):  # sums run in another order in a batch
        assert_close(both[i : i + 1], corrected(slice(i, i + 1)), rtol=0, atol=1e-5)


def test_projected_context_is_the_context(unet):
    told_ = told(unet, 1)
    states = unet.project_context(told_["context"])
    cross = (CrossAttention, TokenCrossAttention)
    assert states.keys() == {n for n, m in unet.named_modules() if isinstance(m, cross)}
    x = torch.randn(1, FRAMES, unet.config.in_channels, 4, 6)
    assert torch.equal(unet(x, **{**told_, "context": states}), unet(x, **told_))


def test_the_order_of_frames_matters(ask):
    """Every family's network tells frames apart, by positions or by what its temporal convolutions
    see."""
    x = latents(FRAMES)
    assert not torch.allclose(ask(x.flip(1)).flip(1), ask(x), atol=1e-3)


def test_frames_in_chunks_change_nothing(unet, ask):
    plain, _ = run_stages(ask)
    for frames in (1, 3):
        with frame_chunks(unet, frames):
            chunked, _ = run_stages(ask)
        for a, b in zip(plain, chunked):  # sums run in another order
            assert_close(a, b, rtol=0, atol=1e-5)


def test_attention_to_one_token_is_that_tokens_value():
    """Against plain attention with any queries and keys."""
    torch.manual_seed(0)
    cross, context, q = TokenCrossAttention(16, 12), torch.randn(2, 1, 12), torch.randn(2, 30, 16)
    k, v = torch.randn(2, 1, 16), cross.to_v(context)
    expected = cross.to_out(torch.nn.functional.scaled_dot_product_attention(q, k, v))
    got = cross(q, {cross.name: cross.project(context)})
    assert_close(got[:, 0].expand(-1, 30, -1), expected)
    with pytest.raises(ValueError, match="2 tokens"):
        cross.project(torch.randn(1, 2, 12))


@pytest.mark.parametrize("channels", [6, 64])  # fewer and more than the 60 pixels
def test_upsampling_is_a_nearest_neighbour_and_a_convolution(channels):
    layer, x = Upsample(channels).double(), torch.randn(4, channels, 3, 5, dtype=torch.float64)
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
    with frame_chunks(layer, 3):
        assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert layer.frame_chunk is None


def test_text_is_projected_once_a_prompt_and_not_once_a_step(pipeline):
    modules = [m for m in pipeline.networks.unet.modules() if isinstance(m, CrossAttention)]
    calls = []
    hooks = [m.to_kv.register_forward_hook(lambda *_: calls.append(1)) for m in modules]
    pipeline.sample("x", scale=2, steps=3)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(modules)


def test_latents_that_do_not_fit_are_refused(ask):
    with pytest.raises(ValueError, match="multiple of 2"):
        ask(torch.zeros(1, FRAMES, 4, 5, 4))
