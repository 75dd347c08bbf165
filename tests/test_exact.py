"""The exact world: its network is what it is said to be, and what corrections leave there."""

import pytest
import torch
from torch.testing import assert_close

from evaluation import exact
from evaluation.exact import FRAMES, Exact, Motion, carry, make, measure, parse, settings_of
from zerosmooth.fields import UserError


@pytest.mark.parametrize("kind", exact.KINDS)
def test_a_law_and_its_inverse_undo_each_other(kind):
    motion, time = Motion(kind, 0.7), torch.tensor(1.3)
    x, y = motion.seen(time, *motion.seen(time), way=-1)
    assert_close((x, y), (exact.X, exact.Y), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", exact.KINDS)
def test_covariances_are_symmetric_and_of_unit_variance(kind, monkeypatch):
    k = Motion(kind, 2.0).covariance(torch.tensor([0.0, 0.5]))
    assert_close(k, k.T)
    assert_close(k.diagonal(), torch.ones(len(k)))


def test_the_network_is_the_best_linear_estimate():
    """The error of E[x0 | x_t] is uncorrelated with x_t, here of a motion that stands still."""
    motion, t = Motion("pan", 0.0), 0.5
    k = motion.covariance(torch.zeros(1)).double()  # of one frame, and so of all
    root = torch.linalg.cholesky(k + 1e-6 * torch.eye(len(k)))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, exact.CHANNELS, len(k), generator=generator).double() @ root.T
    x0 = z[:, None].expand(-1, FRAMES, -1, -1).unflatten(3, (exact.SIZE, exact.SIZE)).float()
    x = (1 - t) * x0 + t * torch.randn(x0.shape, generator=generator)
    got = Exact([motion]).window(x, t, 0.0, 1)[0]
    assert ((got - x0) * x).mean().abs() < 0.005


def test_true_frames_are_carried_along_the_law():
    frame = torch.stack([(exact.X / 3).sin(), (exact.Y / 3).cos(), (exact.X / 4).cos()])
    moved, known = carry(frame, Motion("pan", 2.0), 0.0, 1.0)
    assert_close(moved[:, :, 3:10], frame[:, :, 5:12], atol=0.02, rtol=0)
    assert known[:, :13].all() and not known[:, 15].any()


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[float, float, bool]]:
    """Of some rows at twice the frames, where a camera pans by 4 pixels: residual, contrast, and
    whether key frames are the base video's, bitwise."""
    got = {}
    for row in ("windowed", "ddnm", "lines", "carried", "lines:join=0.6", "carried:join=0.6"):
        with torch.inference_mode():
            xs, motions = make(parse("pan 4"), settings_of(row, 10, 2), [50])
            got[row] = *measure(xs[1], motions), torch.equal(xs[1][:, ::2], xs[0])
    return got


def test_windows_alone_lose_the_key_frames(rows):
    assert not rows["windowed"][2]


def test_corrections_keep_key_frames_bitwise(rows):
    assert all(same for row, (*_, same) in rows.items() if row != "windowed")


def test_carried_corrections_leave_a_fiftieth_of_what_lines_leave(rows):
    assert rows["lines"][0] > 0.05
    assert rows["carried"][0] < 0.01 and rows["carried"][0] < rows["lines"][0] / 10
    assert 0.98 < rows["carried"][1] < 1.02


def test_joining_late_costs_lines_and_not_carried_corrections(rows):
    assert rows["lines:join=0.6"][0] > 1.1 * rows["lines"][0]
    assert rows["carried:join=0.6"][0] < 0.01


def test_ddnm_loses_contrast(rows):
    assert rows["ddnm"][1] < 0.92


def test_rows_and_motions_that_there_are_not_are_told():
    with pytest.raises(UserError, match="no row 'magic'"):
        settings_of("magic", 10, 2)
    with pytest.raises(UserError, match="motion 'jump 3'"):
        parse("pan 4 + jump 3")
    with pytest.raises(UserError, match="changes 'speed'"):
        settings_of("lines:speed=3", 10, 2)


@pytest.mark.parametrize(("asked", "said"), [
    (["--rows", "zerosmooth"], "no row 'zerosmooth'"),
    (["--scale", "3"], "--scale 3; use 2, 4 or 8"),
    (["--n", "0"], "--n=0; use 1 to"),
    (["--motion", "pan 4", "jmp 3"], "motion 'jmp 3'"),
    (["--picture", "a.txt"], "a.txt must end in .png"),
    (["--motion", "pan 4", "bounce 4", "--rows", "lines", "sdedit"],
     "the row sdedit cannot be made of 'bounce 4'")])
def test_what_cannot_be_is_told_before_any_row_is_made(asked, said, capsys):
    assert exact.main(asked) == 1
    shown = capsys.readouterr()
    assert said in shown.err and not shown.out
