"""What is seen of a run while it runs: how far it is, and what its key frames are going to be."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from zerosmooth.extensions.preview import coarse
from zerosmooth.fields import UserError
from zerosmooth.settings import Output, Settings
from zerosmooth_cli import live
from zerosmooth_cli.live import PREVIEW, Live, Progress, duration
from zerosmooth_cli.page import NAME
from zerosmooth_cli.results import check_outputs

from .conftest import subject

TWO = Settings(scale=2, key_frames=4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only pass when we say so."""
    now = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    return now


def test_one_share_over_all_videos_stages_and_steps(tmp_path, clock):
    shown, shares = Live(tmp_path, 2, replace(TWO, scale=4), 8.0, Output()), []
    for _ in range(2):
        with shown.video("a"):
            for done in range(1, 7):  # two steps of three stages, of 4, 8 and 16 frames
                shown.progress(done, 6)
                shares.append(shown.bar.share)
    expected = [x / 28 for x in (1, 3, 7, 8, 10, 14, 15, 17, 21, 22, 24, 28)]
    assert shares == pytest.approx(expected)


def test_the_share_knows_that_longer_videos_join_late(tmp_path, clock):
    shown, shares = Live(tmp_path, 1, replace(TWO, join=0.5), 8.0, Output()), []
    with shown.video("a"):
        for done in (1, 3, 5, 6, 7, 8):  # two of four steps are of the first stage alone
            shown.progress(done, 8)
            shares.append(shown.bar.share)
    assert shares == pytest.approx([x / 32 for x in (4, 8, 12, 20, 24, 32)])


def test_the_share_is_that_of_runs_where_windows_slide(tmp_path, clock):
    shown, shares = Live(tmp_path, 1, replace(TWO, method="sdedit"), 8.0, Output()), []
    with shown.video("a"):
        for done in range(1, 6):
            shown.progress(done, 5)
            shares.append(shown.bar.share)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_seconds_left_go_by_what_is_done(clock):
    with Progress(4) as shown:
        assert shown.said("step 1") == "video 1 of 4, step 1"  # nothing is known yet
        clock[0] = 30.0
        shown.at(0.5, "")
        assert shown.said("step 5 of 10") == "video 1 of 4, step 5 of 10, 3 min 30 s left"
        shown.end()
        assert shown.said("step 1 of 10").startswith("video 2 of 4, step 1 of 10, 1 min 30 s")


def test_a_log_gets_lines_that_can_be_read_and_not_many(clock, capsys):
    with Progress(1) as shown:
        for minute in range(24 * 60):
            clock[0] = 60.0 * minute
            shown.at(minute / 1440, f"step {minute}")
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text and "\x1b" not in text and 100 < len(lines) < 600
    assert lines[0] == "  0%  video 1 of 1, step 1, 23 h 59 min left"
    assert re.fullmatch(r" \d\d%  video 1 of 1, step \d+, \d+ min \d+ s left", lines[-1])


def test_a_terminal_gets_one_bar_that_is_taken_away(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Progress(1) as shown:
        shown.at(0.5, "step 1 of 2")
        assert " 50% |" in terminal.getvalue()
        assert "video 1 of 1, step 1 of 2" in terminal.getvalue()
        shown.end()
    assert "\n" not in terminal.getvalue() and re.search(r"\r *\r$", terminal.getvalue())


@pytest.mark.parametrize(("seconds", "said"), [
    (0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


# --- previews


def test_coarse_frames_of_a_linear_decoder_are_its_own():
    """Whatever the map is, and however large a decoder's frames are, it is found."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 4, 6, 8, generator=generator) / 4
    linear, bias = torch.randn(3, 4, generator=generator) / 4, torch.tensor([0.1, -0.2, 0.0])

    def decode(z):
        x = torch.einsum("rc,fchw->frhw", linear, z) + bias[:, None, None]
        return x.repeat_interleave(8, 2).repeat_interleave(8, 3)

    exact = torch.einsum("rc,fchw->fhwr", linear, z) + bias
    expected = ((exact.clamp(-1, 1) + 1) * 127.5).round().byte()
    assert (coarse(z, decode).int() - expected.int()).abs().max() <= 1  # rounding


def test_coarse_frames_of_what_is_not_finite_are_frames_still():
    z = torch.full((2, 4, 3, 3), float("nan"))
    shown = coarse(z, lambda z: torch.full((1, 3, 24, 24), float("inf")))
    assert shown.shape == (2, 3, 3, 3)


def test_a_preview_shows_key_frames_and_changes_no_video(any_pipeline):
    shown = []
    asked = {"steps": 2, "scale": 2, "key_frames": 4, **subject(any_pipeline)}
    (plain,) = any_pipeline.sample(**asked)
    (seen,) = any_pipeline.sample(**asked, preview=lambda look: shown.append(look()))
    assert all(torch.equal(a, b) for a, b in zip(plain.latents, seen.latents))
    frames, *size = plain.latents[0][:, 0].shape
    assert [x.shape for (x,) in shown] == [(frames, *size, 3)] * 2
    assert all(x.dtype == torch.uint8 for (x,) in shown)


def test_a_preview_comes_to_look_like_the_video():
    """The last one, of the small model that ships with the code, against the video shrunk to as
    many pixels."""
    import zerosmooth

    shown = []
    (video,) = zerosmooth.load(device="cpu").sample(
        "a red circle moving left", steps=4, scale=1, key_frames=4,
        preview=lambda look: shown.append(look()[0]))
    key = video.frames[0].float()
    k, h, w, _ = shown[-1].shape
    small = key.reshape(k, h, key.shape[1] // h, w, key.shape[2] // w, 3).mean((2, 4))
    error = (shown[-1].float() - small).abs().mean()
    assert error < 0.5 * (small - small.mean((0, 1, 2))).abs().mean(), error


def test_previews_are_in_the_page_and_in_the_folder_until_the_run_ends(tmp_path):
    generator = np.random.default_rng(0)
    frames = torch.from_numpy(generator.integers(256, size=(4, 8, 8, 3), dtype=np.uint8))
    with Live(tmp_path, 1, TWO, 80.0, Output(preview=True)) as shown:
        with shown.video("a prompt, seed 0"):
            shown.progress(1, 4)
            shown.preview(lambda: [frames])
            shown.preview(lambda: pytest.fail("they come too often"))
        with Image.open(tmp_path / PREVIEW) as file:
            assert len(list(ImageSequence.Iterator(file))) == 4
        text = (tmp_path / NAME).read_text()
        assert "a prompt, seed 0" in text and "coarse preview" in text and "step 1 of 2" in text
    assert "a prompt" not in (tmp_path / NAME).read_text() and not (tmp_path / PREVIEW).exists()


def test_a_preview_of_somebody_else_stays(tmp_path):
    (tmp_path / PREVIEW).write_bytes(b"mine")
    with Live(tmp_path, 1, TWO, 8.0, Output(preview=True)):
        pass
    with pytest.raises(UserError, match="preview.gif is no preview of ours; move it away"):
        check_outputs(tmp_path, TWO, [4, 8], Output(preview=True), ())
    assert (tmp_path / PREVIEW).read_bytes() == b"mine"
    with Live(tmp_path, 1, TWO, 8.0, Output(preview=True)) as shown:
        shown.preview(lambda: [torch.zeros(2, 8, 8, 3, dtype=torch.uint8)])
        check_outputs(tmp_path, TWO, [4, 8], Output(preview=True), ())  # as after a kill


@pytest.mark.parametrize(("output", "silent"), [(Output(page=False), False), (Output(), True)],
                         ids=["no page", "another process's"])
def test_nothing_is_written_that_nobody_sees(tmp_path, output, silent, clock, capsys):
    with Live(tmp_path, 1, TWO, 8.0, output, silent) as shown:
        with shown.video("a prompt, seed 0"):
            clock[0] = 1000.0
            shown.progress(1, 4)
            shown.preview(lambda: pytest.fail("nobody sees it"))
    assert not list(tmp_path.iterdir()) and bool(capsys.readouterr().err) is not silent


def test_what_ended_a_run_is_told_even_if_the_page_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="the disk is full"):
        with Live(tmp_path / "gone", 1, TWO, 8.0, Output()) as shown:
            shown._page._text = "an older page"
            raise OSError("the disk is full")
