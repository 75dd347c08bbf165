"""What must hold of S, A1, A2 and back-projection (paper Eq. 5-8)."""

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.operators import A1, A2, Interpolated, Operator, S, back_project

ALL = pytest.mark.parametrize("M", [op(n) for op in (S, A1, A2) for n in (1, 2, 3, 4)], ids=repr)
CLOSE = dict(rtol=0, atol=1e-5)  # float32 sums of a few numbers of size one


def states(f: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, f, 3, 5, generator=torch.Generator().manual_seed(seed))


@ALL
def test_corrected_state_measures_to_the_key_state(M):
    x, y = states(5 * M.n), states(5, seed=1)
    assert_close(M.measure(back_project(x, y, M)), y, **CLOSE)


@ALL
def test_closed_form_is_the_dense_pseudo_inverse(M):
    f = 5 * M.n
    dense = M.matrix(f).double()
    inverse = torch.linalg.pinv(dense)
    assert_close(M.lift(torch.eye(5)[None])[0].double(), inverse, rtol=0, atol=1e-6)  # thirds, in float32
    x, y = states(f), states(5, seed=1)
    x_flat, y_flat = (t.permute(1, 0, 2, 3).flatten(1).double() for t in (x, y))
    expected = (torch.eye(f).double() - inverse @ dense) @ x_flat + inverse @ y_flat
    got = back_project(x, y, M).permute(1, 0, 2, 3).flatten(1)
    assert_close(got.double(), expected, rtol=0, atol=1e-6)


@ALL
def test_the_unobserved_part_is_kept(M):
    """Correcting changes nothing that M cannot see: (I - M†M) x^ = (I - M†M) x."""
    x, y = states(4 * M.n), states(4, seed=1)
    x_hat = back_project(x, y, M)
    assert_close(x_hat - M.lift(M.measure(x_hat)), x - M.lift(M.measure(x)), **CLOSE)


@ALL
def test_projections_commute_with_back_projection(M):
    """Operators act on frames and projections on channels: correcting h or its projections is the same."""
    x, y, W = states(4 * M.n), states(4, seed=1), torch.randn(5, 7)
    assert_close(back_project(x, y, M) @ W, back_project(x @ W, y @ W, M), **CLOSE)


def test_matrices_are_those_of_the_paper():
    assert S(2).matrix(6).tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert A1(2).matrix(6).tolist() == [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
    assert A2(2).matrix(6).tolist() == [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]]


def test_sampling_copies_key_frames_bitwise():
    x, y = states(8), states(4, seed=1)
    x_hat = back_project(x, y, S(2))
    assert torch.equal(x_hat[:, ::2], y) and torch.equal(x_hat[:, 1::2], x[:, 1::2])


def test_frames_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9 frames cannot take 4 key frames at n=2"):
        back_project(states(9), states(4), S(2))
    with pytest.raises(ValueError, match="not a multiple"):
        A1(2).measure(states(5))


def test_sampling_replaces_as_the_formula_says():
    x, y = torch.randn(2, 9, 5), torch.randn(2, 3, 5)
    assert torch.equal(S(3).replace(x, y), Operator.replace(S(3), x, y))
    assert not torch.equal(S(3).replace(x, y), x)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_interpolation_is_another_inverse_of_sampling(n):
    """It measures back, keeps the mean slope between key frames, and corrects frames between by what lies between."""
    x, y, M = states(5 * n), states(5, seed=1), Interpolated(n)
    x_hat = back_project(x, y, M)
    assert torch.equal(M.measure(M.lift(y)), y)
    assert_close(M.measure(x_hat), y, **CLOSE)
    assert_close(x_hat, Operator.replace(M, x, y), **CLOSE)  # Eq. 5 as it stands
    ramp = torch.arange(5 * n).float().view(1, -1, 1, 1)
    held = torch.minimum(ramp, torch.tensor(4.0 * n))  # behind the last key frame it stays
    assert_close(M.lift(ramp[:, ::n]), held, **CLOSE)
    assert_close(back_project(x, x[:, ::n] + 1, M), x + 1, **CLOSE)  # one shift of all key frames shifts all frames
