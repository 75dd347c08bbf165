"""What must hold of DDIM and Euler. Their agreement with the authors' samplers is in
`tests/golden`."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from zerosmooth.samplers import DDIM, DDIMConfig, Euler, EulerConfig

CONFIGS = pytest.mark.parametrize(
    "config",
    [
        DDIMConfig(),
        DDIMConfig(data_scale=0.7),
        DDIMConfig(prediction="v", beta_end=0.03),
        DDIMConfig(prediction="v", data_scale=0.7),
        DDIMConfig(prediction="v", zero_terminal_snr=True, spacing="trailing"),
    ],
)


@CONFIGS
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_perfect_network_ends_at_the_data(config, eta):
    """If the network always knows the noise, the last step leads to x0 but for the noise that
    timestep 0 has."""
    generator = torch.Generator().manual_seed(0)
    x0, sampler = torch.randn(1, 2, 4, 3, 3, generator=generator), DDIM(config, 20, eta)
    x = sampler.start(torch.randn(x0.shape, generator=generator))
    for i in range(len(sampler)):
        alpha, sigma = float(sampler.alpha[i]), float(sampler.sigma[i])
        noise = (x - alpha * x0) / sigma
        scale = float(sampler.scale[i])
        v = alpha / scale * noise - sigma * scale * x0
        output = noise if config.prediction == "noise" else v
        assert_close(sampler.x0(i, x, output), x0, rtol=0,
                     atol=2e-3)  # divided by a small alpha at first
        x = sampler.step(i, x, sampler.x0(i, x, output), torch.randn(x.shape, generator=generator))
    assert (x - x0).abs().max() < 5 * (1 - config.alphas_cumprod()[0]) ** 0.5


@CONFIGS
def test_a_step_keeps_the_marginal_variance(config):
    """Data and noise of variance one: the noise left after a step has the variance of its timestep,
    at any eta."""
    for eta in (0.0, 0.5, 1.0):
        sampler = DDIM(config, 25, eta)
        before = np.append(sampler.timesteps[1:], 0)
        assert np.isfinite(sampler.sigma_prev).all()
        np.testing.assert_allclose(sampler.sigma_prev**2 + sampler.fresh**2,
                                   1 - config.alphas_cumprod()[before])


def test_timesteps_are_those_of_the_authors():
    assert DDIM(DDIMConfig(), 50).timesteps == [*range(981, 0, -20)]
    assert len(DDIM(DDIMConfig(), 30)) == 30 and DDIM(DDIMConfig(), 3).timesteps == [667, 334, 1]
    more = DDIMConfig(more_steps=True)
    assert len(DDIM(more, 30)) == 31
    assert DDIM(more, 60).timesteps[0] == 993 and DDIM(more, 50).timesteps[0] == 981
    assert DDIM(DDIMConfig(), 50).share(0) == 0.981


def test_steps_of_linspace_span_all_timesteps_and_lead_a_fixed_way_down():
    """As diffusers' scheduler: evenly from 0 to 999, but each step leads to t - 1000 // steps,
    where no step begins."""
    config = DDIMConfig(spacing="linspace")
    sampler = DDIM(config, 10)
    assert sampler.timesteps == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    a = config.alphas_cumprod()
    np.testing.assert_allclose(sampler.alpha_prev**2,
                               a[[899, 788, 677, 566, 455, 344, 233, 122, 11, 0]])


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_last_step_can_lead_to_clean_data(spacing):
    """And then a perfect network's end is the data itself; the other steps are the same."""
    clean, usual = (DDIM(DDIMConfig(spacing=spacing, ends_clean=ends), 10)
                    for ends in (True, False))
    assert clean.alpha_prev[-1] == 1 and clean.sigma_prev[-1] == 0 == clean.fresh[-1]
    assert usual.alpha_prev[-1] < 1
    for name in ("alpha", "sigma", "alpha_prev", "sigma_prev", "fresh"):
        np.testing.assert_array_equal(getattr(clean, name)[:-1], getattr(usual, name)[:-1])


def test_trailing_timesteps_begin_at_the_last_one():
    config = DDIMConfig(spacing="trailing")
    assert DDIM(config, 50).timesteps == [*range(999, 0, -20)]
    assert DDIM(config, 3).timesteps == [999, 666, 332] and DDIM(config, 1).timesteps == [999]
    assert DDIM(config, 1000).timesteps == [*range(999, -1, -1)]


def test_the_last_timestep_holds_no_data_where_that_is_asked_for():
    """And the first one as much as before; what the network shows there of x is then lost, whatever
    x is."""
    plain, shifted = DDIMConfig(prediction="v"), DDIMConfig(prediction="v", zero_terminal_snr=True,
                                                            spacing="trailing")
    a, b = plain.alphas_cumprod(), shifted.alphas_cumprod()
    assert b[-1] == 0 and b[0] == pytest.approx(a[0])
    assert (np.diff(b) < 0).all() and (b[1:] < a[1:]).all()
    sampler, v = DDIM(shifted, 10), torch.randn(1, 2, 4, 3, 3)
    assert_close(sampler.x0(0, torch.full_like(v, 5.0), v), -v)


def test_the_last_step_leads_to_the_scale_that_is_asked_for():
    for stays in (False, True):
        config = DDIMConfig(data_scale=0.5, spacing="trailing", last_scale_stays=stays)
        sampler, x0 = DDIM(config, 4, 0.0), torch.ones(1, 1, 1, 1, 1)
        last = len(sampler) - 1
        t = sampler.timesteps[last]
        x = sampler.alpha[last] * x0  # without noise
        scale = config.data_scales()[t] if stays else 1.0
        assert_close(sampler.step(last, x, x0, None),
                     scale * config.alphas_cumprod()[0] ** 0.5 * x0, check_dtype=False)


def test_data_scale_falls_and_stays():
    scales = DDIMConfig(data_scale=0.7).data_scales()
    assert scales[0] == 1 and scales[399] == 0.7 == scales[999] and len(scales) == 1000
    assert (DDIMConfig().data_scales() == 1).all()


def test_eta_zero_adds_no_noise():
    assert not DDIM(DDIMConfig(), 10, 0.0).stochastic and DDIM(DDIMConfig(), 10, 0.1).stochastic
    assert (DDIM(DDIMConfig(), 10, 0.0).fresh == 0).all()


def test_euler_with_a_perfect_network_ends_at_the_data():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 2, 4, 3, 3, generator=generator) for _ in range(2))
    sampler = Euler(EulerConfig(), 10)
    x = sampler.start(noise)
    assert_close(sampler.network_input(0, x), noise)  # the network is shown what has variance one
    for i in range(len(sampler)):
        sigma = float(sampler.sigmas[i])
        v = (x / (sigma**2 + 1) - x0) * (sigma**2 + 1) ** 0.5 / sigma
        assert_close(sampler.x0(i, x, v), x0, rtol=0, atol=1e-3)
        x = sampler.step(i, x, x0, None)
    assert_close(x, x0, rtol=0, atol=1e-4)  # from x of size 700, in float32


def test_eulers_noise_levels_fall_to_zero_and_so_does_its_share():
    sampler = Euler(EulerConfig(), 25)
    assert sampler.sigmas[0] == pytest.approx(700) and sampler.sigmas[-2] == pytest.approx(0.002)
    assert sampler.sigmas[-1] == 0 and (np.diff(sampler.sigmas) < 0).all()
    assert sampler.share(0) == 1 and sampler.share(24) == 1 / 25 and not sampler.stochastic
    assert sampler.timestep(0) == pytest.approx(0.25 * np.log(700))


@pytest.mark.parametrize("sampler",
                         [DDIM(DDIMConfig(data_scale=0.7), 5, 0.0), Euler(EulerConfig(), 5)])
def test_noised_is_the_x_that_a_perfect_network_reads(sampler):
    """At every step: with the step's own noise level, `step` leads to the next one."""
    data, noise = torch.randn(2, 1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for i in range(len(sampler) - 1):
        x = sampler.noised(i, data, noise)
        assert_close(sampler.step(i, x, data, None), sampler.noised(i + 1, data, noise),
                     rtol=1e-4, atol=1e-4)
    first = sampler.sigmas[0] if isinstance(sampler, Euler) else sampler.sigma[0]
    assert_close(sampler.noised(0, torch.zeros_like(data), noise), float(first) * noise)


def test_settings_out_of_range_are_refused():
    for make in (
        lambda: DDIM(DDIMConfig(), 0),
        lambda: DDIM(DDIMConfig(), 1001),
        lambda: DDIM(DDIMConfig(), 10, eta=-0.1),
        lambda: DDIMConfig(prediction="x"),
        lambda: DDIMConfig(zero_terminal_snr=True),
        lambda: Euler(EulerConfig(), 0),
        lambda: EulerConfig().sampler(25, eta=0.5),
        lambda: DDIMConfig(beta_schedule="cosine"),
        lambda: DDIMConfig(spacing="trailed"),
    ):
        with pytest.raises(ValueError):
            make()
