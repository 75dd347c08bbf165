"""What must hold of a network on a bus."""

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.attention import Attention, CrossAttention
from zerosmooth.bus import Correction, HiddenStateBus
from zerosmooth.cascade import Cascade

from .conftest import FRAMES, TINY, latents


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
    assert not torch.allclose(off[1], ask(latents(2 * FRAMES)), atol=1e-3)  # which is not attention over all frames


@pytest.mark.parametrize(
    "settings", [dict(), dict(correction=Correction(spatial=False)), dict(correction=Correction(temporal=False))]
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
    bus.publish = lambda stage, module, states: (published.append(module), publish(stage, module, states))
    ask(latents(FRAMES), bus.stage(0))
    assert sorted(published) == sorted(n for n, m in unet.named_modules() if isinstance(m, Attention))


def test_a_batch_equals_single_runs(ask):
    """Two videos at once are corrected each by its own key frames."""
    pair = {f: torch.cat([latents(f, seed=1), latents(f, seed=2)]) for f in (FRAMES, 2 * FRAMES)}

    def corrected(rows):
        bus = HiddenStateBus(FRAMES, (2,))
        return [ask(pair[FRAMES * (s + 1)][rows], bus.stage(s, strength=0.8)) for s in (0, 1)][1]

    both = corrected(slice(None))
    for i in (0, 1):  # sums run in another order in a batch
        assert_close(both[i : i + 1], corrected(slice(i, i + 1)), rtol=0, atol=1e-5)


def test_projected_text_is_the_text(unet):
    context = torch.randn(1, 5, TINY.context_dim)
    states = unet.project_context(context)
    assert states.keys() == {n for n, m in unet.named_modules() if isinstance(m, CrossAttention)}
    x, step, fps = latents(FRAMES), torch.tensor([300]), torch.tensor([8])
    assert torch.equal(unet(x, step, states, fps), unet(x, step, context, fps))


def test_text_is_projected_once_a_prompt_and_not_once_a_step(pipeline):
    modules = [m for m in pipeline.networks.unet.modules() if isinstance(m, CrossAttention)]
    calls = []
    hooks = [m.to_kv.register_forward_hook(lambda *_: calls.append(1)) for m in modules]
    pipeline.sample("x", cascade=Cascade(FRAMES, (2,)), steps=3)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(modules)


def test_latents_that_do_not_fit_are_refused(ask):
    with pytest.raises(ValueError, match="multiple of 2"):
        ask(torch.zeros(1, FRAMES, 4, 5, 4))
