"""The reference prompts and cases beyond them, with and without the packages that CLIP cleans text
by."""

import importlib.util
import json
import unicodedata
from pathlib import Path

import pytest

from zerosmooth.models.tokenizer import Tokenizer, clip_pieces, plain_pieces

GOLDEN = Path(__file__).with_name("golden") / "golden_tokenizer.json"
BROKEN = {
    "a \ufb01re in the caf\u00c3\u00a9": "a fire in the caf\u00e9",
    "\uff21\uff22\uff23": "abc",
    "a\x1b[1mb": "ab",
}


@pytest.fixture(params=[plain_pieces, clip_pieces], ids=["without ftfy", "with ftfy"])
def pieces(request):
    if request.param is clip_pieces:
        pytest.importorskip("ftfy")
        pytest.importorskip("regex")
    return request.param


@pytest.fixture
def clip(pieces):
    return tokenizer(pieces)


def tokenizer(pieces, *settings) -> Tokenizer:
    made = Tokenizer(48894, *settings)
    made.pieces = pieces
    return made


@pytest.mark.parametrize(("layout", "pad"), [("openclip", 0), ("sd", 49407)])
def test_reference_prompts_have_the_reference_tokens_either_way(pieces, layout, pad):
    reference = json.loads(GOLDEN.read_text())
    assert tokenizer(pieces, 77, pad)(reference["prompts"]).tolist() == reference[layout]


def test_numbers_of_every_kind_stand_alone(pieces):
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


def test_letters_of_every_script_stay_together(pieces):
    assert pieces("caf\u00e9 \u65e5\u672c\u8a9e it's") == ["caf\u00e9", "\u65e5\u672c\u8a9e", "it",
                                                           "'s"]


def test_letters_numbers_and_signs_are_told_apart_alike_either_way():
    """In all that `ftfy` leaves as it is, and of which both Python and `regex` know what it is."""
    ftfy, regex = pytest.importorskip("ftfy"), pytest.importorskip("regex")
    for c in map(chr, range(0x3100)):
        known = unicodedata.category(c)[0] != "C" and not regex.match(r"\p{C}", c)
        # A mark that is neither to a `regex` without case.
        if known and ftfy.fix_text(c) == c and c != "\u0345":
            assert plain_pieces(f"a{c}1") == clip_pieces(f"a{c}1"), hex(ord(c))


def test_curly_quotes_composed_accents_and_entities_are_those_of_the_keyboard(clip):
    pasted = clip.encode("it\u2019s \u201cfine\u201d cafe\u0301 &amp;lt;3")
    assert pasted == clip.encode('it\'s "fine" caf\u00e9 <3')


@pytest.mark.parametrize("text", BROKEN)
def test_broken_text_is_mended_as_clip_mends_it_where_ftfy_is_at_hand(clip, text):
    assert (clip.encode(text) == clip.encode(BROKEN[text])) == (clip.pieces is clip_pieces)


def test_a_tokenizer_takes_clips_way_where_it_can(monkeypatch):
    installed = all(importlib.util.find_spec(name) for name in ("ftfy", "regex"))
    assert Tokenizer(10).pieces is (clip_pieces if installed else plain_pieces)
    monkeypatch.setattr("zerosmooth.models.tokenizer.find_spec", lambda name: None)
    assert Tokenizer(10).pieces is plain_pieces


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
