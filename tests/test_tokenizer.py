"""The reference prompts and cases beyond them: a text has the same tokens, whatever is
installed."""

import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from zerosmooth.models.tokenizer import Tokenizer, mended, pieces

GOLDEN = Path(__file__).with_name("golden") / "golden_tokenizer.json"
CLIP = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # CLIP's own, but for what it tries first
PASTED = {  # a text, and what CLIP's own tokenizer makes of it with `ftfy`
    "a \ufb01re in the caf\u00e9": "a fire in the caf\u00e9",
    "\uff21\uff22\uff23\uff0c \u3000d\uff01": "abc, d!",
    "\uff76\uff9e": "\u30ac",
    "a\x1b[1;31mb\x07\ufeff\u206ac": "abc",
    "it\u2019s \u201cfine\u201d cafe\u0301 &amp;lt;3": 'it\'s "fine" caf\u00e9 <3',
    "\u0149 \u01c6": "'n d\u017e",
}


@pytest.fixture
def clip():
    return Tokenizer(48894)


@pytest.mark.parametrize(("layout", "pad"), [("openclip", 0), ("sd", 49407)])
def test_reference_prompts_have_the_reference_tokens(layout, pad):
    reference = json.loads(GOLDEN.read_text())
    assert Tokenizer(48894, 77, pad)(reference["prompts"]).tolist() == reference[layout]


@pytest.mark.parametrize("text", PASTED)
def test_pasted_text_has_the_tokens_of_the_keyboards_whatever_is_installed(clip, monkeypatch, text):
    ids = clip.encode(text)
    for package in ("ftfy", "regex"):
        monkeypatch.setitem(sys.modules, package, None)
    assert ids == Tokenizer(48894).encode(text) == clip.encode(PASTED[text])


def test_every_character_is_mended_as_ftfy_does():
    """But for those that only a wrong encoding gives, and one ligature, spelt out further."""
    ftfy = pytest.importorskip("ftfy")
    for c in map(chr, [*range(0x80), *range(0xa0, 0xd800), *range(0xe000, 0x11000)]):
        ours, theirs = (re.sub(r"\s+", " ", text) for text in (mended(f"a{c}b"),
                                                              ftfy.fix_text(f"a{c}b")))
        assert ours == theirs or c == "\ufb05", hex(ord(c))


def test_numbers_of_every_kind_stand_alone():
    assert pieces("h\u2082o m\u00b2 \u2163 24fps \u00bd") == [
        "h",
        "\u2082",
        "o",
        "m",
        "\u00b2",
        "\u2173",
        "2",
        "4",
        "fps",
        "\u00bd",
    ]


def test_letters_of_every_script_stay_together():
    assert pieces("caf\u00e9 \u65e5\u672c\u8a9e it's") == ["caf\u00e9", "\u65e5\u672c\u8a9e", "it",
                                                           "'s"]


def test_letters_numbers_and_signs_are_told_apart_as_clips_pattern_does():
    """In all of which both Python and `regex` know what it is."""
    regex = pytest.importorskip("regex")
    for c in map(chr, range(0x3100)):
        known = unicodedata.category(c)[0] != "C" and not regex.match(r"\p{C}", c)
        text = re.sub(r"\s+", " ", mended(f"a{c}1")).strip().lower()
        # A mark that is neither to a `regex` without case.
        if known and c not in "&\u0345":
            assert pieces(f"a{c}1") == regex.findall(CLIP, text, regex.IGNORECASE), hex(ord(c))


def test_special_tokens_are_single(clip):
    assert clip.encode("<end_of_text>") == [49407] and clip.encode("<start_of_text>") == [49406]


def test_long_prompts_are_cut_and_told(clip):
    row = clip(["word " * 100])[0].tolist()
    assert len(row) == 77 and row[0] == 49406 and row[-1] == 49407
    assert clip.overflow("word " * 100) == 25
    assert clip.overflow("word") == 0


def test_fewer_merges_are_the_first_ones(clip):
    few = Tokenizer(300, context_length=20, pad_token=5)
    ids = few.encode("the")
    assert few.start == 512 + 300 and all(i < few.start for i in ids)
    assert ids == clip.encode("the")  # "th" and "the" are among the first
    assert few(["a"])[0].tolist()[3:] == [5] * 17
    with pytest.raises(ValueError, match="the list has 48894"):
        Tokenizer(48895)
