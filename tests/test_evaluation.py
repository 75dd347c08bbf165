"""The evaluation: what it measures on known videos, and the command as its user runs it."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation import __main__ as command
from evaluation import compare, detectors, figures, jobs, rows, tables
from evaluation.jobs import measures
from evaluation.metrics import inception_score
from smallworld import classifier, gate, world
from smallworld.draw import frame_times, random_scene, render
from smallworld.world import SmallWorld
from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import describe, find
from zerosmooth.pipeline import NonFiniteError
from zerosmooth.video import write_video
from zerosmooth_cli.results import write_tensors

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SHARES = {f"{what} right" for what in ("color", "shape", "direction", "speed")}


class StandIn(nn.Module):
    """Takes and answers what I3D does: mean colours as features."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False,
                return_features: bool = False) -> Tensor:
        mean = x.mean(dim=[2, 3, 4]) / 255 * (2.0 if rescale and resize else 1.0)
        return mean if return_features else mean.softmax(-1)


class Classes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(dim=[2, 3, 4]) / 16).softmax(-1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) @ torch.ones(3 * 16 * 64 * 64, 2)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("detectors")
    networks = {"features": StandIn(), "classes": Classes(), "pair": Pair(), "sized": Sized()}
    for name, network in networks.items():
        torch.jit.script(network).save(folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in networks}


# --- rows


def settings_of(row, **asked):
    return rows.settings_of_row(row, describe(find("vc2-small")), asked)


def test_rows_share_what_is_asked_and_freenoise_has_its_own_eta():
    direct, freenoise = (settings_of(row, steps=7, scale=2) for row in ("direct", "freenoise"))
    assert (direct.steps, direct.eta, direct.scale) == (7, 1.0, 2)
    assert (freenoise.steps, freenoise.eta, freenoise.scale) == (7, 0.0, 2)


def test_each_row_of_the_ablation_adds_one_part():
    chain = [settings_of(row) for row in rows.TABLES["3"]]
    assert [s.method for s in chain] == ["direct"] + ["zerosmooth"] * 4
    parts = [(s.spatial, s.temporal, s.kv_operator, s.cascade.strength_at(0.5)) for s in chain[1:]]
    assert parts == [(True, False, "S", 1.0), (True, True, "S", 1.0), (True, True, "A1/A2", 1.0),
                     (True, True, "A1/A2", 0.4)]
    assert chain[-1].cascade == Cascade(16)  # the last one is the method as it is


def test_a_row_may_change_settings():
    row = settings_of("zerosmooth:a1_probability=0.5,overlap=2,strength_schedule=constant,"
                      "temporal=false")
    assert (row.a1_probability, row.overlap, row.strength_schedule) == (0.5, 2, "constant")
    assert row.spatial and not row.temporal


@pytest.mark.parametrize(("row", "message"), [
    ("magic", "no row 'magic'"),
    ("zerosmooth:steps=3", "changes 'steps'"),
    ("zerosmooth:strength=high", "number is needed"),
    ("zerosmooth:strength=2", "strength=2.0; use 0 to 1"),
    ("direct:strength=1", "does nothing to direct"),
])
def test_a_row_that_cannot_be_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        settings_of(row)


# --- measures


@pytest.fixture(scope="module")
def true():
    """A scene and its true frames at 8 and at 32 frames a second."""
    scene = random_scene(random.Random("evaluation"))
    short, long = (render([scene], frame_times(16 * n, 8 * n)[None])[0].permute(0, 2, 3, 1)
                   for n in (1, 4))
    return scene, (short * 255).round().byte(), (long * 255).round().byte()


def measured(frames, base, n, scene):
    """What a record of a scene holds."""
    shown = SmallWorld().measures(None, frames, scene, n, 8.0 * n, paced=True)
    return measures(frames, base, n) | shown


def test_a_true_video_measures_as_well_as_can_be(true):
    scene, short, long = true
    got = measured(long, short, 4, scene)
    assert got["PSNR"] > 60 and got["SSIM"] > 0.999
    assert got["jitter"] < 0.2 and got["off path"] < 0.2 and got["area"] < 0.02
    assert got["redrawn"] > 30 and abs(got["redrawn"] - got["redrawn keys"]) < 1.5
    assert got["lost"] == 0 and all(got[share] == 1 for share in SHARES)


def test_key_frames_alone_and_scenes_without_a_speed_have_fewer_measures(true):
    scene, short, _ = true
    assert set(measured(short, short, 1, scene)) == SHARES | {"lost", "jitter"}
    unpaced = SmallWorld().measures(None, short, scene, 1, 8.0, paced=False)
    assert set(unpaced) == (SHARES | {"lost", "jitter"}) - {"speed right"}
    assert set(measures(short.repeat(2, 1, 1, 1), short, 2)) == {"PSNR", "SSIM", "blend", "uneven"}


def test_held_and_blended_frames_lose_what_they_should(true):
    """Both keep the key frames, but what they insert is not where it should be."""
    scene, short, long = true
    good = measured(long, short, 4, scene)
    held = measured(short.repeat_interleave(4, 0), short, 4, scene)
    after = torch.cat([short[1:], short[-1:]]).float()
    faded = [torch.lerp(short.float(), after, i / 4) for i in range(4)]
    fade = measured(torch.stack(faded, 1).flatten(0, 1).round().byte(), short, 4, scene)
    assert held["PSNR"] == fade["PSNR"] == 100 and fade["blend"] > good["blend"] + 5
    assert max(held["redrawn"], fade["redrawn"]) < good["redrawn"] - 3
    assert held["jitter"] > 3 * good["jitter"]


# --- detectors


def test_a_detector_is_asked_as_the_field_asks_it(stand_ins):
    video = torch.full((20, 12, 12, 3), 51, dtype=torch.uint8)
    video[:2] = video[18:] = 255  # outside the 16 in the middle
    features = detectors.torchscript(stand_ins["features"], CPU, probabilities=False)
    assert torch.allclose(features(video), torch.full((3,), 0.4))  # all three flags are on
    assert "rescale=True resize=True return_features=True" in features.protocol
    assert "16 frames" in features.protocol
    classes = detectors.torchscript(stand_ins["classes"], CPU, probabilities=True)
    assert torch.allclose(classes(video), torch.full((3,), 1 / 3))


def test_what_is_no_detector_is_refused(tmp_path, stand_ins):
    text = tmp_path / "text.pt"
    text.write_text("no TorchScript")
    for path, probabilities, message in (
        (text, False, "not a TorchScript"), (tmp_path / "nowhere.pt", False, "does not exist"),
        (stand_ins["pair"], False, "answers a clip with tuple"),
        (stand_ins["features"], True, "do not sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            detectors.torchscript(path, CPU, probabilities)
    sized = detectors.torchscript(stand_ins["sized"], CPU, False)
    with pytest.raises(ValueError, match="sized.pt does not take clips of 1 3 14 64 64"):
        sized(torch.zeros(14, 64, 64, 3, dtype=torch.uint8))


def noise_video(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(256, size=(17, 32, 32, 3), dtype=np.uint8)
    write_video(path, noise, 25)


def test_real_videos_are_two_or_more_and_measured_again_when_replaced(tmp_path, stand_ins):
    detector = detectors.torchscript(stand_ins["features"], CPU, False)
    noise_video(tmp_path / "real/0.mp4", 0)
    with pytest.raises(ValueError, match="two real ones or more"):
        compare.RealVideos(tmp_path / "real", tmp_path / "features", detector)
    noise_video(tmp_path / "real/1.mp4", 1)
    videos = compare.RealVideos(tmp_path / "real", tmp_path / "features", detector)
    videos.measure()
    before = videos.features()
    noise_video(tmp_path / "real/1.mp4", 2)
    videos.measure()
    after = videos.features()
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_our_classifier_reads_the_small_world():
    """Nearly every word of unseen true videos; a score far above 1, of at most as many videos."""
    network = classifier.load()
    generator = torch.Generator().manual_seed(1)
    x, asked, way = classifier.batch(random.Random("unseen"), generator, 40)
    h = network.features(x)
    for name, head in network.heads.items():
        assert (head(h).argmax(-1) == asked[name]).float().mean() > 0.95
    assert (network.pace(h)[:, 0] - way).abs().mean() < 0.2
    assert 20 < inception_score(network.probabilities(h)) <= 40


# --- pictures


def test_rows_show_the_line_on_which_most_happens_in_the_base_video(monkeypatch):
    """A row whose shape strays is drawn along it too; the true rendering has the same axis."""
    base, strays, truth = (np.zeros((16, 24, 24, 3), np.uint8) for _ in range(3))
    for f in range(16):
        base[f, 4:8, f : f + 4] = strays[f, f : f + 4, 4:8] = truth[f, 14:18, f : f + 4] = 255
    drawn, real = [], figures.line_over_time

    def line(x, axis, at):
        drawn.append((axis, at))
        return real(x, axis, at)

    monkeypatch.setattr(figures, "line_over_time", line)
    videos = {"direct": strays, "zerosmooth": base, jobs.TRUTH: truth}
    figures.side_by_side("a square", videos, base)
    assert drawn[0] == drawn[1] and drawn[0][0] == drawn[2][0] == 1
    assert 4 <= drawn[0][1] < 8 and 14 <= drawn[2][1] < 18


# --- tables


def test_jackknife_of_a_mean_is_its_standard_error():
    x = torch.arange(10.0)[:, None]
    value, error = tables.jackknife(x, lambda part: part.mean().item())
    assert value == 4.5 and error == pytest.approx(x.std().item() / math.sqrt(10), rel=1e-6)


def record(row: str, subject: str, psnr: float, features: Path | None = None) -> dict:
    stages = [{"frames": 16}, {"frames": 32, "PSNR": psnr}]
    return {"row": row, "subject": subject, "seed": 0, "seconds": 1.0, "stages": stages,
            "features": features}


def test_tables_give_means_errors_and_paired_differences():
    records = [record("zerosmooth", "a", 20.0), record("zerosmooth", "b", 24.0)]
    records += [record("direct", name, psnr)
                for name, psnr in (("a", 15.0), ("b", 20.0), ("only here", 99.0))]
    results = tables.Results(records, {})
    assert results.value("zerosmooth", 1, "PSNR") == (22.0, pytest.approx(2.0))
    less = results.value("direct", 1, "PSNR", "zerosmooth")
    assert less == (-4.5, pytest.approx(0.5))  # -5 and -4
    assert results.value("direct", 1, "jitter") is None
    assert list(results.rows) == ["direct", "zerosmooth"]
    text = tables.markdown(results, "vc2")
    assert "| zerosmooth | 2 | 22.00 ± 2.00 |" in text and "| direct | -4.50 ± 0.50 |" in text
    assert "24.12" in text and "10.9" in text  # the paper's
    assert "| direct | 15.00 |\n| zerosmooth | 20.00 |" in text  # the worst of fewer than 20
    assert results.as_json()["direct"]["stages"][1]["worst twentieth"] == {"PSNR": 15.0}


def test_the_worst_twentieth_is_the_mean_of_the_worst():
    values = [float(i) for i in range(41)]  # three of 41
    assert tables.worst("PSNR", values) == (1.0, None)
    assert tables.worst("jitter", [*values, math.nan]) == (39.0, None)
    assert tables.worst("off path", [1.0, 5.0, 2.0]) == (5.0, None)
    assert tables.worst("blend", values) is None and tables.worst("PSNR", [math.nan]) is None


def test_a_table_without_the_method_and_with_lost_shapes():
    results = tables.Results([record("direct", "a", 15.0), record("ddnm", "a", math.nan)], {})
    assert "| direct | 1 | 15.00 |" in tables.markdown(results, "svd")
    assert results.value("ddnm", 1, "PSNR") is None
    json.dumps(results.as_json(), allow_nan=False)


def test_fvd_and_is_are_those_of_the_same_videos(tmp_path):
    """FVD of known Gaussians is the squared distance of their means. One row has a video more."""
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(3, 1)
    classes = torch.eye(4).repeat(3, 1)  # sure, and even over four: a score of 4

    def records(row: str, x: Tensor, p: Tensor) -> list[dict]:
        found = []
        for i in range(len(x)):
            features = {"FVD/0": x[i], "FVD/1": x[i] + 9, "IS/1": p[i]}
            write_tensors(path := tmp_path / f"{row}{i}.features", features)
            found.append(record(row, str(i), 20.0, path))
        return found

    extra = torch.cat([square + torch.tensor([3.0, 0]), torch.tensor([[100.0, 100.0]])])
    made = records("direct", extra, torch.cat([classes, classes[:1]]))
    made += records("zerosmooth", square, classes)
    results = tables.Results(made, {0: square, 1: square + 9})
    assert len(results.shared) == 12
    for stage in (0, 1):
        value, error = results.value("direct", stage, "FVD")
        assert value == pytest.approx(9, abs=1e-5) and 0 <= error < 2.8
        assert results.value("zerosmooth", stage, "FVD")[0] == pytest.approx(0, abs=1e-5)
        less = results.value("direct", stage, "FVD", "zerosmooth")
        assert less[0] == pytest.approx(9, abs=1e-5)
    assert results.value("direct", 1, "IS")[0] == pytest.approx(4)
    assert results.value("direct", 0, "IS") is None
    # a row of an earlier run that has few of them leaves the rows asked for as they are
    few = records("ddnm", square[:2], classes[:2])
    results = tables.Results([*made, *few], {0: square, 1: square + 9}, ["direct", "zerosmooth"])
    assert len(results.shared) == 12 and results.value("ddnm", 1, "FVD") is None
    assert results.value("direct", 1, "FVD")[0] == pytest.approx(9, abs=1e-5)


# --- the command


def run(*arguments) -> int:
    return command.main(list(map(str, arguments)))


def records_of(folder: Path) -> dict[str, dict]:
    return {p.name: json.loads(p.read_text()) for p in (folder / "videos").glob("*.json")}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny, stand_ins):
    """The UCF-101 experiment in small: prompts, seeds, rows, real videos, two detectors."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "prompts.txt").write_text("# two\na cat\na dog\n")
    for i in range(2):
        noise_video(folder / f"real/class{i}/{i}.mp4", i)
    return [
        *("--ckpt", tiny / "vc2.safetensors", "--prompt_file", folder / "prompts.txt"),
        *("--num_videos", 2, "--rows", *ROWS, "--steps", 1, "--scale", 2, "--device", "cpu"),
        *("--detector", stand_ins["features"], "--classifier", stand_ins["classes"]),
        *("--real", folder / "real", "--show", 1),
    ]


ROWS = ["direct", "zerosmooth", "zerosmooth:strength=0.4"]


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory) -> Path:
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("one")
    with torch.inference_mode():
        assert run(*experiment, "--outdir", folder) == 0
    return folder


def test_it_writes_records_tables_and_pictures(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results["rows"]) == ROWS and results["rows"]["direct"]["videos"] == 4
    second = results["rows"]["direct"]["stages"][1]
    assert set(second["values"]) == {"FVD", "IS", "PSNR", "SSIM", "blend", "uneven", "seconds"}
    assert set(second["less zerosmooth"]) == set(second["values"])
    assert "features.pt" in results["protocol"]["FVD"] and results["versions"]["torch"]
    assert "24.12" in (whole / "table.md").read_text() and len(records_of(whole)) == 12
    assert iio.imread(whole / "side-by-side-0.png").ndim == 3


def test_records_hold_flat_settings(whole):
    for made in records_of(whole).values():
        assert made["settings"]["scale"] == 2 and made["settings"]["steps"] == 1
        if ":" in made["row"]:
            assert made["settings"]["strength"] == 0.4


def test_the_rows_play_side_by_side_on_a_page(whole):
    page = (whole / "index.html").read_text()
    (entry,) = map(json.loads, re.findall(r'class="entry".*?>(.*)</script>', page))
    assert [panel["label"] for panel in entry["panels"]] == ["key frames", *ROWS]
    assert len({panel["frames"] / panel["fps"] for panel in entry["panels"]}) == 1
    assert entry["command"].startswith("python -m evaluation")


def test_a_stopped_run_goes_on_and_gives_what_an_unbroken_one_does(experiment, whole, tmp_path,
                                                                  monkeypatch, capsys):
    made, measure_jobs = [], command.measure_jobs

    def stopping(*args):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(args)
        measure_jobs(*args)

    monkeypatch.setattr(command, "measure_jobs", stopping)
    assert run(*experiment, "--outdir", tmp_path) == 130
    monkeypatch.undo()
    assert run(*experiment, "--outdir", tmp_path) == 0
    assert "5 of 12 videos are measured already" in capsys.readouterr().out
    one, two = records_of(whole), records_of(tmp_path)
    assert one.keys() == two.keys()
    assert all(one[name]["stages"] == two[name]["stages"] for name in one)


@pytest.mark.long
def test_two_processes_killed_and_resumed_give_what_one_gives(experiment, whole, tmp_path):
    def start(processes: int) -> subprocess.Popen:
        several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        options = [*map(str, experiment), "--outdir", str(tmp_path)]
        return subprocess.Popen([sys.executable, "-m", *several, "evaluation", *options], cwd=ROOT,
                                env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    first = start(2)
    for _ in range(1200):
        if len(records_of(tmp_path)) >= 2:
            break
        time.sleep(0.05)
    first.terminate()  # torchrun ends its processes the same way
    first.communicate()
    assert 2 <= len(records_of(tmp_path)) <= 12
    second = start(2)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0 and "are measured already" in out, err
    one, two = records_of(whole), records_of(tmp_path)
    assert one.keys() == two.keys()
    for name in one:  # other numbers of threads round otherwise
        for x, y in zip(one[name]["stages"], two[name]["stages"]):
            assert x == pytest.approx(y, rel=1e-2)


def test_image_to_video_from_a_folder_of_first_frames(tmp_path, tiny):
    """Another image of the same name is another subject."""
    for count, grey in ((2, 60), (4, 160)):
        iio.imwrite(tmp_path / "0.png", np.full((30, 50, 3), grey, np.uint8))
        assert run("--ckpt", tiny / "svd.safetensors", "--image", tmp_path / "0.png", "--rows",
                   "ddnm", "zerosmooth", "--steps", 1, "--scale", 2, "--device", "cpu", "--outdir",
                   tmp_path / "out") == 0
        made = records_of(tmp_path / "out").values()
        assert len(made) == count
        assert all("PSNR" in r["stages"][1] and r["image_sha256"] for r in made)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("broken", "said"), [
    (lambda job: job.seed == 1, "2 of 4 videos turned NaN and were left out: direct, ddnm"),
    (lambda job: job.row == "ddnm", "2 of 4 videos turned NaN and were left out: ddnm"),
    (lambda job: True, "every video turned NaN"),
])
def test_videos_that_turn_nan_are_left_out_and_said(tmp_path, tiny, monkeypatch, capsys, broken,
                                                   said, batch):
    measure_jobs = command.measure_jobs

    def turning(pipeline, plan, jobs, keep):
        if any(map(broken, jobs)):
            raise NonFiniteError("NaN")
        return measure_jobs(pipeline, plan, jobs, keep)

    monkeypatch.setattr(command, "measure_jobs", turning)
    assert run("--ckpt", tiny / "vc2.safetensors", "--num_videos", 2, "--rows", "direct", "ddnm",
               "--steps", 1, "--scale", 2, "--device", "cpu", "--outdir", tmp_path,
               "--batch_size", batch) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "table.md").exists() == (said != "every video turned NaN")


def test_another_evaluation_does_not_mix_in(experiment, whole, capsys):
    assert run(*experiment, "--outdir", whole, "--guidance_scale", 5) == 1
    assert "differs in settings; use another --outdir" in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "message"), [
    (["--rows", "magic"], "no row 'magic'"),
    (["--guidance_scale", "nan"], "guidance_scale=nan; use"),
    (["--detector", __file__], "not a TorchScript file"),
    (["--scenes", 2], "leave prompt_file out"),
    (["--set", "strength=1"], "strength is a row's own: use --rows zerosmooth:strength=VALUE"),
    (["--set", "preset=anchored"], "preset is a row's own: use --rows anchored"),
    (["--set", "gif=true"], "gif does nothing to an evaluation"),
    (["--set", "strenght=1"], "did you mean strength"),
    (["--rows", "ldmvfi"], "needs its weights: --interpolator FILE"),
    (["--compare", "A", "B"], "--compare measures existing videos; leave ckpt out"),
    (["--batch_size", 0], "--batch_size=0; use 1 to"),
])
def test_bad_arguments_are_told_before_long_work(experiment, tmp_path, capsys, extra, message):
    assert run(*experiment, "--outdir", tmp_path, *extra) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "videos").exists()


def test_a_page_of_something_else_is_left_alone(experiment, tmp_path):
    (tmp_path / "index.html").write_text("<p>another's")
    args = command.parse([*map(str, experiment), "--outdir", str(tmp_path)])
    with pytest.raises(ValueError, match="is a page of something else"):
        command.prepare(args)


def test_a_batch_measures_what_single_videos_do(experiment, whole, tmp_path):
    """Up to rounding."""
    assert run(*experiment, "--outdir", tmp_path, "--batch_size", 3) == 0
    one, several = records_of(whole), records_of(tmp_path)
    assert {made["running"]["batch_size"] for made in several.values()} == {1, 3}
    for name, made in one.items():
        for x, y in zip(made["stages"], several[name]["stages"], strict=True):
            assert y == pytest.approx(x, rel=0.02)


def test_what_it_makes_of_other_scenes_does_not_mix_in(tmp_path, monkeypatch, capsys):
    asked = ["--scenes", 1, "--rows", "direct", "--outdir", tmp_path]
    command.prepare(command.parse([*map(str, asked)]))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.json").write_text("{}")
    monkeypatch.setattr(gate, "random_scene", lambda rng, tail: random_scene(rng, tail=not tail))
    assert run(*asked) == 1
    assert "differs in subjects; use another --outdir" in capsys.readouterr().err


def test_all_frames_of_a_model_that_packs_them_count(tmp_path):
    where = ROOT / "smallworld"
    work = command.prepare(command.parse([*map(str, [
        "--family", where / "wan.py", "--ckpt", where / "wan-small.safetensors", "--scenes", 1,
        "--scale", 1, "--rows", "direct", "--outdir", tmp_path])]))
    assert work.plan.frames_of(0) == 17


def test_scenes_are_measured_beside_their_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "REFERENCES", 8)
    assert run("--scenes", 1, "--rows", "windowed", "--steps", 1, "--scale", 2, "--device", "cpu",
               "--outdir", tmp_path) == 0
    made = {r["row"]: r["stages"] for r in records_of(tmp_path).values()}
    assert made.keys() == {"windowed", jobs.TRUTH}
    truth, videos = made[jobs.TRUTH][1], made["windowed"][1]
    assert truth.keys() == videos.keys() > SHARES and videos["redrawn"] < truth["redrawn"]


# --- two folders


def folder_of(path: Path, frames: Tensor) -> None:
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        iio.imwrite(path / f"{i:03d}.png", frame.numpy())


def test_folders_of_videos_are_compared(tmp_path, true, stand_ins):
    """B as an interpolator makes it, with three frames between two of A, in folders of frames."""
    _, short, long = true
    for i in range(4):
        folder_of(tmp_path / f"A/video{i}", short[:4])
        folder_of(tmp_path / f"B/video{i}", long[:13])
    found = {"FVD": detectors.torchscript(stand_ins["features"], CPU, False)}
    real = compare.RealVideos(tmp_path / "A", tmp_path / "real", found["FVD"])
    text = compare.compare(str(tmp_path / "A"), str(tmp_path / "B/*"), found, real)
    assert "4 pairs" in text and "| PSNR | 100.00 ± 0.00 |" in text
    assert "| SSIM | 1.000 ± 0.000 |" in text and "| blend |" in text
    assert "| FVD of A | 0.00 ± 0.00 |" in text and "| FVD of B |" in text
    with pytest.raises(ValueError, match="FVD and IS need 4 pairs or more, not 1"):
        compare.compare(str(tmp_path / "A/video0*"), str(tmp_path / "B/video0*"), found, real)
    with pytest.raises(ValueError, match="no video at"):
        compare.compare(str(tmp_path / "*.mp4"), str(tmp_path / "B"), {})
    with pytest.raises(ValueError, match="video1 and 2 more of .*A has no video of its name"):
        compare.compare(str(tmp_path / "A"), str(tmp_path / "B/video0*"), {})


@pytest.mark.parametrize(("frames", "others", "n"), [
    (16, 61, 4), (16, 64, 4), (4, 25, 8), (16, 16, 1), (1, 4, 4), (16, 20, None)])
def test_frames_pair_as_cascades_and_interpolators_make_them(frames, others, n):
    x, y = (torch.zeros(count, 2, 2, 3) for count in (frames, others))
    if n is not None:
        assert compare._scale(Path("a"), Path("b"), x, y) == n
        return
    with pytest.raises(ValueError, match="b has 20 frames"):
        compare._scale(Path("a"), Path("b"), x, y)
