"""The authors' networks and diffusers', at their published size, and ours with the same weights.

The authors' repositories are given by path and imported from there; nothing of them is part of this
one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity import weight
from weights_convert.engine import convert
from zerosmooth.config import Sampling
from zerosmooth.families import FAMILIES
from zerosmooth.models.unet import Skeleton

# of a UNet in the published files
PREFIX = {"vc2": "model.diffusion_model.", "lavie": "unet.", "svd": "unet."}


@dataclass
class Pair:
    """Another network and ours with its weights, and an evaluation of each on the same input."""

    theirs: nn.Module
    ours: Skeleton
    run_theirs: Callable[[], Tensor]  # b f c h w
    run_ours: Callable[[], Tensor]

    def error(self) -> float:
        """Largest difference of the outputs over their standard deviation."""
        a, b = self.run_ours(), self.run_theirs()
        return ((a - b).abs().max() / b.std()).item()


def pair(family: str, height: int, width: int, path: Path | None = None) -> Pair:
    """A family's UNet, on the frames it was trained on. height, width: of the latents; path: of the
    authors' repository, where the peer is theirs."""
    torch.manual_seed(0)
    theirs = {"vc2": videocrafter, "lavie": lavie, "svd": svd}[family](path)
    theirs.eval().requires_grad_(False)
    for name, p in theirs.named_parameters():
        if "freqs" not in name:
            p.copy_(weight(PREFIX[family] + name, tuple(p.shape)))
    ours = ours_with(family, theirs)
    config = FAMILIES[family].config
    c = config.unet
    x = torch.randn(1, c.frames, c.in_channels, height, width)
    context = torch.randn(1, *config.encoder.context_shape)
    states, t = ours.project_context(context), torch.tensor([500.0])
    told = FAMILIES[family].condition(config, 8.0, Sampling())
    told = None if told is None else told[None]
    first = x.transpose(1, 2).contiguous()  # b c f h w, as VideoCrafter and LaVie have it

    def run_theirs() -> Tensor:
        if family == "svd":
            return theirs(x, t, context, added_time_ids=told).sample
        if family == "lavie":
            return theirs(first, t, context).sample.transpose(1, 2)
        return theirs(first, t, context=context, fps=told).transpose(1, 2)

    return Pair(theirs, ours, run_theirs, lambda: ours(x, t, states, told))


def ours_with(family: str, theirs: nn.Module) -> Skeleton:
    """Our network with the weights of a peer, through the converter's tables; most are shared."""
    source = {PREFIX[family] + name: p.detach() for name, p in theirs.named_parameters()
              if not name.startswith("time_rel_pos_bias")}  # LaVie's is not in the published file
    with torch.device("meta"):
        ours: Any = FAMILIES[family].unet(FAMILIES[family].config.unet)
    expected = {f"unet.{name}": tuple(p.shape) for name, p in ours.state_dict().items()}
    table = FAMILIES[family].conversion.table(FAMILIES[family].config, source)
    shapes = {name: tuple(p.shape) for name, p in source.items()}
    state = convert(table, shapes, source.__getitem__, expected)
    ours.load_state_dict({name.removeprefix("unet."): x for name, x in state}, assign=True)
    return ours.eval().requires_grad_(False)


def svd(path: Path | None) -> Any:
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=14)


def videocrafter(path: Path | None) -> nn.Module:
    """VideoCrafter2's, with the settings of its configs/inference_t2v_512_v2.0.yaml."""
    with imports(path, "lvdm", "utils"):
        from lvdm.modules.networks.openaimodel3d import UNetModel

        return UNetModel(
            in_channels=4, out_channels=4, model_channels=320, attention_resolutions=[4, 2, 1],
            num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_head_channels=64, transformer_depth=1,
            context_dim=1024, use_linear=True, use_checkpoint=False, temporal_conv=True,
            temporal_attention=True, temporal_selfatt_only=True, use_relative_position=False,
            use_causal_attention=False, temporal_length=16, addition_attention=True, fps_cond=True)


def lavie(path: Path | None) -> nn.Module:
    """LaVie's base model, Stable Diffusion 1.4's settings with relative positions."""
    with imports(path, "models"):
        from models.unet import UNet3DConditionModel

        return UNet3DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8,
                                    use_relative_position=True)


@contextmanager
def imports(path: Path | None, *packages: str) -> Iterator[None]:
    """Within, modules are found in a repository first; its top-level packages are forgotten before
    and after."""
    assert path is not None

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]

    forget()
    sys.path.insert(0, str(path))
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))  # VideoCrafter imports it, unused here
    try:
        yield
    finally:
        sys.path.remove(str(path))
        forget()
