"""The small world is read back as it was drawn."""

import random
from dataclasses import replace

import pytest
import torch

from smallworld.draw import COLORS, DIRECTIONS, SPEEDS, frame_times, parse, random_scene, render
from smallworld.gate import LIMITS, measures
from smallworld.read import read

SCENES = [random_scene(random.Random(f"test/{i}")) for i in range(60)]


@pytest.fixture(scope="module")
def videos():
    return render(SCENES, frame_times(16, 8)[None].expand(len(SCENES), -1)).permute(0, 1, 3, 4, 2)


def test_prompts_say_what_the_scene_is():
    for scene in SCENES:
        for speed in (True, False):
            for background in (True, False):
                asked = parse(scene.prompt(speed, background))
                assert all(getattr(scene, key) == value for key, value in asked.items())
                assert ("speed" in asked, "background" in asked) == (speed, background)
    assert parse("a red circle moving left") == {"color": "red", "shape": "circle", "direction": "left"}
    with pytest.raises(ValueError, match="not a prompt of the small world"):
        parse("a panda eats a pizza")


def test_true_renders_pass_the_gate(videos):
    readings = [read(video) for video in videos]
    got = measures(readings, SCENES, fps=8)
    assert all(got[name] == 1.0 for name in LIMITS if name != "jumps a clip")
    assert got["jumps a clip"] == 0 and got["likeness of shape"] > 0.9


def test_the_path_is_read_to_a_fraction_of_a_pixel(videos):
    for scene, video in zip(SCENES, videos):
        true = torch.tensor([scene.position(t) for t in frame_times(16, 8).tolist()])
        assert (read(video).path - true).norm(dim=1).max() < 0.8 / 64


def test_wrong_videos_do_not_pass(videos):
    """Backwards, still, frozen and shuffled videos fail what they should."""
    for scene, video in list(zip(SCENES, videos))[:10]:
        assert not read(video.flip(0)).goes(scene.direction, 8)
        still = read(video[:1].expand(16, -1, -1, -1))
        assert not still.goes(scene.direction, 8) and not still.has_speed(scene.speed, 8)
        assert not read(video[::2].repeat_interleave(4, 0)[:16]).has_speed(scene.speed, 8)
    shuffled = [read(video[torch.randperm(16)]) for video in videos]
    assert measures(shuffled, SCENES, 8)["jumps a clip"] > 1


def test_grey_frames_show_nothing():
    reading = read(torch.full((4, 64, 64, 3), 0.5))
    assert reading.color is None and reading.shape is None and reading.velocity(8) == (0.0, 0.0)
    assert reading.jumps("slowly", 8) == 3


def test_more_frames_show_the_same_seconds():
    scene = [SCENES[0]]
    slow, dense = (render(scene, frame_times(16 * n, 8 * n)[None])[0] for n in (1, 4))
    assert torch.allclose(slow, dense[::4], atol=1e-5)


def test_every_word_is_drawn():
    assert {s.color for s in SCENES} == set(COLORS) and {s.direction for s in SCENES} == set(DIRECTIONS)
    assert {s.speed for s in SCENES} == set(SPEEDS)


def test_a_first_frame_tells_the_direction_and_not_the_speed():
    """The tail is behind the shape, does not disturb the reading, and both speeds start alike."""
    for i in range(20):
        scene = random_scene(random.Random(f"tail/{i}"), tail=True)
        video = render([scene], frame_times(14, 7)[None])[0].permute(0, 2, 3, 1)
        reading = read(video)
        assert (reading.color, reading.shape) == (scene.color, scene.shape)
        assert reading.goes(scene.direction, 7) and reading.has_speed(scene.speed, 7)
        plain = render([replace(scene, tail=False)], torch.zeros(1, 1))[0, 0].permute(1, 2, 0)
        changed = ((video[0] - plain).abs().amax(-1) > 0.05).nonzero().float().mean(0)  # row, column
        x, y = scene.position(0)
        dx, dy = DIRECTIONS[scene.direction]
        assert (changed[1] / 64 - x) * dx + (changed[0] / 64 - y) * dy < -scene.radius
        start = 0.5 - SPEEDS["quickly"]  # of the way ahead
        assert abs((x - 0.5) * dx + (y - 0.5) * dy - (start - 0.5)) <= 0.04 + 1e-6
