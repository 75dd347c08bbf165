"""What must hold of S, A1, A2 and back-projection (paper Eq. 5-8)."""

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.extensions.predictions import lines
from zerosmooth.operators import A1, A2, Operator, S, back_project

ALL = pytest.mark.parametrize("M", [op(n) for op in (S, A1, A2) for n in (1, 2, 3)], ids=repr)
CLOSE = dict(rtol=0, atol=1e-5)  # float32 sums of a few numbers of size one


def states(f: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, f, 3, 5, generator=torch.Generator().manual_seed(seed))


@ALL
def test_the_corrected_state_measures_to_the_key_state(M):
    x, y = states(5 * M.n), states(5, seed=1)
    assert_close(M.measure(back_project(x, y, M)), y, **CLOSE)


@ALL
def test_lifting_is_the_dense_pseudo_inverse(M):
    inverse = torch.linalg.pinv(M.matrix(5 * M.n))
    assert_close(M.lift(torch.eye(5)[None])[0], inverse, **CLOSE)


@ALL
def test_the_unobserved_part_is_kept(M):
    """(I - M†M) x^ = (I - M†M) x."""
    x, y = states(4 * M.n), states(4, seed=1)
    x_hat = back_project(x, y, M)
    assert_close(x_hat - M.lift(M.measure(x_hat)), x - M.lift(M.measure(x)), **CLOSE)


@ALL
def test_projections_commute_with_back_projection(M):
    """So correcting h is correcting its projections: operators act on frames, not on channels."""
    x, y, W = states(4 * M.n), states(4, seed=1), torch.randn(5, 7)
    assert_close(back_project(x, y, M) @ W, back_project(x @ W, y @ W, M), **CLOSE)


def test_matrices_are_those_of_the_paper():
    s, a1, a2 = (M(2).matrix(6).tolist() for M in (S, A1, A2))
    assert s == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert a1 == [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
    assert a2 == [[1, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]]


def test_sampling_copies_key_frames_bitwise_and_changes_nothing_else():
    x, y = states(9), states(3, seed=1)
    x_hat = back_project(x, y, S(3))
    assert torch.equal(x_hat, Operator.replace(S(3), x, y)) and not torch.equal(x_hat, x)
    assert torch.equal(x_hat[:, ::3], y) and torch.equal(x_hat[:, 1::3], x[:, 1::3])


def test_frames_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9 frames cannot take 4 key frames at n=2"):
        back_project(states(9), states(4), S(2))
    with pytest.raises(ValueError, match="not a multiple"):
        A1(2).measure(states(5))
    with pytest.raises(ValueError, match="at least 1"):
        S(0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lines_are_a_right_inverse_of_sampling_and_stay_behind_the_last_key_frame(n):
    y, ramp = states(5), torch.arange(5 * n).float().view(1, -1, 1, 1)
    assert torch.equal(S(n).measure(lines(n, y)), y)
    assert_close(lines(n, ramp[:, ::n]), ramp.clamp(max=4 * n), **CLOSE)
