"""The table of real motion: what a bin is, what it holds, and that nothing changes from run to
run."""

import builtins
import hashlib
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation import motion
from evaluation.interpolators.interpolator import Blend, Hold
from evaluation.motion import Interval, bins_of, cropped, errors, intervals, psnr_by_bin, smaller
from zerosmooth.fields import UserError
from zerosmooth.video import write_video

from .test_peers import panned


@pytest.fixture
def still(monkeypatch):
    """Flow without OpenCV: nothing moves."""
    monkeypatch.setattr(motion, "flow_over", lambda x: np.zeros((*x.shape[1:3], 2), np.float32))


def test_frames_are_cut_to_blocks_and_made_smaller():
    assert cropped(torch.zeros(2, 150, 180, 3, dtype=torch.uint8)).shape == (2, 144, 176, 3)
    assert cropped(torch.zeros(2, 720, 1280, 3, dtype=torch.uint8)).shape == (2, 352, 640, 3)


def test_intervals_with_cuts_are_left_out(still):
    frames = panned(32, 24, 1)
    frames[10:] = 255 - frames[10:]  # from frame 9 to 10
    found = list(intervals(frames, 99))
    assert len(found) == 4  # of 0, 4, 8, 12 and 16, that at 8 has the cut
    assert [torch.equal(one.frames, frames[s : s + 5]) for one, s in zip(found, (0, 4, 12, 16))] \
        == [True] * 4
    assert len(list(intervals(frames, 2))) == 2


def test_blocks_count_in_the_bin_of_their_motion():
    frames = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
    frames[-1, :16, :16] = 40  # one of six blocks changes
    far = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.3, 9.0]])
    one = Interval(frames, far)
    assert bins_of([one]).tolist() == [5, 0, 0, 0, 2, 6]
    by_hand = torch.tensor([10.0, 20.0, 30.0]).div(255).square().mean()  # of a blend
    blend, hold = (by(frames[[0, -1]], motion.N, "", 0) for by in (Blend(), Hold()))
    assert torch.allclose(errors(one, blend)[0, 0], by_hand, rtol=0.02)
    got = psnr_by_bin([one, one], [blend, blend])
    assert got[5] == pytest.approx(-10 * by_hand.log10().item(), abs=0.1)
    assert got[0] == got[2] == got[6] == 100 and np.isnan(got[1])
    assert psnr_by_bin([one], [hold])[5] == 100  # the true ones do not move before the key


def test_an_eighth_keeps_its_blocks(still):
    (one,) = intervals(panned(64, 6, 2), 1)
    small = smaller(one)
    assert small.frames.shape == (5, 8, 8, 3) and errors(small, small.frames).shape == (4, 4)
    mean = one.frames[2, 8:16, :8].float().mean((0, 1)).round().byte()
    assert (small.frames[2, 1, 0].int() - mean.int()).abs().max() <= 1


@pytest.mark.parametrize("step", [1, 3])
def test_flow_is_composed_from_frame_to_frame(step):
    pytest.importorskip("cv2")
    flow = motion.flow_over(panned(128, 5, step))
    middle = flow[32:96, 48:112]
    assert np.median(middle[..., 0]) == pytest.approx(-4 * step, rel=0.05)
    assert abs(np.median(middle[..., 1])) < 0.1


def test_two_runs_print_the_same_tables(still, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(motion, "opencv", lambda: None)
    monkeypatch.setattr(motion, "psnr_div", lambda interval, made: [33.3, np.nan])
    write_video(tmp_path / "x.mp4", panned(256, 9, 2).numpy(), 24)
    said = []
    for _ in range(2):
        assert motion.main(["--clips", str(tmp_path / "x.mp4"), "--intervals", "1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "x.mp4: 1 intervals, 3 frames of 256x256" in said[0]
    for row in ("hold", "blend", "minterpolate", "carried"):
        assert f"| {row} | " in said[0]
    assert said[0].count("33.3") == 3  # whole frames alone


def test_divergence_is_of_what_goes_apart_and_not_of_what_turns():
    y, x = np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij")
    assert np.allclose(motion.divergence(np.stack([2 * x, y], -1)), 3)
    assert np.allclose(motion.divergence(np.stack([-3 * y, 4 * x], -1)), 0)


def test_psnr_div_counts_where_the_flow_diverges(monkeypatch):
    flow = np.zeros((8, 8, 2))
    flow[:, 4:, 0] = 1  # torn between columns 3 and 4
    cv2 = SimpleNamespace(cvtColor=lambda frame, _: frame[..., 0], COLOR_RGB2GRAY=0,
                          OPTFLOW_FARNEBACK_GAUSSIAN=0,
                          calcOpticalFlowFarneback=lambda a, *_: flow * (a.max() < 200))
    monkeypatch.setattr(motion, "opencv", lambda: cv2)
    frames = torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    made = frames.clone()
    made[1:4, :, :3] = 50  # beside the tear: does not count
    made[2, :, 4] = 10
    made[3, :, 0] = 255  # which stands still here
    got = motion.psnr_div(Interval(frames, torch.zeros(1, 1)), made)
    assert got[0] == pytest.approx(10 * np.log10(255**2 / 1e-5)) and np.isnan(got[2])
    assert got[1] == pytest.approx(10 * np.log10(255**2 / 50), abs=1e-3)


def test_what_is_missing_is_told(tmp_path, capsys, monkeypatch):
    plain = builtins.__import__

    def without(name, *rest):
        if name == "cv2":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert motion.main(["--clips", str(tmp_path / "x.mp4")]) == 1
    assert "pip install opencv-python-headless" in capsys.readouterr().err


def test_clips_come_out_of_the_wheels_that_are_there(tmp_path, monkeypatch):
    write_video(tmp_path / "x.mp4", panned(32, 5, 1).numpy(), 24)
    wheel = tmp_path / "Some_clips-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "x.mp4", "inside/y.mp4")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(motion, "CLIPS", {"some-clips==1.0": (sha256, "inside/y.mp4")})
    ((name, frames),) = motion.clips_of([], [wheel])
    assert name == "y.mp4" and frames.shape == (5, 256, 256, 3)
    monkeypatch.setattr(motion, "CLIPS", {"some-clips==1.0": ("0" * 64, "inside/y.mp4")})
    with pytest.raises(UserError, match="other-1.0.whl is no wheel of some-clips==1.0"):
        list(motion.clips_of([], [wheel, tmp_path / "other-1.0.whl"]))
    with pytest.raises(UserError, match="is not some-clips==1.0"):
        list(motion.clips_of([], [wheel]))
