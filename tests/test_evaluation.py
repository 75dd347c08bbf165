"""The evaluation: what it measures on videos that are known, and the command as its user runs it."""

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
import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation import __main__ as command
from evaluation import compare, detectors, figures, jobs, reference, rows, tables
from evaluation.jobs import measures
from evaluation.metrics import inception_score
from smallworld import classifier
from smallworld.draw import frame_times, random_scene, render
from smallworld.world import SmallWorld
from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import describe, find
from zerosmooth.pipeline import NonFiniteError
from zerosmooth.results import write_tensors
from zerosmooth.video import write_video

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


class StandIn(nn.Module):
    """Takes and answers what I3D and C3D do: mean colours as features, their softmax as classes."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        mean = x.mean(dim=[2, 3, 4]) / 255 * (2.0 if rescale and resize else 1.0)
        return mean if return_features else mean.softmax(-1)


class Classes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(dim=[2, 3, 4]) / 16).softmax(-1)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("detectors")
    paths = {"features": folder / "features.pt", "classes": folder / "classes.pt"}
    torch.jit.script(StandIn()).save(paths["features"])
    torch.jit.script(Classes()).save(paths["classes"])
    return paths


# --- rows


def settings_of(row, **asked):
    return rows.settings_of_row(row, describe(find("vc2-small")), asked)


def test_rows_share_what_is_asked_and_freenoise_has_its_own_eta():
    direct, freenoise = (settings_of(row, steps=7, scales=(2,)) for row in ("direct", "freenoise"))
    assert (direct.steps, direct.eta, direct.cascade.scales) == (7, 1.0, (2,))
    assert (freenoise.steps, freenoise.eta, freenoise.cascade.scales) == (7, 0.0, (2,))


def test_each_row_of_the_ablation_adds_one_part():
    chain = [settings_of(row).cascade for row in rows.TABLES["3"]]
    assert [c.method for c in chain] == ["direct"] + ["zerosmooth"] * 4
    parts = [
        (c.correction.spatial, c.correction.temporal, c.correction.kv_operator, c.strength_at(0.5)) for c in chain[1:]
    ]
    assert parts == [
        (True, False, "S", 1.0),
        (True, True, "S", 1.0),
        (True, True, "A1/A2", 1.0),
        (True, True, "A1/A2", 0.4),
    ]
    assert chain[-1] == Cascade(16)  # the last one is the method as it is


def test_a_row_may_change_settings():
    row = settings_of("zerosmooth:a1_probability=0.5,overlap=2,strength_schedule=constant,temporal=false").cascade
    assert (row.correction.a1_probability, row.overlap, row.strength_schedule) == (0.5, 2, "constant")
    assert row.correction.spatial and not row.correction.temporal


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("magic", "no row 'magic'"),
        ("zerosmooth:steps=3", "changes 'steps'"),
        ("zerosmooth:spatial=no", "true or false is needed"),
        ("zerosmooth:strength=high", "float is needed"),
        ("zerosmooth:overlap=2.5", "int is needed"),
        ("zerosmooth:strength=2", "strength=2.0; use 0 to 1"),
        ("zerosmooth:kv_operator=A3", "A1/A2"),
        ("direct:strength=1", "does nothing to direct"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        settings_of(row)


# --- measures


@pytest.fixture(scope="module")
def true():
    """A scene and its true frames at 8 and at 32 frames a second."""
    scene = random_scene(random.Random("evaluation"))
    short, long = (render([scene], frame_times(16 * n, 8 * n)[None])[0].permute(0, 2, 3, 1) for n in (1, 4))
    return scene, (short * 255).round().byte(), (long * 255).round().byte()


def measured(frames, base, n, scene):
    """What a record of a scene holds."""
    return measures(frames, base, n) | SmallWorld().measures(frames, scene, n, 8.0 * n, paced=True)


def test_a_true_video_measures_as_well_as_can_be(true):
    scene, short, long = true
    got = measured(long, short, 4, scene)
    assert got["PSNR"] > 60 and got["SSIM"] > 0.999
    assert got["jitter"] < 0.2 and got["off path"] < 0.2 and got["area"] < 0.02 and got["lost"] == 0
    assert got["redrawn"] > 30 and abs(got["redrawn"] - got["redrawn keys"]) < 1.5
    assert all(got[f"{what} right"] == 1 for what in ("color", "shape", "direction", "speed"))
    right = {f"{what} right" for what in ("color", "shape", "direction", "speed")}
    assert set(measured(short, short, 1, scene)) == right | {"lost", "jitter"}
    unpaced = SmallWorld().measures(short, scene, 1, 8.0, paced=False)
    assert set(unpaced) == (right | {"lost", "jitter"}) - {"speed right"}


def test_held_and_blended_frames_lose_what_they_should(true):
    """Holding key frames and fading between them keep key frames; what they insert is not where it should be."""
    scene, short, long = true
    good = measured(long, short, 4, scene)
    held = measured(short.repeat_interleave(4, 0), short, 4, scene)
    after = torch.cat([short[1:], short[-1:]]).float()
    faded = torch.stack([torch.lerp(short.float(), after, i / 4) for i in range(4)], 1).flatten(0, 1).round().byte()
    fade = measured(faded, short, 4, scene)
    assert held["PSNR"] == fade["PSNR"] == 100 and fade["blend"] > good["blend"] + 5
    assert held["redrawn"] < good["redrawn"] - 3 and fade["redrawn"] < good["redrawn"] - 3
    assert held["jitter"] > 3 * good["jitter"]


def test_videos_without_a_scene_are_measured_against_their_key_frames_alone(true):
    _, short, long = true
    assert set(measures(long, short, 4)) == {"PSNR", "SSIM", "blend"}


# --- detectors


def test_a_detector_is_asked_as_the_field_asks_it(stand_ins):
    video = torch.full((20, 12, 12, 3), 51, dtype=torch.uint8)
    video[:2] = video[18:] = 255  # outside the 16 in the middle
    features = detectors.torchscript(stand_ins["features"], CPU, probabilities=False)
    assert torch.allclose(features(video), torch.full((3,), 0.4))  # rescale, resize and return_features are on
    assert "rescale=True resize=True return_features=True" in features.protocol and "16 frames" in features.protocol
    classes = detectors.torchscript(stand_ins["classes"], CPU, probabilities=True)
    assert torch.allclose(classes(video), torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="do not sum to 1"):
        detectors.torchscript(stand_ins["features"], CPU, probabilities=True)


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no TorchScript")
    with pytest.raises(ValueError, match="no TorchScript"):
        detectors.torchscript(tmp_path / "text.pt", CPU, False)
    with pytest.raises(ValueError, match="does not exist"):
        detectors.torchscript(tmp_path / "nowhere.pt", CPU, False)

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    torch.jit.script(Pair()).save(str(tmp_path / "pair.pt"))
    with pytest.raises(ValueError, match="answers a clip with tuple"):
        detectors.torchscript(tmp_path / "pair.pt", CPU, False)

    class Sized(torch.nn.Module):
        def forward(self, x):
            return x.reshape(len(x), -1) @ torch.ones(3 * 16 * 64 * 64, 2)

    torch.jit.script(Sized()).save(str(tmp_path / "sized.pt"))
    sized = detectors.torchscript(tmp_path / "sized.pt", CPU, False)
    with pytest.raises(ValueError, match="sized.pt does not take clips of 1 3 14 64 64"):
        sized(torch.zeros(14, 64, 64, 3, dtype=torch.uint8))


def test_real_videos_are_two_or_more_and_measured_again_when_replaced(tmp_path, stand_ins):
    detector = detectors.torchscript(stand_ins["features"], CPU, False)
    noise = np.random.default_rng(0)

    def write(i: int) -> None:
        write_video(tmp_path / f"real/{i}.mp4", noise.integers(256, size=(17, 64, 64, 3), dtype=np.uint8), 25)

    (tmp_path / "real").mkdir()
    write(0)
    with pytest.raises(ValueError, match="two real ones or more"):
        reference.RealVideos(tmp_path / "real", tmp_path / "features", detector)
    write(1)
    videos = reference.RealVideos(tmp_path / "real", tmp_path / "features", detector)
    videos.measure()
    before = videos.features()
    write(1)
    videos.measure()
    assert torch.equal(videos.features()[0], before[0]) and not torch.equal(videos.features()[1], before[1])


def test_curves_of_single_videos_have_no_error_bars(tmp_path):
    matplotlib.use("agg")
    records = [record(row, "a", 20.0) for row in ("zerosmooth", "zerosmooth:strength=0.4")]
    figures.curves(tmp_path / "curves.png", {r["row"]: [0.8, 0.1] for r in records}, tables.Results(records, {}))
    assert (tmp_path / "curves.png").exists()


def test_rows_show_the_line_on_which_most_happens_in_the_base_video(monkeypatch):
    """A row of the picture whose shape strays is not drawn along another axis; the true rendering has the same axis."""
    base, strays, truth = (np.zeros((16, 24, 24, 3), np.uint8) for _ in range(3))
    for f in range(16):
        base[f, 4:8, f : f + 4] = strays[f, f : f + 4, 4:8] = truth[f, 14:18, f : f + 4] = 255
    drawn = []
    line_over_time = figures.line_over_time
    monkeypatch.setattr(
        figures, "line_over_time", lambda x, axis, at: drawn.append((axis, at)) or line_over_time(x, axis, at)
    )
    figures.side_by_side("a square", {"direct": strays, "zerosmooth": base, jobs.TRUTH: truth}, base)
    assert drawn[0] == drawn[1] and drawn[0][0] == drawn[2][0] == 1
    assert 4 <= drawn[0][1] < 8 and 14 <= drawn[2][1] < 18


def test_our_classifier_reads_the_small_world():
    """Nearly every word of unseen true videos; two thirds of a score of 72, which even classes would reach."""
    network = classifier.load()
    x, scenes, way = classifier.batch(random.Random("unseen"), torch.Generator().manual_seed(1), 64)
    h = network.features(x)
    for name, head in network.heads.items():
        asked = torch.tensor([classifier.CLASSES[name].index(getattr(s, name)) for s in scenes])
        assert (head(h).argmax(-1) == asked).float().mean() > 0.95
    assert (network.pace(h)[:, 0] - way).abs().mean() < 0.2
    assert 20 < inception_score(network.probabilities(h)) <= 64


# --- tables


def test_jackknife_of_a_mean_is_its_standard_error():
    x = torch.arange(10.0)[:, None]
    value, error = tables.jackknife(x, lambda part: part.mean().item())
    assert value == 4.5 and error == pytest.approx(x.std().item() / math.sqrt(10), rel=1e-6)


def record(row: str, subject: str, psnr: float, features: Path | None = None) -> dict:
    stages = [{"frames": 16}, {"frames": 32, "PSNR": psnr}]
    return {"row": row, "subject": subject, "seed": 0, "seconds": 1.0, "stages": stages, "features": features}


def test_tables_give_means_errors_and_paired_differences():
    records = [record("zerosmooth", "a", 20.0), record("zerosmooth", "b", 24.0)]
    records += [record("direct", "a", 15.0), record("direct", "b", 20.0), record("direct", "only here", 99.0)]
    results = tables.Results(records, {})
    assert results.value("zerosmooth", 1, "PSNR") == (22.0, pytest.approx(2.0))
    assert results.difference("direct", "zerosmooth", 1, "PSNR") == (-4.5, pytest.approx(0.5))  # -5 and -4
    assert results.value("direct", 1, "jitter") is None and list(results.rows) == ["direct", "zerosmooth"]
    text = tables.markdown(results, "vc2")
    assert "| zerosmooth | 2 | 22.00 ± 2.00 |" in text and "| direct | -4.50 ± 0.50 |" in text
    assert "24.12" in text and "10.9" in text  # the paper's


def test_a_table_without_the_method_and_with_lost_shapes():
    results = tables.Results([record("direct", "a", 15.0), record("ddnm", "a", math.nan)], {})
    assert "| direct | 1 | 15.00 |" in tables.markdown(results, "svd") and results.value("ddnm", 1, "PSNR") is None
    json.loads(json.dumps(results.as_json(), allow_nan=False))


def test_fvd_and_is_are_those_of_the_same_videos(tmp_path):
    """Features whose Gaussians are known: FVD is the squared distance of the means. One row has a video more."""
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(3, 1)

    def records(row: str, x: Tensor, p: Tensor) -> list[dict]:
        found = []
        for i in range(len(x)):
            write_tensors(path := tmp_path / f"{row}{i}.features", {"FVD/0": x[i], "FVD/1": x[i] + 9, "IS/1": p[i]})
            found.append(record(row, str(i), 20.0, path))
        return found

    classes = torch.eye(4).repeat(3, 1)  # sure, and even over four: a score of 4
    extra = torch.cat([square + torch.tensor([3.0, 0]), torch.tensor([[100.0, 100.0]])])
    of_direct = records("direct", extra, torch.cat([classes, classes[:1]]))
    results = tables.Results([*of_direct, *records("zerosmooth", square, classes)], {0: square, 1: square + 9})
    assert len(results.shared) == 12
    for stage in (0, 1):
        assert results.value("direct", stage, "FVD") == (pytest.approx(9, abs=1e-5), pytest.approx(1.4, abs=1.4))
        assert results.value("zerosmooth", stage, "FVD")[0] == pytest.approx(0, abs=1e-5)
        assert results.difference("direct", "zerosmooth", stage, "FVD")[0] == pytest.approx(9, abs=1e-5)
    assert results.value("direct", 1, "IS")[0] == pytest.approx(4) and results.value("direct", 0, "IS") is None


# --- the command


def evaluate(*arguments, processes: int = 1, **options) -> subprocess.Popen:
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    pipes["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}  # other numbers of threads round otherwise
    return subprocess.Popen([*python, "evaluation", *map(str, arguments)], **pipes, **options)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny, stand_ins):
    """The UCF-101 experiment in small: prompts, seeds, three rows, real videos, two detectors."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "prompts.txt").write_text("# two\na cat\na dog\n")
    noise = np.random.default_rng(0)
    for i in range(4):
        (folder / "real" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        write_video(
            folder / f"real/class{i % 2}/{i}.mp4", noise.integers(256, size=(18, 64, 64, 3), dtype=np.uint8), 25
        )
    return [
        *("--ckpt", tiny / "vc2.safetensors", "--prompt_file", folder / "prompts.txt", "--num_videos", "6"),
        *("--rows", "direct", "ddnm", "zerosmooth", "zerosmooth:strength=0.4", "--steps", "2", "--scale", "2"),
        *("--detector", stand_ins["features"], "--classifier", stand_ins["classes"], "--real", folder / "real"),
        *("--device", "cpu", "--show", "1"),
    ]


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory) -> tuple[Path, str]:
    """One run by one process."""
    folder = tmp_path_factory.mktemp("one")
    return folder, finish(evaluate(*experiment, "--outdir", folder))


def test_it_writes_records_tables_and_pictures(whole):
    folder, said = whole
    results = json.loads((folder / "results.json").read_text())
    assert list(results["rows"]) == ["direct", "ddnm", "zerosmooth", "zerosmooth:strength=0.4"]
    second = results["rows"]["direct"]["stages"][1]
    assert set(second["values"]) == {"FVD", "IS", "PSNR", "SSIM", "blend", "seconds"}
    assert set(second["less zerosmooth"]) == set(second["values"])
    assert results["rows"]["direct"]["videos"] == 12
    assert "features.pt" in results["protocol"]["FVD"] and results["versions"]["torch"]
    assert (folder / "table.md").read_text() in said + "\n" and "24.12" in said
    assert len(list((folder / "videos").glob("*.json"))) == 48 and len(list((folder / "real").rglob("*.features"))) == 4
    assert iio.imread(folder / "side-by-side-0.png").ndim == 3


def test_the_rows_play_side_by_side_on_a_page(whole):
    folder, _ = whole
    found = re.findall(r'class="entry".*?>(.*)</script>', (folder / "index.html").read_text())
    assert len(found) == len(list(folder.glob("side-by-side-*.png")))
    for entry in map(json.loads, found):
        rows = ["key frames", "direct", "ddnm", "zerosmooth", "zerosmooth:strength=0.4"]
        assert [panel["label"] for panel in entry["panels"]] == rows
        key, *dense = (panel["frames"] / panel["fps"] for panel in entry["panels"])
        assert {*dense} == {key} and entry["command"].startswith("python -m evaluation --")


def test_two_processes_killed_and_resumed_give_what_one_gives(experiment, whole, tmp_path):
    first = evaluate(*experiment, "--outdir", tmp_path, processes=2)
    for _ in range(600):
        if len(list(tmp_path.glob("videos/*.json"))) >= 4:
            break
        time.sleep(0.05)
    first.terminate()  # torchrun ends its processes the same way
    first.communicate()
    done = len(list(tmp_path.glob("videos/*.json")))
    assert 4 <= done < 48
    assert "are measured already" in finish(evaluate(*experiment, "--outdir", tmp_path, processes=2))
    for path in sorted((whole[0] / "videos").glob("*.json")):
        one, two = (json.loads((folder / "videos" / path.name).read_text()) for folder in (whole[0], tmp_path))
        assert (one["row"], one["subject"], one["seed"]) == (two["row"], two["subject"], two["seed"])
        assert one["stages"] == two["stages"]
    one, two = (json.loads((folder / "results.json").read_text())["rows"] for folder in (whole[0], tmp_path))
    for row in one:
        for x, y in zip(one[row]["stages"], two[row]["stages"]):
            assert {**x["values"], "seconds": 0} == {**y["values"], "seconds": 0}


def test_image_to_video_from_a_folder_of_first_frames(experiment, tmp_path, tiny):
    """Another image of the same name is another subject."""
    for i, folder in enumerate(("first", "other")):
        (tmp_path / folder).mkdir()
        for j in range(2):
            iio.imwrite(tmp_path / folder / f"{j}.png", np.full((30, 50, 3), 60 + 100 * i + 20 * j, np.uint8))
    real, detector = (experiment[experiment.index(flag) + 1] for flag in ("--real", "--detector"))
    for count, folder in ((4, "first"), (8, "other")):
        finish(
            evaluate(
                *("--ckpt", tiny / "svd.safetensors", "--image", tmp_path / folder, "--rows", "ddnm", "zerosmooth"),
                *("--steps", "2", "--scale", "2", "--device", "cpu", "--num_videos", "1"),
                *("--real", real, "--detector", detector, "--outdir", tmp_path / "out"),
            )
        )
        records = [json.loads(path.read_text()) for path in (tmp_path / "out/videos").glob("*.json")]
        assert len(records) == count and all("PSNR" in r["stages"][1] and r["image_sha256"] for r in records)
        results = json.loads((tmp_path / "out/results.json").read_text())["rows"]
        assert results["ddnm"]["videos"] == results["zerosmooth"]["videos"] == count / 2


def test_videos_that_turn_nan_are_left_out_and_said(tmp_path, tiny, monkeypatch, capsys):
    def run(pipeline, plan, jobs, keep):
        if any(map(broken, jobs)):
            raise NonFiniteError("NaN")
        return whole_run(pipeline, plan, jobs, keep)

    whole_run = command.measure_jobs
    monkeypatch.setattr(command, "measure_jobs", run)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    prompts = ["--ckpt", tiny / "vc2.safetensors", "--prompt_file", tmp_path / "prompts.txt", "--num_videos", "2"]
    scenes = ["--scenes", "1"]
    every = "every video turned NaN"
    for name, subjects, broken, said in (
        ("some", prompts, lambda job: job.seed == 1, "2 of 4 videos turned NaN and were left out: direct, ddnm"),
        ("row", prompts, lambda job: job.row == "ddnm", "2 of 4 videos turned NaN and were left out: ddnm"),
        ("all", prompts, lambda job: True, every),
        ("scenes", scenes, lambda job: job.row != "true rendering", every),
        ("none", prompts, lambda job: False, None),
    ):
        arguments = [*subjects, "--rows", "direct", "ddnm", "--steps", "2", "--scale", "2", "--device", "cpu"]
        assert command.main([*map(str, arguments), "--outdir", str(tmp_path / name)]) == int(said is not None)
        err = capsys.readouterr().err
        assert said in err if said else "turned NaN" not in err
        assert (tmp_path / name / "table.md").exists() == (said != every)


def test_another_evaluation_does_not_mix_in(experiment, whole):
    process = evaluate(*experiment, "--outdir", whole[0], "--guidance_scale", "5")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "another settings; use another --outdir" in err


def test_bad_arguments_are_told_before_long_work(experiment, tmp_path, tiny):
    for extra, message in (
        (["--rows", "magic"], "no row 'magic'"),
        (["--guidance_scale", "nan"], "guidance_scale=nan; use"),
        (["--real", tmp_path / "nowhere"], "does not exist"),
        (["--detector", tiny / "vc2.safetensors"], "no TorchScript file"),
        (["--rows", "zerosmooth", "--scenes", "2"], "leave --prompt_file out"),
    ):
        process = evaluate(*experiment, "--outdir", tmp_path / "out", *extra)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1 and message in err and "Traceback" not in err
        assert not (tmp_path / "out/videos").exists()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out/index.html").write_text("<p>another's")
    process = evaluate(*experiment, "--outdir", tmp_path / "out")
    assert "is a page of something else" in process.communicate(timeout=120)[1] and process.returncode == 1
    assert not (tmp_path / "out/videos").exists()


@pytest.mark.parametrize("ckpt", ["vc2-small", "svd-small"])
def test_a_batch_measures_what_single_videos_do(ckpt, tmp_path):
    """Scenes of both speeds, which svd-small is told by a setting; up to rounding."""
    records = []
    for size in ("1", "4"):
        out = tmp_path / size
        arguments = ["--ckpt", ckpt, "--scenes", "4", "--rows", "anchored", "--steps", "2", "--scale", "2"]
        assert command.main([*arguments, "--device", "cpu", "--outdir", str(out), "--batch_size", size]) == 0
        records.append({p.name: json.loads(p.read_text()) for p in (out / "videos").glob("*.json")})
    one, four = records
    assert one.keys() == four.keys() and len(one) == 8
    for name, record in one.items():
        for x, y in zip(record["stages"], four[name]["stages"]):
            assert x.keys() == y.keys()
            for measure in x:
                assert y[measure] == pytest.approx(x[measure], rel=0.02, abs=0.02, nan_ok=True)


# --- two folders


def test_folders_of_videos_are_compared(tmp_path, true, stand_ins):
    """B as an interpolator makes it, with three frames between two of A, in folders of frames."""
    _, short, long = true
    for i in range(4):
        for side, frames in (("A", short), ("B", long[:61])):
            folder = tmp_path / side / f"video{i}"
            folder.mkdir(parents=True)
            for j, frame in enumerate(frames):
                iio.imwrite(folder / f"{j:03d}.png", frame.numpy())
    found = {"FVD": detectors.torchscript(stand_ins["features"], CPU, False)}
    real = torch.stack([found["FVD"](short) for _ in range(4)])
    text = compare.compare(str(tmp_path / "A"), str(tmp_path / "B"), found, real)
    assert "4 pairs" in text and "| PSNR | 100.00 ± 0.00 |" in text and "| SSIM | 1.000 ± 0.000 |" in text
    assert "| FVD of A | 0.00 ± 0.00 |" in text and "| FVD of B |" in text and "| blend |" in text
    for frames, others, n in ((16, 61, 4), (16, 64, 4), (4, 25, 8), (16, 16, 1), (1, 4, 4)):
        assert compare._scale(Path("a"), Path("b"), torch.zeros(frames, 2, 2, 3), torch.zeros(others, 2, 2, 3)) == n
    with pytest.raises(ValueError, match="b has 20 frames"):
        compare._scale(Path("a"), Path("b"), torch.zeros(16, 2, 2, 3), torch.zeros(20, 2, 2, 3))
    with pytest.raises(ValueError, match="no video at"):
        compare.compare(str(tmp_path / "*.mp4"), str(tmp_path / "B"), {})
    for path in (tmp_path / "B/video0").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="4 videos and .* 3"):
        compare.compare(str(tmp_path / "A"), str(tmp_path / "B"), {})
