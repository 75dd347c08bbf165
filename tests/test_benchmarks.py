"""The benchmarks compare what they say, and skip what they cannot."""

import json
import sys

import pytest
import torch

from benchmarks import gpu, unets
from benchmarks.timing import by_turns, ratio
from zerosmooth.families import FAMILIES
from zerosmooth.models.videocrafter import UNet

from .conftest import TINY, TINY_FAMILIES


def test_work_runs_by_turns_and_the_first_turn_does_not_count():
    order = []
    work = {name: (lambda name=name: order.append(f"prepare {name}"),
                   lambda name=name: order.append(name)) for name in "ab"}
    seconds = by_turns(work, repeats=2)
    assert order == ["prepare a", "a", "prepare b", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_medians_and_of_the_peers_better_setting():
    assert ratio([1.0, 9.0, 2.0], [8.0, 8.0, 8.0], [4.0, 4.0, 99.0]) == 0.5


def test_networks_are_filled_whole():
    network = unets.filled(lambda: UNet(TINY), "cpu")
    assert all(p.device.type == "cpu" and p.abs().sum() > 0 and p.isfinite().all()
               for p in network.parameters())


def test_a_layout_reaches_every_convolution():
    network = torch.nn.ModuleList([torch.nn.Conv3d(4, 4, (3, 1, 1)), torch.nn.Conv2d(4, 4, 3)])
    unets.lay_out(network, unets.FORMATS["channels-last"])
    for conv, layout in zip(network, (torch.channels_last_3d, torch.channels_last)):
        assert conv.weight.is_contiguous(memory_format=layout)


def test_a_step_of_the_cascade_has_seven_times_the_operations_of_its_first_stage():
    counted = unets.operations(FAMILIES["vc2"], TINY_FAMILIES["vc2"], 4, 4)
    assert 6.8 < counted["cascade"] / counted["first stage"] < 7.3
    assert counted["reuse"] < 0.9 * counted["cascade"]


def test_a_row_without_its_peer_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unets", "--rows", "vc2", "lavie"])
    assert unets.main() == 0
    assert capsys.readouterr().out.count("skipped: give --") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 1 and "no CUDA device" in capsys.readouterr().out


def test_the_gpu_benchmark_keeps_what_it_measured(monkeypatch, tmp_path):
    """And goes on where a part fails, which is a failure of the whole."""
    out = tmp_path / "gpu.json"
    flags = "--device cpu --tiny --families svd --steps 1 --parts steps overhead --out"
    monkeypatch.setattr(sys, "argv", ["gpu", *flags.split(), str(out)])
    monkeypatch.setattr(gpu.Bench, "step", lambda *_, **asked: (2.0 - (asked != {}), 0))
    monkeypatch.setattr(gpu, "matrix_rate", lambda *_: 1e9)
    monkeypatch.setitem(gpu.PARTS, "steps", lambda bench: bench.missing)
    assert gpu.main() == 1
    kept = json.loads(out.read_text())
    assert [line["value"] for line in kept["results"]] == [1.0]
    assert kept["torch"] == torch.__version__ and "missing" in kept["errors"]["steps"]


@pytest.mark.long
def test_the_gpu_benchmark_runs_through(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    flags = "--device cpu --tiny --families svd --steps 1 --parts steps overhead --out"
    monkeypatch.setattr(sys, "argv", ["gpu", *flags.split(), str(out)])
    assert gpu.main() == 0
    kept = json.loads(out.read_text())
    assert {line["part"] for line in kept["results"]} == {"steps", "overhead"}


def test_a_check_that_fails_is_a_failure_and_a_missed_target_is_none(tmp_path, capsys):
    report = gpu.Report(tmp_path / "gpu.json", {})
    report.add("steps", "a target", 2.0, "times", at_most=1.0)
    assert not report.failed
    report.add("golden", "a check", float("nan"), at_most=1.0)
    assert report.failed and capsys.readouterr().out.count("MISSED") == 2
