"""The benchmarks compare what they say, and skip what they cannot."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, kernels, winograd
from benchmarks.timing import by_turns, ratio
from benchmarks.unets import FORMATS, filled, lay_out, steps
from zerosmooth.families import FAMILIES
from zerosmooth.models.videocrafter import UNet

from .conftest import TINY, TINY_FAMILIES


def test_work_runs_by_turns_and_the_first_turn_does_not_count():
    order = []
    work = {
        name: (lambda name=name: order.append(f"prepare {name}"), lambda name=name: order.append(name)) for name in "ab"
    }
    seconds = by_turns(work, repeats=2)
    assert order == ["prepare a", "a", "prepare b", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_medians_and_of_the_peers_better_setting():
    assert ratio([1.0, 9.0, 2.0], [8.0, 8.0, 8.0], [4.0, 4.0, 99.0]) == 0.5


def test_networks_are_filled_whole():
    network = filled(UNet, TINY)
    assert all(p.device.type == "cpu" and p.abs().sum() > 0 and torch.isfinite(p).all() for p in network.parameters())


def test_a_layout_reaches_every_convolution_and_changes_no_number():
    x = torch.randn(1, 4, 3, 8, 8)
    between, within = torch.nn.Conv3d(4, 4, (3, 1, 1)), torch.nn.Conv2d(4, 4, 3)
    network = torch.nn.ModuleList([between, within])
    plain = within(between(x)[:, :, 0])
    lay_out(network, FORMATS["channels-last"])
    assert within.weight.is_contiguous(memory_format=torch.channels_last)
    assert between.weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(within(between(x)[:, :, 0]), plain)
    lay_out(network, FORMATS["default"])
    assert within.weight.is_contiguous() and between.weight.is_contiguous()


def test_winograds_convolution_is_a_convolution():
    conv, x = torch.nn.Conv2d(5, 7, 3, padding=1), torch.randn(2, 5, 4, 6).contiguous(memory_format=torch.channels_last)
    assert conv.bias is not None
    got = winograd.convolve(x, winograd.kernel(conv.weight), conv.bias)
    torch.testing.assert_close(got, conv(x), rtol=0, atol=1e-5)


def test_layers_are_measured_against_torchs_of_the_same_result():
    for ours, kind, x in kernels.layers(8, 2, 3, 4).values():
        assert isinstance(ours, kind) and type(ours) is not kind
        torch.testing.assert_close(ours(x), kind.forward(ours, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["benchmarks.unets", "--rows", "vc2", "lavie"], "skipped: give --videocrafter PATH", 0),
        (["benchmarks.unets", "--help"], "--repeats", 0),
        (["benchmarks.scale", "--help"], "grow with frames", 0),
        (["benchmarks.kernels", "--help"], "brings on this machine", 0),
        pytest.param(
            ["benchmarks.gpu"],
            "no CUDA device",
            1,
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_the_scripts_say_what_they_need(arguments, said, status):
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stdout


def test_the_gpu_benchmark_runs_through_and_keeps_what_it_measured(tmp_path):
    root, out = Path(__file__).parent.parent, tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--families", "svd", "--steps", "1"]
    parts = ["--parts", "layers", "layouts", "overhead", "decode", "--out", str(out)]
    done = subprocess.run([*command, *parts], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(out.read_text())
    assert {line["part"] for line in kept["results"]} == {"layers", "layouts", "overhead", "decode"}
    assert kept["torch"] == torch.__version__ and "errors" not in kept


def test_the_gpu_benchmark_ends_when_its_time_is_up(tmp_path):
    root, out = Path(__file__).parent.parent, tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--budget", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "cut short" in done.stdout and "cut_short_in" in json.loads(out.read_text())


def test_a_check_that_fails_is_a_failure_and_a_missed_target_is_none(tmp_path, capsys):
    report = gpu.Report(tmp_path / "gpu.json", {})
    report.add("steps", "a target", 2.0, "times", at_most=1.0)
    assert not report.failed
    report.add("golden", "a check", float("nan"), at_most=1.0)
    assert report.failed and capsys.readouterr().out.count("MISSED") == 2


def test_a_step_of_the_cascade_is_timed_and_counted_over_one_of_its_first_stage():
    """Operations: 7 times those of the first stage, attention in windows aside; of new frames alone 4 times, and more
    where frames mix."""
    for name, config in TINY_FAMILIES.items():
        counted = steps(FAMILIES[name], config, SimpleNamespace(size=(8, 12), repeats=0, threads=1))
        least = counted["first stage"]
        assert 6.8 < counted["anchored"] / least < 7.3 and 4 < counted["new frames"] / least < 5
    timed = steps(FAMILIES["svd"], TINY_FAMILIES["svd"], SimpleNamespace(size=(8, 12), repeats=1, threads=1))
    assert timed.keys() == counted.keys() and all(0 < seconds < 60 for seconds in timed.values())
