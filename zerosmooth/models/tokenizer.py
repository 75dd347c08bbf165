"""CLIP's byte-pair tokenizer (Sennrich et al. 2016, Radford et al. 2021).

Text is lower-cased and cut into words, single digits and runs of other signs. Each piece is written
as bytes, and neighbouring symbols are merged in the order in which CLIP learnt the merges. A
tokenizer with fewer merges takes the first ones of the list.

Where `ftfy` and `regex` are installed (extra `text`), they clean and cut text as in CLIP's own
tokenizer. Elsewhere the standard library does, with the same tokens for ordinary prompts; what only
`ftfy` mends stays as it is: text decoded with the wrong encoding (cafÃ©), ligatures, fullwidth
letters, control characters.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from itertools import groupby

import torch
from torch import Tensor

SPECIAL = ("<start_of_text>", "<end_of_text>")
FIRST = "|".join((*SPECIAL, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"))  # tried first
CLIP_PIECES = FIRST + r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Python's `re` has no Unicode categories: `_letters_and_numbers` tells letters from numbers.
PIECES = re.compile(FIRST + r"|[^\W_]+|(?:[^\s\w]|_)+")
QUOTES = str.maketrans(dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")  # as people paste them
                       | dict.fromkeys("\u201c\u201d\u201e\u201f", '"'))


def clip_pieces(text: str) -> list[str]:
    """Clean a text and cut it as CLIP does. ImportError without `ftfy` and `regex`."""
    import ftfy
    import regex

    return regex.findall(CLIP_PIECES, _plain(ftfy.fix_text(text)), regex.IGNORECASE)


def plain_pieces(text: str) -> list[str]:
    """Nearly the same with the standard library: see above."""
    text = _plain(unicodedata.normalize("NFC", text).translate(QUOTES))
    return [part for piece in PIECES.findall(text) for part in _letters_and_numbers(piece)]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip().lower()


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
        self.pieces = clip_pieces if find_spec("ftfy") and find_spec("regex") else plain_pieces
        self.encode_piece = lru_cache(maxsize=4096)(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start, end and padding."""
        return [i for piece in self.pieces(text) for i in self.encode_piece(piece)]

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
