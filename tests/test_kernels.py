"""The layers that take another way on the CPU: torch's results, up to rounding, in the layout that
was given."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from zerosmooth.models import kernels

LAST = torch.channels_last


pytestmark = pytest.mark.skipif(not kernels.LIBRARIES, reason="torch has not both libraries here")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 24), (1, 1, 1, 24), (5, 24), (2, 5, 24)])
def test_linear_is_torchs(shape, bias):
    layer, plain = twins(kernels.Linear(24, 40, bias=bias), nn.Linear)
    x = torch.randn(*shape)
    got = layer(x)
    assert_close(got, plain(x), rtol=0, atol=1e-6)
    assert got.is_contiguous()
    assert_close(layer(x[..., ::2, :]), plain(x[..., ::2, :]), rtol=0, atol=1e-6)
    turned = x.transpose(-1, -2).contiguous().transpose(-1, -2)  # as the autoencoder's tokens come
    assert_close(layer(turned), got, rtol=0, atol=1e-6)
    assert layer(turned).is_contiguous()


@torch.inference_mode(False)
def test_linear_has_torchs_gradients():
    layer, plain = twins(kernels.Linear(6, 4).requires_grad_(True), nn.Linear)
    grads = []
    for module in (layer, plain):
        x = torch.linspace(-1, 1, 2 * 3 * 5 * 6).view(2, 3, 5, 6).requires_grad_(True)
        loss = module(x).square().sum()
        grads.append(torch.autograd.grad(loss, [x, module.weight, module.bias]))
    for a, b in zip(*grads):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("small",
                         [True, False])  # images, of few or of many pixels beside the kernel
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_torchs(small, stride):
    side = 4 if small else 16
    layer, plain = twins(kernels.Conv2d(16, 24, 3, stride=stride, padding=1), nn.Conv2d)
    x = torch.randn(2, 16, side, side).contiguous(memory_format=LAST)
    assert kernels.outweighs(layer.weight, x) is small
    got = layer(x)
    assert_close(got, plain(x), rtol=0, atol=1e-5)
    assert got.is_contiguous(memory_format=LAST)


def test_the_other_way_is_taken_and_left_where_it_should(monkeypatch):
    linear, conv = kernels.Linear(64, 64), kernels.Conv2d(64, 64, 3, padding=1)
    tokens, image = torch.randn(2, 3, 5, 64), torch.randn(1, 64, 2,
                                                          2).contiguous(memory_format=LAST)
    for other in (image.double(), image.half(), image.to("meta")):
        assert kernels.on_cpu(image) and not kernels.on_cpu(other)
    assert kernels.outweighs(conv.weight, image) and not kernels.outweighs(conv.weight,
                                                                           image.contiguous())

    laid_out, convolve = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: laid_out.append(x.is_contiguous())
                        or convolve(x, *rest))
    linear(tokens), conv(image)
    assert laid_out == [False, True]  # tokens are a channels-last view, the image was laid out
    monkeypatch.setattr(kernels, "LIBRARIES", False)  # as on a Mac
    linear(tokens), conv(image)
    assert laid_out == [False, True, False]


@torch.inference_mode()
def test_the_gpus_group_norm_is_torchs():
    """With a bias, an offset, and deviations as small as eps; computed here, where it is not
    taken."""
    layer = kernels.GroupNorm(2, 6, eps=0.1)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    for scale in (0.3, 3.0):
        x = scale * torch.randn(3, 6, 4, 5) + 1
        got = layer.last(x.movedim(1, -1).contiguous()).movedim(-1, 1)
        assert_close(got, F.group_norm(x, 2, layer.weight, layer.bias, 0.1), rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("deviation", [0.1, 1.0, 30.0])
def test_the_gpus_group_norm_keeps_small_deviations_around_a_large_mean(deviation):
    """As does torch's, which takes the same numbers of half precision."""
    layer = kernels.GroupNorm(2, 6).half()
    x = (1000 + deviation * torch.randn(3, 6, 16, 16)).half()
    got = layer.last(x.movedim(1, -1).contiguous()).movedim(-1, 1).float()
    assert_close(got, F.group_norm(x.float(), 2), rtol=1e-3, atol=4e-3)


def twins(layer: nn.Module, kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A layer, and torch's own of the same weights."""
    plain = copy.deepcopy(layer)
    plain.__class__ = kind
    return layer, plain
