"""Measures against values worked by hand or known in closed form."""

import math

import pytest
import torch

from evaluation.metrics import (
    blend_psnr,
    frechet_distance,
    gaussian,
    inception_score,
    psnr,
    ssim,
    uneven,
)


def flat(value: int, frames: int = 2) -> torch.Tensor:
    return torch.full((frames, 16, 20, 3), value, dtype=torch.uint8)


def test_psnr_of_a_known_difference():
    assert abs(psnr(flat(0), flat(51)) - 13.979) < 1e-3  # a fifth of the range: -20 log10(0.2)
    one_frame = flat(0)
    one_frame[1] = 51
    assert abs(psnr(flat(0), one_frame) - (100 + 13.979) / 2) < 1e-3  # mean over frames


def test_ssim_of_flat_frames_is_its_luminance_term():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert abs(ssim(flat(100), flat(150)) - expected) < 1e-9
    assert ssim(flat(100), flat(100)) == pytest.approx(1)


def test_ssim_falls_with_noise_and_below_zero_with_opposed_structure():
    """y = 255 - x has covariance -var(x) everywhere."""
    x = torch.randint(256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    noise = torch.randint(-20, 21, x.shape, generator=torch.Generator().manual_seed(1))
    more, less = ((x.int() + k * noise).clamp(0, 255).byte() for k in (3, 1))
    assert -1 <= ssim(x, 255 - x) < -0.8 < ssim(x, more) < ssim(x, less) < 1


def test_videos_that_cannot_be_compared_are_refused():
    for a, b in ((flat(0), flat(0, 3)), (flat(0).float(), flat(0))):
        with pytest.raises(ValueError, match="both must be uint8"):
            psnr(a, b)
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(flat(0)[:, :8], flat(0)[:, :8])


def test_frechet_distance_of_gaussians_whose_covariances_commute():
    """In a common basis: squared difference of means, and of standard deviations."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 4).double())[0]
    s, t = torch.tensor([[1.0, 2.0, 0.5, 0.0], [3.0, 1.0, 0.5, 2.0]]).double()
    a, b = (basis @ torch.diag(v**2) @ basis.T for v in (s, t))
    mean = torch.tensor([1.0, 0.0, -2.0, 0.0]).double()
    expected = 1 + 4 + (s - t).square().sum().item()
    distance = frechet_distance(mean, a, torch.zeros(4), b)
    assert distance == pytest.approx(expected, abs=1e-6)  # a root of rounding
    assert frechet_distance(mean, b, mean, b) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_any_gaussians_in_two_dimensions():
    """tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2."""
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    product = a @ b
    cross = math.sqrt(product.trace().item() + 2 * math.sqrt(torch.linalg.det(product).item()))
    zero = torch.zeros(2)
    expected = pytest.approx(a.trace().item() + b.trace().item() - 2 * cross)
    assert frechet_distance(zero, a, zero, b) == expected == frechet_distance(zero, b, zero, a)


def test_gaussian_is_unbiased_and_singular_ones_are_fine():
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    mean, covariance = gaussian(x)
    assert mean.tolist() == [1, 2] and covariance.tolist() == [[2, 4], [4, 8]]  # over n - 1
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="n >= 2"):
        gaussian(x[:1])


def test_inception_score_counts_classes():
    assert inception_score(torch.eye(5).repeat(3, 1)) == pytest.approx(5)  # sure, and all of them
    assert inception_score(torch.full((6, 5), 0.2)) == pytest.approx(1)  # never sure
    assert inception_score(torch.eye(5)[[0, 0, 0]]) == pytest.approx(1)  # always the same
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(torch.ones(3, 4))


def test_blend_psnr_is_of_the_inserted_frames_alone():
    """A fade between key frames 0, 80, 160; then an inserted frame is a fifth of the range off."""
    video = torch.cat([flat(v, 1) for v in (0, 40, 80, 120, 160, 7)])  # no key follows the last
    assert blend_psnr(video, 2) == pytest.approx(100)
    video[3] += 51
    assert blend_psnr(video, 2) == pytest.approx((100 + 13.979) / 2, abs=1e-3)
    video[2] += 51  # a key frame: now both fades are wrong
    assert blend_psnr(video, 2) < 30


def test_change_is_even_where_every_place_between_keys_has_as_much():
    ramp = torch.arange(0, 130, 10).byte().view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    assert uneven(ramp, 4) == 0
    for n in (2, 4):
        held = ramp[::n].repeat_interleave(n, 0)[:13]
        assert uneven(held, n) == pytest.approx((n - 1) ** 0.5)
    faster = torch.tensor([0, 1, 2, 5, 8, 13, 18, 25, 32]).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    assert uneven(faster, 2) == 0  # from key to key alone
    by_hand = torch.tensor([0, 4, 6, 10, 12]).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    assert uneven(by_hand, 2) == pytest.approx(1 / 3)  # 4, 2, 4, 2
    assert uneven(ramp[:1].repeat(5, 1, 1, 1), 4) == 0
