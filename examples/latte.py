"""Latte-1 (Ma et al. 2024, arXiv 2401.03048): a diffusion transformer over the frames' latents.

    python -m weights_convert --family examples/latte.py Latte-1/ -o latte.safetensors
    python sample.py --family examples/latte.py --ckpt latte.safetensors --prompt "..."

A family in one file. Spatial blocks (attention within a frame, to the prompt, feed-forward) and
temporal ones (attention along the frames, feed-forward) take turns. All are modulated by the
timestep, through one projection that they share and a table that each has of its own (adaLN-single,
as in PixArt-alpha, Chen et al. 2023, arXiv 2310.00426). Frames are coded one by one by Stable
Diffusion's autoencoder, or by Stable Video Diffusion's, which the published folder also has.

The prompt's encoder, T5 v1.1 XXL, is four times as large as the rest and stays in that folder:
`transformers` runs it from there (`pip install ".[t5]"`). `sample.py` has all prompts encoded and
lets go of it before it loads the network. In Python `FAMILY.encode_first` does that; any other
prompt loads T5 beside the network, which `pipeline.networks.encoder.keep = True` lets stay there.
"""

from __future__ import annotations

import argparse
import gc
import html
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from weights_convert import configs, diffusers
from weights_convert.conversion import Conversion
from weights_convert.diffusers import BOTH
from weights_convert.engine import Rows, Table
from weights_convert.ldm import joined
from weights_convert.source import Source, join, open_folder, open_source
from weights_convert.svd import HF_RES
from zerosmooth import attention
from zerosmooth.attention import (
    ContextStates,
    SpatialSelfAttention,
    TemporalAttention,
    frame_positions,
)
from zerosmooth.bus import Stage, name_modules
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family, Networks
from zerosmooth.fields import UserError
from zerosmooth.files import one_line
from zerosmooth.guidance import Branch, Inputs
from zerosmooth.models import layers
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.kernels import Conv2d, Linear, laid_out
from zerosmooth.models.layers import TimestepEmbedding, sinusoid
from zerosmooth.models.tokenizer import mended
from zerosmooth.models.unet import run_deep
from zerosmooth.samplers import DDIMConfig
from zerosmooth.settings import Settings

# --- the network


@dataclass(frozen=True)
class LatteConfig:
    in_channels: int = 4  # of the latents
    out_channels: int = 4  # of the predicted noise, which a variance follows that nothing uses
    heads: int = 16
    head_dim: int = 72
    layers: int = 28  # spatial and temporal blocks, of each so many
    patch: int = 2  # latents of a token's side
    grid: int = 32  # positions of a side, to which tokens of all sizes are stretched
    context_dim: int = 4096
    frames: int = 16

    def __post_init__(self) -> None:
        if self.dim % 4 or not 0 < self.dim <= 1 << 14 or not 0 < self.patch <= 64:
            raise UserError(f"{self.heads} heads of {self.head_dim} channels, patches of "
                            f"{self.patch}; the channels together must be a multiple of 4")

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def side(self) -> int:
        return self.patch


class Latte(nn.Module):
    """The arguments are those of `models.unet.Skeleton`; there is no condition."""

    around_deep, deep_adds = staticmethod(run_deep), True

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patches = Conv2d(c.in_channels, c.dim, c.patch, stride=c.patch)
        self.time_embedding = TimestepEmbedding(256, c.dim, c.dim)
        self.modulation = Linear(c.dim, 6 * c.dim)  # of all blocks
        self.caption = nn.Sequential(Linear(c.context_dim, c.dim), nn.GELU("tanh"),
                                     Linear(c.dim, c.dim))
        self.spatial_blocks = nn.ModuleList(SpatialBlock(c) for _ in range(c.layers))
        self.temporal_blocks = nn.ModuleList(TemporalBlock(c) for _ in range(c.layers))
        self.norm_out = Modulated(c.dim)
        self.table_out = nn.Parameter(torch.randn(2, c.dim) / c.dim**0.5)
        self.proj_out = Linear(c.dim, c.patch**2 * 2 * c.out_channels)
        name_modules(self)

    def project_context(self, context: Tensor) -> ContextStates:
        """context: b m c; with one more channel, that is 1 for a token and 0 for padding, to which
        nothing attends."""
        text, there = context.tensor_split([self.config.context_dim], dim=-1)
        states = attention.project_context(self, self.caption(text))
        if not there.shape[-1]:
            return states
        bias = (there - 1).mul(10_000).transpose(1, 2)[:, None]  # b 1 1 m
        return {name: (*kv, bias) for name, kv in states.items()}

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | ContextStates,
                condition: Tensor | None = None, stage: Stage | None = None) -> Tensor:
        """The predicted noise."""
        noise_and_variance = self.predict(x, timestep, context, stage)
        return noise_and_variance[:, :, : self.config.out_channels]

    def predict(self, x: Tensor, timestep: Tensor, context: Tensor | ContextStates,
                stage: Stage | None) -> Tensor:
        """b f 2c h w."""
        c, f = self.config, x.shape[1]
        if x.shape[-2] % c.patch or x.shape[-1] % c.patch:
            raise ValueError(f"latents of {x.shape[-2]}x{x.shape[-1]}; each side must be a "
                             f"multiple of {c.patch}")
        states = self.project_context(context) if isinstance(context, Tensor) else context
        emb = self.time_embedding(sinusoid(timestep, 256).to(x.dtype))
        shifts = self.modulation(F.silu(emb)).unflatten(1, (6, -1))
        h = self.patches(laid_out(rearrange(x, "b f c h w -> (b f) c h w")))
        height, width = h.shape[-2:]
        h = rearrange(h, "(b f) d h w -> b f (h w) d", f=f) + self.token_positions(h)
        placed = sines_first(self.positions(f, stage, h.device), c.dim).to(h)[:, None]

        def run(blocks: range, h: Tensor) -> Tensor:
            for i in blocks:
                h = self.spatial_blocks[i](h, shifts, states, stage)
                if i == 0 and f > 1:  # a single frame is an image, and has no position
                    h = h + placed
                h = self.temporal_blocks[i](h, shifts, states, stage)
            return h

        outer = max(1, c.layers // 4)  # at each end: they run in every step
        h = run(range(outer), h)
        inner = range(outer, c.layers - outer)
        h = self.around_deep(lambda h: run(inner, h), stage, h)
        h = run(range(max(outer, c.layers - outer), c.layers), h)
        h = self.proj_out(self.norm_out(h, *spread(self.table_out + emb[:, None])))
        return rearrange(h, "b f (h w) (p q c) -> b f c (h p) (w q)", h=height, p=c.patch,
                         q=c.patch)

    def positions(self, f: int, stage: Stage | None, device: torch.device | None = None) -> Tensor:
        """Of f frames: key frames keep theirs when frames come between (Eq. 16-17)."""
        return frame_positions(f, stage, device)

    def token_positions(self, h: Tensor) -> Tensor:
        """Half of the channels say the column, half the row, whatever the size in a grid as in
        training. h: n d h w; returns h*w d."""
        height, width = h.shape[-2:]
        row, column = (
            sines_first(torch.arange(n, device=h.device) * (self.config.grid / n), h.shape[1] // 2)
            for n in (height, width))
        places = column.expand(height, -1, -1), row[:, None].expand(-1, width, -1)
        return torch.cat(places, dim=-1).flatten(0, 1).to(h.dtype)


def sines_first(position: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, sines before cosines. position: n; returns n dim, float32."""
    cosines, sines = sinusoid(position, dim).chunk(2, dim=-1)
    return torch.cat([sines, cosines], dim=-1)


def spread(numbers: Tensor) -> list[Tensor]:
    """b n d to n of b 1 1 d: one of each for all frames and tokens."""
    return [x[:, None, None] for x in numbers.unbind(1)]


class TemporalBlock(nn.Module):
    """h: b f l d. Attention along the frames, then feed-forward, both modulated."""

    def __init__(self, c: LatteConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, c.dim) / c.dim**0.5)
        self.norm1, self.norm2 = Modulated(c.dim), Modulated(c.dim)
        self.attn: nn.Module = TemporalAttention(c.dim, c.heads, c.head_dim, bias=True)
        self.ff = FeedForward(c.dim)

    def forward(self, h: Tensor, shifts: Tensor, context: ContextStates,
                stage: Stage | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = spread(self.table + shifts)
        h = torch.addcmul(h, gate1, self.attn(self.norm1(h, shift1, scale1), stage))
        h = self.attend_to_text(h, context, stage)
        return torch.addcmul(h, gate2, self.ff(self.norm2(h, shift2, scale2)))

    def attend_to_text(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        return h


class SpatialBlock(TemporalBlock):
    """h: b f l d. Attention within the frames, to the text, feed-forward; that to the text is not
    modulated, and has no norm."""

    def __init__(self, c: LatteConfig) -> None:
        super().__init__(c)
        self.attn = SpatialSelfAttention(c.dim, c.heads, c.head_dim, bias=True)
        self.cross_attn = CrossAttention(c.dim, c.dim, c.heads, c.head_dim, bias=True)

    def attend_to_text(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        return h + self.cross_attn(h, context, stage)


class CrossAttention(attention.CrossAttention):
    """Its states may hold a bias of the logits, b 1 1 m, beside keys and values."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        f = q.shape[1]
        q = rearrange(q, "b f l (h d) -> b h (f l) d", h=self.heads)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return rearrange(o, "b h (f l) d -> b f l (h d)", f=f)


class Modulated(nn.Module):
    """A norm without weights of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, self.norm(h), 1 + scale)


class FeedForward(layers.FeedForward):
    """Without a gate."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj_in = Linear(dim, 4 * dim)

    def feed(self, h: Tensor) -> Tensor:
        return self.proj_out(F.gelu(self.proj_in(h), approximate="tanh"))


# --- the encoder of prompts


@dataclass(frozen=True)
class T5Config:
    folder: str = ""  # with text_encoder/ and tokenizer/
    tokens: int = 120  # of a prompt, at most
    width: int = 4096

    @property
    def context_shape(self) -> tuple[int, int]:
        return self.tokens, self.width


class Encoded(NamedTuple):
    """states: of a text's tokens, and of the padding behind them where that was asked for; on the
    CPU. tokens: how many; lost: how many more the text has."""

    states: Tensor
    tokens: int
    lost: int


T5_SIZE = 4_762_310_656  # parameters of T5 v1.1 XXL's encoder
ENCODED: dict[tuple[T5Config, torch.dtype, str, bool], Encoded] = {}  # all, so far


class PromptEncoder(nn.Module):
    """T5's states of prompts, which it makes one by one, once. It has no weights of its own.

    keep: do not let go of T5 once it is loaded.
    """

    keep = False

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config

    def encode(self, prompts: Collection[str], negative: str, device: torch.device,
               dtype: torch.dtype) -> list[Tensor]:
        """The contexts of both branches of guidance, as `Latte.project_context` takes them.

        That of the negative prompt has as many tokens as the prompt, be they padding: so Latte was
        published. UserError if there is no T5.
        """
        if device.type == "meta":
            shape = len(prompts), *self.config.context_shape
            return [torch.empty(shape, device=device, dtype=dtype)] * 2
        self.read(prompts, negative, device, dtype)
        shown = [ENCODED[self.config, dtype, prompt, False] for prompt in prompts]
        states = ENCODED[self.config, dtype, negative, True].states
        both = [x.states for x in shown], [states[: x.tokens] for x in shown]
        return [stacked(contexts).to(device, dtype) for contexts in both]

    def read(self, prompts: Iterable[str], negative: str, device: torch.device,
             dtype: torch.dtype) -> None:
        """Encode what was not encoded before. UserError if there is no T5."""
        wanted = dict.fromkeys([*((prompt, False) for prompt in prompts), (negative, True)])
        missing = [w for w in wanted if (self.config, dtype, *w) not in ENCODED]
        try:
            for text, whole in missing:
                tokenizer, t5 = load_t5(folder_of(self.config), device, dtype)
                if t5.config.d_model != self.config.width:
                    raise UserError(f"{folder_of(self.config)} has a T5 of {t5.config.d_model} "
                                    f"channels, not {self.config.width}; T5 v1.1 XXL is needed")
                ENCODED[self.config, dtype, text, whole] = self.run(tokenizer, t5, text, whole)
        finally:
            if missing and not self.keep:
                tokenizer = t5 = None
                load_t5.cache_clear()
                gc.collect()

    def run(self, tokenizer: Any, t5: Any, text: str, whole: bool) -> Encoded:
        ids = tokenizer(cleaned(text))["input_ids"]
        count = min(len(ids), self.config.tokens)
        kept = [*ids[: count - 1], ids[-1]]  # which ends the text
        padded = torch.tensor([kept + [tokenizer.pad_token_id] * (self.config.tokens - count)])
        mask = (torch.arange(self.config.tokens) < count).long()[None]
        with torch.no_grad():
            states = t5(padded.to(t5.device), attention_mask=mask.to(t5.device))[0][0].cpu()
        return Encoded(states if whole else states[:count].clone(), count, len(ids) - count)

    def lost(self, text: str) -> int:
        """How many tokens of a text that was encoded did not fit."""
        return next((x.lost for (*_, known, _), x in ENCODED.items() if known == text), 0)


def stacked(contexts: list[Tensor]) -> Tensor:
    """b m c of several m c; with a channel that says what is padding if they differ in length."""
    if len({len(x) for x in contexts}) > 1:
        contexts = [F.pad(x, (0, 1), value=1.0) for x in contexts]
    return pad_sequence(contexts, batch_first=True)


def folder_of(config: T5Config) -> Path:
    """Where T5 lies. UserError if it does not."""
    folder = Path(os.environ.get("LATTE_TEXT") or config.folder)
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no folder {part}/, from which Latte's prompts are "
                            "encoded; let the environment variable LATTE_TEXT name one that has")
    return folder


@lru_cache(maxsize=1)
def load_t5(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and encoder. UserError if they cannot be loaded."""
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise UserError("Latte's prompts are encoded by transformers, which is not installed: "
                        'pip install ".[t5]"') from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        t5 = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True,
                                            dtype=dtype)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:  # of any file
        raise UserError(f"{folder} has no T5 that transformers can load "
                        f"({one_line(error)}); download it again") from error
    return tokenizer, t5.to(device).eval()


# Prompts are cleaned as captions were for training (of DeepFloyd IF, and of all that took its T5).
DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = ("\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
          "\ufe31\ufe32\ufe58\ufe63\uff0d")
Rules = list[tuple[str, str]]  # a pattern, and what takes its place
LINKS: Rules = [("<person>", "person"),
                (rf"\b(?:(?:https?|www):(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", "")]
SIGNS: Rules = [
    (r"@\w+\b|[\u31c0-\u9fff]", ""), (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'), ("[‘’]", "'"), ("&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "), (r"\d:\d\d\s+$", ""), (r"\\n", " "),
    (r"#(?:\d{1,3}|\d{5,})\b", ""), (r"\b\d{6,}\b", ""), (rf"\S+\.(?:{FILES})", ""),
    ("[\"']{2,}", '"'), (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "), (r"\s+\.\s+", " ")]
CODES: Rules = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""), (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""), (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""), (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(?:\simages?)?", ""), (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""), (r"\b\s+:\s+", ": "),  # the second x is Cyrillic
    (r"(\D[,./])\b", r"\1 "), (r"\s+", " ")]
ENDS: Rules = [("^[\"']([\\w\\W]+)[\"']$", r"\1"), (r"^['_,\-:;]|['_,\-:+]$", ""), (r"^\.\S+$", "")]


def cleaned(prompt: str) -> str:
    """A prompt as T5 is given it."""
    return cleaned_once(cleaned_once(prompt))


def cleaned_once(text: str) -> str:
    text = applied(LINKS, unquote_plus(text).strip().lower())
    text = applied(SIGNS, without_tags(text))
    if len(re.findall("[-_]", text)) > 3:  # words-like-these
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(mended(text)))
    return applied(ENDS, applied(CODES, text)).strip()


def applied(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


class Untagged(HTMLParser):
    text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def without_tags(text: str) -> str:
    parser = Untagged()
    parser.feed(text)
    parser.close()
    return parser.text


# --- where the tensors of the published folder go


def attends(source: str, target: str, projections: str) -> Rows:
    """projections: ours, with their parts' letters."""
    rows = [(f"{source}.to_out.0.*", f"{target}.to_out.*")]
    for parts in projections.split():
        rows += joined(f"{source}.to_{{part}}", f"{target}.to_{parts}", " ".join(parts), BOTH)
    return rows


def block(theirs: str, ours: str) -> Rows:
    return Table([
        ("scale_shift_table", "table"), *attends("attn1", "attn", "qkv"),
        *attends("attn2", "cross_attn", "q kv"), ("ff.net.0.proj.*", "ff.proj_in.*"),
        ("ff.net.2.*", "ff.proj_out.*")]).within(f"{theirs}.{{}}.", f"{ours}.{{}}.")


NETWORK = Table([
    ("pos_embed.proj.*", "patches.*"), ("adaln_single.linear.*", "modulation.*"),
    *diffusers.mlp("adaln_single.emb.timestep_embedder", "time_embedding"),
    *diffusers.mlp("caption_projection", "caption"),
    *block("transformer_blocks", "spatial_blocks"),
    *block("temporal_transformer_blocks", "temporal_blocks"),
    ("scale_shift_table", "table_out"), ("proj_out.*", "proj_out.*")])


NETWORK_FIELDS: configs.Fields = {
    "num_attention_heads": ("heads", None), "attention_head_dim": ("head_dim", None),
    "sample_size": ("grid", None), "video_length": ("frames", None)}
NETWORK_NEEDS = {
    "patch_size": (2,), "activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_single",),
    "norm_eps": (1e-6,), "norm_elementwise_affine": (False,)}


def table(config: ModelConfig, names: Collection[str] = ()) -> Table:
    vae = diffusers.vae(config.vae, HF_RES if config.vae.temporal else diffusers.RES)
    return Table([*NETWORK.within("transformer.", "unet."), *vae.within("vae.", "vae."),
                  ("vae.decoder.time_conv_out.*", "vae.decoder.temporal_conv.*")],
                 dropped={"transformer.caption_projection.y_embedding": "nothing reads it"})


class LatteConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--transformer", type=Path, help="the network's weights from another file: a .pt")
        add("--temporal_decoder", action="store_true",
            help="take Stable Video Diffusion's decoder, which mixes frames")
        add("--text_folder", type=Path, help="the folder with text_encoder/ and tokenizer/, from "
                                             "which prompts will be encoded (default: the source)")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        vae = "vae_temporal_decoder" if args.temporal_decoder else "vae"
        parts = {"vae": open_folder(path, (vae,))[vae]}
        if args.transformer is None:
            parts |= open_folder(path, ("transformer",))
        else:
            parts["transformer"] = open_source(args.transformer, weights=args.weights)
        return join(path, parts)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        folder = (args.text_folder or source.path).absolute()
        print(f"prompts will be encoded by the T5 in {folder}, which is not a part of the output")
        vae = TEMPORAL if args.temporal_decoder else config.vae
        vae_folder = source.path / ("vae_temporal_decoder" if args.temporal_decoder else "vae")
        network = configs.said(source.path / "transformer/config.json")
        if isinstance(side := network.values.get("sample_size"), int):  # of latents
            tokens = {"sample_size": side // config.unet.patch // max(1, side // 64)}
            network = replace(network, values=network.values | tokens)
        return replace(config, vae=configs.vae(vae_folder, vae),
                       unet=network.over(config.unet, NETWORK_FIELDS, NETWORK_NEEDS),
                       encoder=replace(config.encoder, folder=str(folder)),
                       sampler=configs.ddim(source.path, config.sampler))


# --- the family

TEMPORAL = AutoencoderConfig(temporal=True, float32=True)


class LatteFamily(Family):
    name = "latte"
    config = ModelConfig(
        "latte", LatteConfig(), AutoencoderConfig(), T5Config(),
        DDIMConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", first_timestep=0,
                   ends_clean=True),
        Defaults(height=512, width=512, eta=0.0, guidance_scale=7.5,
                 prompt="A dog in astronaut suit and sunglasses floating in space."))
    conversion = LatteConversion(table)

    def unet(self, config: LatteConfig) -> nn.Module:
        return Latte(config)

    def small(self, config: LatteConfig) -> LatteConfig:
        return replace(config, heads=2, head_dim=24, layers=4)

    def encoder(self, config: T5Config) -> PromptEncoder:
        return PromptEncoder(config)

    def encode_first(self, config: ModelConfig, prompts: Collection[str], settings: Settings,
                     device: torch.device) -> None:
        dtype = getattr(torch, settings.dtype)
        self.encoder(config.encoder).read(prompts, settings.negative_prompt, device, dtype)

    def needs_first(self, config: ModelConfig, settings: Settings) -> str:
        try:
            where = f"the T5 in {folder_of(config.encoder)}"
        except UserError as error:
            return str(error)
        return f"{where}, {T5_SIZE * getattr(torch, settings.dtype).itemsize / 1e9:.2f} GB"

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        at = networks.unet.proj_out.weight
        contexts = networks.encoder.encode(inputs.prompts, settings.negative_prompt, at.device,
                                           at.dtype)
        return [Branch(context) for context in contexts]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return networks.encoder.lost(prompt)


FAMILY = LatteFamily()
