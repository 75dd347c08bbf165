"""The page of a folder's videos: what it holds, and how it plays in a real browser."""

import json
import re
import shutil
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from zerosmooth.pipeline import Video
from zerosmooth.settings import Settings
from zerosmooth.video import read_video, write_video
from zerosmooth_cli import page
from zerosmooth_cli.page import Page, results

from . import firefox
from .chromium import PATH, SHIFT, Chromium
from .firefox import Firefox

SIZE = 160, 256  # from 256 pixels on videos are not enlarged
FRAMES, RATES = (16, 32, 64), (8.0, 16.0, 32.0)


def moving(frames: int) -> np.ndarray:
    """Every frame says in six stripes, the bits of a number, which one of 64 it is; left of them a
    white bar moves down by two pixels for one of the 64."""
    video = np.zeros((frames, *SIZE, 3), np.uint8)
    for i, frame in enumerate(video):
        number = i * 64 // frames
        frame[2 * number : 2 * number + 8, :64] = 255
        for bit in range(6):
            frame[:, 64 + 32 * bit : 96 + 32 * bit] = 255 * (number >> bit & 1)
    return video


@cache
def mp4(frames: int, fps: float) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        write_video(path, moving(frames), fps)
        return path.read_bytes()


def write_result(folder: Path, name: str, **changes) -> Path:
    """What `sample.py` leaves of a video, as far as the page needs it."""
    files = {}
    for n, fps in zip(FRAMES, RATES):
        (folder / f"{name}_{n}f.mp4").write_bytes(mp4(n, fps))
        files[f"{name}_{n}f.mp4"] = 1
    record = {"prompt": name, "seed": 0, "settings": {"preset": "paper", "strength": 0.8},
              "family": "vc2"}
    record |= {"play_fps": RATES, "frames": FRAMES, "enlarged": 1,
               "files": {**files, f"{name}.png": 1}}
    record |= {"versions": {"torch": "2"}, **changes}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_result(folder, "first")
    time.sleep(0.01)
    write_result(folder, "second", prompt="</script><script>broken = 1</script><!-- & \"'")
    Page(folder).write(results(folder))
    return folder


def entries(folder: Path) -> list[dict]:
    text = (folder / page.NAME).read_text()
    return [json.loads(script) for script in re.findall(r'class="entry".*?>(.*)</script>', text)]


def test_it_holds_all_videos_the_latest_first(folder):
    second, first = entries(folder)
    assert (first["title"],
            first["command"]) == ("first", f"python -m zerosmooth --again {folder}/first_64f.mp4")
    assert (
        first["settings"] == {"preset": "paper", "strength": 0.8, "seed": 0, "torch": "2"}
        and second["title"][0] == "<"
    )
    assert [(p["frames"], p["fps"], len(p["sheets"])) for p in first["panels"]] == [
        (16, 8, 1),
        (32, 16, 2),
        (64, 32, 4),
    ]


def test_it_needs_no_other_file(folder):
    text = (folder / page.NAME).read_text()
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)[\w/]+[:/.]",
                          text) and "//cdn" not in text


def test_what_a_page_holds_is_not_made_again(tmp_path, monkeypatch):
    write_result(tmp_path, "first")
    Page(tmp_path).write(results(tmp_path))
    before = (tmp_path / page.NAME).stat().st_mtime_ns
    monkeypatch.setattr(page, "read_video", lambda path: pytest.fail("it was read again"))
    Page(tmp_path).write(results(tmp_path))
    assert (tmp_path / page.NAME).stat().st_mtime_ns == before
    monkeypatch.undo()
    write_result(tmp_path, "first", prompt="other")
    Page(tmp_path).write(results(tmp_path))
    assert [entry["title"] for entry in entries(tmp_path)] == ["other"]


def test_damaged_results_and_other_files_are_left_out(tmp_path, folder):
    write_result(tmp_path, "whole")
    (write_result(tmp_path, "damaged").with_name("damaged_32f.mp4")).write_bytes(b"no video")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"frames": ')
    Page(tmp_path).write(results(tmp_path))
    assert [entry["title"] for entry in entries(tmp_path)] == ["whole"]


def test_a_page_stays_small_enough_to_be_opened(tmp_path, monkeypatch):
    for name in ("first", "second", "third"):
        write_result(tmp_path, name)
        time.sleep(0.01)
    for most, held in ((1, ["third"]), (1_000_000, ["third", "second", "first"])):
        monkeypatch.setattr(page, "MOST", most)
        Page(tmp_path).write(results(tmp_path))
        assert [entry["title"] for entry in entries(tmp_path)] == held
        assert ("the latest of 3" in (tmp_path / page.NAME).read_text()) == (len(held) < 3)


def test_the_page_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / page.NAME).write_text("<h1>My holidays</h1>")
    with pytest.raises(ValueError, match="is a page of something else; use another folder"):
        Page(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.9])
def test_a_damaged_page_is_made_again(tmp_path, folder, part):
    for path in folder.iterdir():
        shutil.copy2(path, tmp_path)
    whole = (folder / page.NAME).read_text()
    (tmp_path / page.NAME).write_text(whole[: int(part * len(whole))])
    Page(tmp_path).write(results(tmp_path))
    titles = [[entry["title"] for entry in entries(one)] for one in (folder, tmp_path)]
    assert titles[0] == titles[1] and len(titles[0]) == 2


def test_without_videos_there_is_no_page(tmp_path):
    Page(tmp_path).write(results(tmp_path))
    assert not list(tmp_path.iterdir())


# --- in a browser

SHOWN = """[...document.querySelectorAll("article")[%d].querySelectorAll(".view canvas")].map(
(canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 20, 256, 1);
    return [0, 1, 2, 3, 4, 5].reduce(
        (number, bit) => number + (data[4 * (80 + 32 * bit)] > 127) * 2 ** bit, 0);
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PATH is None:
        pytest.skip("there is no Chromium")
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def fox(tmp_path_factory):
    if firefox.PATH is None:
        pytest.skip("there is no Firefox")
    with Firefox(tmp_path_factory.mktemp("profile")) as fox:
        yield fox


@pytest.fixture(params=["browser", "fox"], ids=["Chromium", "Firefox"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def opened(browser, folder):
    browser.errors.clear()
    browser.open(folder / page.NAME, still=True)
    ready(browser)
    yield browser
    assert not browser.errors


def ready(browser):
    browser.until("entries.length && "
                  "entries[0].panels.every((panel) => panel.cells && panel.drawn !== null)")


def in_step(number: int) -> list[int]:
    """What the stages show when the densest shows a frame: each the last frame of its own that has
    begun."""
    return [number - number % 4, number - number % 2, number]


def test_every_frame_is_shown_and_all_stages_are_in_step(opened):
    for entry in (0, 1):
        for number in range(64):
            assert opened.run(f"go({number}), " + SHOWN % entry) == in_step(number)


def test_keys_step_play_and_slow_down(opened):
    assert opened.run(SHOWN % 0) == [0, 0, 0]
    for key, modifiers, number in (
        ("ArrowRight", 0, 1),
        ("ArrowRight", 0, 2),
        ("ArrowRight", SHIFT, 4),  # the next key frame
        ("ArrowRight", SHIFT, 8),
        ("ArrowLeft", 0, 7),
        ("ArrowLeft", SHIFT, 0),
        ("ArrowLeft", 0, 63),  # round and round
    ):
        opened.press(key, modifiers)
        assert opened.run(SHOWN % 0) == in_step(number), (key, modifiers)
    assert opened.run("[playing, speed]") == [False, 1]
    opened.press(" ")
    opened.press("q")
    assert opened.run("[playing, speed]") == [True, 0.25]
    opened.press("q")
    opened.press(" ")
    assert opened.run("[playing, speed]") == [False, 1]


PLAYED = """new Promise((done) => {
    const seen = [], began = performance.now();
    const look = () => {
        seen.push([performance.now() - began, tick, ...%s]);
        if (performance.now() - began < 1200) requestAnimationFrame(look);
        else done(seen);
    };
    go(0), set(true, %s), requestAnimationFrame(look);
})"""


@pytest.mark.parametrize("speed", [1, 0.25])
def test_videos_play_in_step_at_their_speed(opened, speed):
    seen = opened.run(PLAYED % (SHOWN % 0, speed))
    for _, tick, *shown in seen:
        assert shown == in_step(tick)
    (start, first, *_), (end, last, *_) = seen[1], seen[-1]
    assert last - first == pytest.approx((end - start) / 1000 * 32 * speed, abs=3)
    assert len({tick for _, tick, *_ in seen}) > 4


def test_the_slice_shows_a_line_over_time_and_where_now_is(opened):
    """Of a column, down which the white bar moves."""
    opened.run("entries[0].line = [2, 20], slices(entries[0])")
    read = "[...entries[0].panels[2].slice.getContext('2d').getImageData(0, 0, 64, 160).data]"
    pixels = np.array(opened.run(read)).reshape(160, 64, 4)[..., 0]
    for frame in range(64):
        (white,) = np.nonzero(pixels[:, frame] > 127)
        assert abs(white.min() - 2 * frame) <= 1 and abs(white.max() - 2 * frame - 7) <= 1, frame
    opened.run("go(32)")
    at = "entries[0].panels.map((panel) => parseFloat(panel.cursor.style.left))"
    assert opened.run(at) == [50, 50, 50]
    box = opened.run(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelector('.view').getBoundingClientRect())"
    )
    opened.click(box[0] + box[2] / 2, box[1] + box[3] / 2)
    assert opened.run("entries[0].line") in ([2, 127], [2, 128])


def test_what_people_can_touch_works(opened):
    def click(script: str, across: float = 0.5):
        box = (f"(({{x, y, width, height}}) => [x + {across} * width, y + height / 2])"
               f"({script}.getBoundingClientRect())")
        opened.click(*opened.run(box))

    click("$('next')")
    assert opened.run(SHOWN % 0) == in_step(1)
    click("document.querySelectorAll('.slice')[2]", 0.75)
    assert opened.run(SHOWN % 0) == in_step(48)
    click("document.querySelectorAll('.slice')[0]", 0.5)
    assert opened.run(SHOWN % 0) == in_step(32)
    click("$('scrub')", 0.25)
    assert opened.run("Math.abs(tick - 16)") <= 1
    click("$('play')")
    assert opened.run("playing")
    opened.press(" ")  # also of the button that has the focus
    click("$('speed')")
    assert opened.run("[playing, speed]") == [False, 0.5]


def test_prompts_cannot_run_as_scripts(opened):
    title = opened.run("document.querySelector('h2').textContent")
    assert title == "</script><script>broken = 1</script><!-- & \"'"
    assert opened.run("typeof broken") == "undefined"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_on_a_screen(browser, folder, width, dark):
    browser.open(folder / page.NAME, width, dark=dark)
    ready(browser)
    assert browser.run("playing")  # unless people want it still
    assert browser.run("document.documentElement.scrollWidth") <= width
    tops = browser.run(
        "[...document.querySelectorAll('article:first-of-type .view')]"
        ".map((v) => v.getBoundingClientRect().y)"
    )
    assert len(tops) == 3 and len(set(tops)) == 1  # side by side
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 21, 23)" if dark else "rgb(246, 246, 244)"
    )
    assert not browser.errors


@pytest.mark.parametrize("height", [768, 640])
def test_on_a_laptop_the_bar_covers_no_strip(either, tmp_path, height):
    """Of square videos, the highest that families make; 640 is what the browser's own bars leave of
    768."""
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    panels = [(f"{n} frames", f"{n / 2} fps", frames, n / 2, None) for n in (16, 32, 64)]
    made = page.entry("square", "a red circle moving right quickly", "seed 0", panels)
    Page(tmp_path).write([("square", lambda: made | {"command": "python sample.py"})])
    either.open(tmp_path / page.NAME, 1366, height)
    ready(either)
    bottom = "[...document.querySelectorAll('.slice')].map((s) => s.getBoundingClientRect().bottom)"
    bar = either.run("document.querySelector('footer').getBoundingClientRect().top")
    assert max(either.run(bottom)) < bar
    tops = "[...document.querySelectorAll('.view')].map((v) => v.getBoundingClientRect().y)"
    assert len(set(either.run(tops))) == 1  # side by side


def test_a_page_without_videos_says_why(either, tmp_path):
    Page(tmp_path).write([], page.live("a name", "video 1 of 2", 0.25, None, 8.0))
    Page(tmp_path).write(results(tmp_path))  # as when a run is interrupted
    either.open(tmp_path / page.NAME)
    said = either.run("document.querySelector('main').innerText")
    assert "The run ended before its first video was finished" in said
    assert either.run("document.querySelector('footer').offsetHeight") == 0


def test_firefox_steps_drags_wraps_and_plays(fox, folder):
    fox.open(folder / page.NAME)
    ready(fox)
    fox.run("set(false), go(0)")
    for key, shift, number in (("ArrowRight", False, 1), ("ArrowRight", True, 4),
                               ("ArrowLeft", True, 0), ("ArrowLeft", False, 63),
                               ("ArrowRight", False, 0)):
        fox.press(key, shift)
        assert fox.run(SHOWN % 0) == in_step(number), (key, shift)
    x, y, width = fox.run("(({x, y, width, height}) => [x, y + height / 2, width])"
                          "(document.querySelectorAll('.slice')[2].getBoundingClientRect())")
    fox.drag((x + 0.1 * width, y), (x + 0.5 * width, y), (x + 0.7501 * width, y))
    assert fox.run(SHOWN % 0) == in_step(48)
    fox.run("go(62)")
    fox.press(" ")
    fox.until("tick > 0 && tick < 32")  # round and round
    assert fox.run("playing")
    fox.press("q")
    assert fox.run("speed") == 0.25
    fox.press(" ")
    assert fox.run(SHOWN % 0) == in_step(fox.run("tick")) and not fox.run("playing")


def test_while_it_runs_the_page_reads_itself_anew_and_stays_where_it_was(browser, tmp_path):
    frames = moving(16)[:, ::8, ::8]
    Page(tmp_path).write([], page.live("a name", "video 1 of 2, 3 s left", 0.25, frames, 8.0))
    browser.open(tmp_path / page.NAME, still=True)
    ready(browser)
    said = "[document.querySelector('h2').textContent, document.querySelector('progress').value]"
    assert browser.run(said) == ["a name", 0.25]
    browser.run("go(5)")
    write_result(tmp_path, "first")
    Page(tmp_path).write(results(tmp_path))
    browser.until("typeof page !== 'undefined' && page.live === null && entries.length === 1", 60)
    ready(browser)
    assert browser.run("[playing, document.querySelectorAll('progress').length]") == [False, 0]


def test_a_notebook_plays_all_stages_of_a_video_in_step(browser, tmp_path):
    frames = [torch.from_numpy(moving(n)) for n in FRAMES]
    video = Video("a <b>", 3, frames, list(RATES), [], Settings(), 0)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><h1>Above</h1>{video._repr_html_()}")
    browser.open(tmp_path / "notebook.html", still=True)
    inside = "document.querySelector('iframe').contentWindow.eval(%s)"
    browser.until(inside % json.dumps("entries[0].panels.every((panel) => panel.cells)"))
    for number in (0, 5, 63):
        shown = inside % json.dumps(f"go({number}), {SHOWN % 0}")
        assert browser.run(shown) == in_step(number)
    title, scrolls, header = browser.run(inside % json.dumps(
        "[document.querySelector('h2').textContent, document.documentElement.scrollHeight - "
        "innerHeight, document.querySelector('header').offsetHeight]"))
    assert title == "a <b>" and scrolls <= 0 and header == 0
    assert not browser.errors


def test_a_gif_shows_frames_that_are_alike_as_often_as_they_play(tmp_path):
    still = np.zeros((16, 32, 32, 3), np.uint8)
    still[8:] = 255
    write_video(tmp_path / "a.gif", still, 8)
    assert len(read_video(tmp_path / "a.gif")) == 2
    shown = read_video(tmp_path / "a.gif", 16)[:, 0, 0, 0]
    assert (shown[:8] < 9).all() and (shown[8:] > 246).all()
