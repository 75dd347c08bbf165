"""The conformance test passes on every family and on the example, and names what a broken network
breaks."""

import re
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from torch import nn

import zerosmooth.bus
from zerosmooth.attention import SpatialSelfAttention, TemporalAttention, frame_positions
from zerosmooth.cascade import nested_noise
from zerosmooth.models.svd import SVDUNet
from zerosmooth.operators import S
from zerosmooth.settings import Settings

from .conformance import RULES, check, main, report
from .conftest import FRAMES

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))
import tiny_dit  # noqa: E402 - the package does not know it

SHAPE = (1, tiny_dit.SIZE, tiny_dit.SIZE)


def test_every_family_conforms(unet, ask):
    positions = frame_positions if isinstance(unet, SVDUNet) else None
    broken = check(unet, ask, FRAMES, (4, 4, 6), positions=positions)
    assert not broken, report(broken)


def dit(kind: type[tiny_dit.TinyDiT] = tiny_dit.TinyDiT, **replaced: nn.Module) -> tiny_dit.TinyDiT:
    """The example with random weights; replaced: a class for the spatial or temporal attention of
    its second block."""
    torch.manual_seed(0)
    network = kind()
    for part, cls in replaced.items():
        old = getattr(network.blocks[1], part)
        new = cls(tiny_dit.DIM, tiny_dit.HEADS, tiny_dit.DIM // tiny_dit.HEADS)
        new.name = old.name
        setattr(network.blocks[1], part, new)
    return network.eval()


def broken_rules(network: tiny_dit.TinyDiT, **more) -> set[tuple[str, str]]:
    def run(x, stage):
        return network(x, torch.full((len(x),), 0.7), torch.zeros(len(x), dtype=torch.long), stage)

    found = check(network, run, tiny_dit.FRAMES, SHAPE, positions=network.positions, **more)
    text = report(found)
    assert all(b.rule in RULES and b.what in text
               for b in found) and text.count("BROKEN") == len({b.rule for b in found})
    return {(b.rule, b.module) for b in found}


def test_the_example_conforms():
    start = nested_noise(SHAPE, tiny_dit.FRAMES, (2, 2), 0, -1)[None]
    assert broken_rules(dit(), noise=lambda stage: start[:, :: 2 ** (2 - stage)]) == set()


# --- broken copies, and what is said of them


class Forgets(SpatialSelfAttention):
    def forward(self, h, stage=None):
        return super().forward(h, None)


class AllFrames(TemporalAttention):
    """Attends to all frames at once, as the plain network."""

    def attend(self, spans, qkv):
        return super().attend([(0, qkv.shape[1])], qkv)


class RunningPosition(TemporalAttention):
    """Tells frames apart by their place in the video, which does not restart in a window."""

    def attend(self, spans, qkv):
        if len(spans) > 1:
            qkv = qkv + torch.linspace(0, 1, qkv.shape[1])[:, None, None]
        return super().attend(spans, qkv)


class Overwrites(TemporalAttention):
    """Takes the corrected output whole, whatever the strength."""

    def output(self, stage, attend, states, corrected):
        return self.to_out(attend(**(corrected or states)))


class Ignores(SpatialSelfAttention):
    """Reads and publishes, and goes on with its own states."""

    def output(self, stage, attend, states, corrected):
        return self.to_out(attend(**states))


class WrongAxis(TemporalAttention):
    def forward(self, h, stage=None):
        if stage is not None:
            stage.exchange(self.name, "temporal", h=(h.transpose(1, 2), S(stage.n)))
        return super().forward(h, None)


class WrongOperator(SpatialSelfAttention):
    def forward(self, h, stage=None):
        q, k, v = self.to_qkv(h).chunk(3, dim=-1)
        states = {"q": q, "k": k, "v": v}
        exchanged = {name: (x, S(stage.n))
                     for name, x in states.items()} if stage is not None else None
        corrected = None if stage is None else stage.exchange(self.name, "spatial", **exchanged)
        return self.output(stage, self.attend, states, corrected)


class ChangesPublished(SpatialSelfAttention):
    """Adds in place to what it gave to the next stage."""

    def output(self, stage, attend, states, corrected):
        o = super().output(stage, attend, states, corrected)
        for x in (corrected or states).values() if stage is not None else ():
            x.add_(0.1)
        return o


@pytest.mark.parametrize(("rule", "part", "cls"),
                         [("unchanged", "spatial", ChangesPublished),
                          ("hand-over", "spatial", Forgets), ("windows", "temporal", AllFrames),
                          ("windows", "temporal", RunningPosition),
                          ("blend", "temporal", Overwrites), ("blend", "spatial", Ignores),
                          ("axes", "temporal", WrongAxis), ("operators", "spatial", WrongOperator)])
def test_a_broken_module_is_named_with_its_rule(rule, part, cls):
    assert (rule, f"blocks.1.{part}") in (found := broken_rules(dit(**{part: cls})))
    assert {module for _, module in found} <= {f"blocks.1.{part}", ""}  # nobody else is blamed


class UncompressedPositions(tiny_dit.TinyDiT):
    def positions(self, f, stage):
        return frame_positions(f, None)


class BusChangesStage0(tiny_dit.TinyDiT):
    def forward(self, x, t, label, stage=None):
        return super().forward(x, t, label, stage) * (1 if stage is None else 1.001)


class BatchNormalised(tiny_dit.TinyDiT):
    def forward(self, x, t, label, stage=None):
        return super().forward(x - x.mean(0, keepdim=True), t, label, stage)


class PadsFrames(tiny_dit.TinyDiT):
    """Repeats the last frame until they fit."""

    def forward(self, x, t, label, stage=None):
        padded = torch.cat([x, x[:, -1:].expand(-1, -x.shape[1] % 8, -1, -1, -1)], dim=1)
        return super().forward(padded, t, label, stage)[:, : x.shape[1]]


class ReusedInPlace(tiny_dit.TinyDiT):
    """Changes deep features that are kept."""

    around_deep = staticmethod(lambda deep, stage, h: deep(h))

    def forward(self, x, t, label, stage=None):
        y = super().forward(x, t, label, stage)
        return self.around_deep(torch.clone, stage, y).add_(0.1)


class Unnamed(tiny_dit.TinyDiT):
    def __init__(self):
        super().__init__()
        self.blocks[2].temporal.name = self.blocks[1].temporal.name


@pytest.mark.parametrize(("rule", "module", "kind"),
                         [("positions", "", UncompressedPositions), ("plain", "", BusChangesStage0),
                          ("batch", "", BatchNormalised), ("reuse", "", ReusedInPlace),
                          ("frames", "", PadsFrames), ("hand-over", "blocks.2.temporal", Unnamed)])
def test_a_broken_network_is_named_with_its_rule(rule, module, kind):
    assert (rule, module) in broken_rules(dit(kind))


def test_noise_that_does_not_nest_is_named():
    own = [torch.randn(1, 8 * 2**s, *SHAPE, generator=torch.Generator().manual_seed(s))
           for s in range(3)]
    assert broken_rules(dit(), noise=own.__getitem__) == {("noise", "")}


def test_a_wrong_back_projection_is_named(monkeypatch):
    monkeypatch.setattr(zerosmooth.bus, "back_project", lambda x, y, M: x + 0.5 * M.lift(y))
    assert {rule for rule, _ in broken_rules(dit())} >= {"measures back"}


def test_the_example_smooths_a_video(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_dit.smooth, "__defaults__", (1,))  # step
    monkeypatch.setattr(sys, "argv", ["tiny_dit.py", "--label", "2", "--outdir", str(tmp_path)])
    tiny_dit.main()
    assert len(iio.imread(tmp_path / "tiny_dit_32f.mp4")) == 32
    assert (tmp_path / "tiny_dit.png").exists()


@pytest.mark.long
def test_the_example_shows_what_the_method_is_for():
    """Over the four directions of its disc: key frames stay nearer to where they were than without
    correction, which keeps them nearer than attention over all frames; and the frames between do
    not stutter as those of latent DDNM."""
    network = tiny_dit.trained()
    moved, jitter = {}, {}
    for method in ("zerosmooth", "windowed", "direct", "ddnm"):
        settings, paths = Settings(key_frames=8, method=method), []
        for label in range(tiny_dit.LABELS):
            short, _, long = tiny_dit.smooth(network, settings, label, seed=label)
            way = center(short)[-1] - center(short)[0]
            assert torch.dot(way, tiny_dit.SIDES[label]) > 0.9 * way.norm() > 8  # pixels
            paths.append((center(short), center(long)))
        moved[method] = sum((long[::4] - short).norm(dim=1).mean() for short, long in paths)
        jitter[method] = sum(long.diff(n=2, dim=0).norm(dim=1).mean() for _, long in paths)
    assert moved["zerosmooth"] < 0.8 * moved["windowed"] and moved["windowed"] < 0.8 * moved[
        "direct"]
    assert jitter["zerosmooth"] < 0.4 * jitter["ddnm"]


def center(video: torch.Tensor) -> torch.Tensor:
    """Of what is bright, x and y in pixels: f 2. video: f h w."""
    bright = (video > 0.5).float()
    at = torch.arange(video.shape[-1]) + 0.5
    share = bright / bright.sum((1, 2), keepdim=True)
    return torch.stack([(share.sum(1) * at).sum(1), (share.sum(2) * at).sum(1)], dim=1)


PAGE = (ROOT / "docs/new_backbone.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["anchored", "conformance"])
def test_the_pages_code_runs_as_it_stands(block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "docs/new_backbone.md", "exec"), {})
    assert "BROKEN" not in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("name", [
    "vc1", "examples/animatediff.py", "examples/modelscope.py", "examples/dynamicrafter.py",
    "examples/latte.py"])
def test_a_familys_network_conforms_by_its_name_or_file(name, monkeypatch, capsys):
    name = str(ROOT / name) if name.endswith(".py") else name
    monkeypatch.setattr(sys, "argv", ["conformance", "--family", name])
    assert main() == 0
    assert capsys.readouterr().out.count("ok  ") == len(RULES)
