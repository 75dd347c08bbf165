"""Prompts by UMT5-XXL's encoder, which is four times as large as the network and stays in its
folder: `transformers` runs it from there (`pip install ".[t5]"`)."""

from __future__ import annotations

import gc
import html
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights_convert.engine import convert
from weights_convert.source import open_source
from zerosmooth.fields import UserError
from zerosmooth.files import one_line
from zerosmooth.models.tokenizer import mended

from .conversion import TEXT

UMT5_SIZE = 5_680_910_336  # parameters of UMT5-XXL's encoder
XXL = {"vocab_size": 256_384, "d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24,
       "num_heads": 64, "feed_forward_proj": "gated-gelu"}
ENCODED: dict[tuple[UMT5Config, torch.dtype, str], tuple[Tensor, int]] = {}  # and tokens lost


@dataclass(frozen=True)
class UMT5Config:
    folder: str = ""  # see `folder_of`
    tokens: int = 512  # of a prompt, at most
    width: int = 4096

    @property
    def context_shape(self) -> tuple[int, int]:
        return self.tokens, self.width


class PromptEncoder(nn.Module):
    """UMT5's states of prompts, which it makes one by one, once. It has no weights of its own.

    keep: do not let go of UMT5 once it is loaded.
    """

    keep = False

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.config = config

    def encode(self, prompts: Collection[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """b m c: the states of each prompt's tokens, then zeros. UserError if there is no UMT5."""
        if device.type == "meta":
            shape = len(prompts), *self.config.context_shape
            return torch.empty(shape, device=device, dtype=dtype)
        missing = [p for p in dict.fromkeys(prompts) if (self.config, dtype, p) not in ENCODED]
        try:
            for text in missing:
                tokenizer, umt5 = load_umt5(folder_of(self.config), device, dtype)
                if umt5.config.d_model != self.config.width:
                    raise UserError(f"{folder_of(self.config)} has a UMT5 of {umt5.config.d_model} "
                                    f"channels, not {self.config.width}; UMT5-XXL is needed")
                ENCODED[self.config, dtype, text] = self.run(tokenizer, umt5, text)
        finally:
            if missing and not self.keep:
                tokenizer = umt5 = None
                load_umt5.cache_clear()
                gc.collect()
        states = [ENCODED[self.config, dtype, text][0] for text in prompts]
        return torch.stack(states).to(device, dtype)

    def run(self, tokenizer: Any, umt5: Any, text: str) -> tuple[Tensor, int]:
        """The states, m c, and how many tokens did not fit."""
        ids = tokenizer(cleaned(text))["input_ids"]
        count = min(len(ids), self.config.tokens)
        kept = torch.tensor([[*ids[: count - 1], ids[-1]]], device=umt5.device)  # which ends it
        with torch.no_grad():
            states = umt5(kept, attention_mask=torch.ones_like(kept))[0][0].cpu()
        return F.pad(states, (0, 0, 0, self.config.tokens - count)), len(ids) - count

    def lost(self, text: str) -> int:
        """How many tokens of a text that was encoded did not fit."""
        return next((lost for (*_, known), (_, lost) in ENCODED.items() if known == text), 0)


def folder_of(config: UMT5Config) -> Path:
    """Where UMT5 lies: tokenizer/ and text_encoder/, or google/umt5-xxl/ and its authors' .pth.
    UserError if it does not."""
    folder = Path(os.environ.get("WAN_TEXT") or config.folder)
    if not (folder / "text_encoder").is_dir() and not authors_file(folder):
        raise UserError(f"{folder} has neither a folder text_encoder/ nor a "
                        "models_t5_umt5-xxl-enc-*.pth, from which Wan's prompts are encoded; let "
                        "the environment variable WAN_TEXT name a folder that has")
    return folder


def authors_file(folder: Path) -> Path | None:
    return min(folder.glob("models_t5_umt5*.pth"), default=None)


@lru_cache(maxsize=1)
def load_umt5(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and encoder. UserError if they cannot be loaded."""
    try:
        from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
    except ImportError as error:
        raise UserError("Wan's prompts are encoded by transformers, which is not installed: "
                        'pip install ".[t5]"') from error
    file = authors_file(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder / ("google/umt5-xxl" if file else "tokenizer"), local_files_only=True)
        if file is None:
            umt5 = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype,
                                                    local_files_only=True)
        else:
            with torch.device("meta"):
                umt5 = UMT5EncoderModel(UMT5Config(**XXL))
            fill(umt5, file, dtype)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:  # of any file
        raise UserError(f"{folder} has no UMT5 that transformers can load "
                        f"({one_line(error)}); download it again") from error
    umt5.encoder.embed_tokens.weight = umt5.shared.weight  # some versions leave it empty
    return tokenizer, umt5.to(device).eval()


def fill(umt5: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """The authors' weights, under the names of transformers. ConversionError if they do not fit."""
    source = open_source(file)
    expected = {name: tuple(x.shape) for name, x in umt5.state_dict().items()
                if name != "encoder.embed_tokens.weight"}
    state = convert(TEXT, source.shapes, source.read, expected)
    umt5.load_state_dict({name: x.to(dtype) for name, x in state}, strict=False, assign=True)


def cleaned(prompt: str) -> str:
    """A prompt as UMT5 is given it."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(mended(prompt)))).strip()
