"""CLIP's byte-pair tokenizer (Sennrich et al. 2016, Radford et al. 2021).

Text is lower-cased and cut into words, single digits and runs of other signs. Each piece is written
as bytes, and neighbouring symbols are merged in the order in which CLIP learnt the merges. A
tokenizer with fewer merges takes the first ones of the list.

Text is mended as `ftfy` does for CLIP's own tokenizer, but for what was decoded with the wrong
encoding (cafÃ©), and always here, whatever is installed: a prompt has the same tokens everywhere.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from functools import lru_cache
from importlib.resources import files
from itertools import groupby

import torch
from torch import Tensor

SPECIAL = ("<start_of_text>", "<end_of_text>")
FIRST = "|".join((*SPECIAL, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"))  # tried first
# Python's `re` has no Unicode categories: `_letters_and_numbers` tells letters from numbers.
PIECES = re.compile(FIRST + r"|[^\W_]+|(?:[^\s\w]|_)+")
TERMINAL = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")  # colours of a terminal
# Ligatures of Latin letters, and the letters of other widths in Chinese and Japanese fonts.
WIDE = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u3000\ufb00-\ufb06\uff01-\uffee]")
KEYBOARD = str.maketrans(dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")  # from what is pasted
                         | dict.fromkeys("\u201c\u201d\u201e\u201f", '"'))
CONTROLS = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def mended(text: str) -> str:
    """A text as a keyboard gives it: plain quotes, letters and widths; composed accents; no control
    characters."""
    text = WIDE.sub(lambda c: unicodedata.normalize("NFKC", c[0]), TERMINAL.sub("", text))
    return unicodedata.normalize("NFC", CONTROLS.sub("", text.translate(KEYBOARD)))


def pieces(text: str) -> list[str]:
    """A text cut as CLIP does."""
    text = re.sub(r"\s+", " ", mended(html.unescape(html.unescape(text)))).strip().lower()
    return [part for piece in PIECES.findall(text) for part in _letters_and_numbers(piece)]


class Tokenizer:
    """merges: number of byte pairs to merge, at most 48,894. context_length: tokens of a prompt,
    filled up with pad_token."""

    def __init__(self, merges: int, context_length: int = 77, pad_token: int = 0) -> None:
        pairs = _merge_list()
        if not 0 <= merges <= len(pairs):
            raise ValueError(f"merges={merges}; the list has {len(pairs)}")
        self.context_length, self.pad_token = context_length, pad_token
        self.symbols = _byte_symbols()
        alphabet = list(self.symbols.values())
        self.rank = {pair: i for i, pair in enumerate(pairs[:merges])}
        vocabulary = [*alphabet, *(s + "</w>" for s in alphabet), *map("".join, self.rank)]
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        self.start, self.end = len(vocabulary), len(vocabulary) + 1
        self.encode_piece = lru_cache(maxsize=4096)(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start, end and padding."""
        return [i for piece in pieces(text) for i in self.encode_piece(piece)]

    def __call__(self, prompts: list[str]) -> Tensor:
        """Ids of prompts: n context_length. Longer prompts are cut off; see `overflow`."""
        rows = []
        for prompt in prompts:
            ids = [self.start, *self.encode(prompt)[: self.context_length - 2], self.end]
            rows.append(ids + [self.pad_token] * (self.context_length - len(ids)))
        return torch.tensor(rows)

    def overflow(self, prompt: str) -> int:
        """How many of a prompt's tokens do not fit."""
        return max(0, len(self.encode(prompt)) - (self.context_length - 2))

    def _encode_piece(self, piece: str) -> list[int]:
        if piece in SPECIAL:
            return [(self.start, self.end)[SPECIAL.index(piece)]]
        word = [self.symbols[b] for b in piece.encode("utf-8")]
        word[-1] += "</w>"
        while len(word) > 1:
            pair = min(zip(word, word[1:]), key=lambda p: self.rank.get(p, len(self.rank)))
            if pair not in self.rank:
                break
            merged, i = [], 0
            while i < len(word):
                both = tuple(word[i : i + 2]) == pair
                merged.append("".join(pair) if both else word[i])
                i += 2 if both else 1
            word = merged
        return [self.ids[symbol] for symbol in word]


def _letters_and_numbers(piece: str) -> list[str]:
    """A run of letters and numbers, cut into runs of letters and single numbers; any other piece as
    it is."""
    if not piece[0].isalnum():
        return [piece]
    runs = ["".join(run) for _, run in groupby(piece, str.isalpha)]
    return [part for run in runs for part in ([run] if run.isalpha() else run)]


@lru_cache(maxsize=1)
def _merge_list() -> list[tuple[str, str]]:
    packed = files("zerosmooth").joinpath("assets/clip_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    return [(left, right) for left, right in (line.split() for line in lines)]


def _byte_symbols() -> dict[int, str]:
    """A visible character for every byte, in the order of CLIP's vocabulary: printable bytes stand
    for themselves and come first, the others are characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}
