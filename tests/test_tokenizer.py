"""Cases of the tokenizer beyond the reference prompts, which `tests/golden` has."""

import pytest

from zerosmooth.models.tokenizer import PIECES, Tokenizer, _letters_and_numbers

CLIP = Tokenizer(48894)


def pieces(text: str) -> list[str]:
    return [part for piece in PIECES.findall(text) for part in _letters_and_numbers(piece)]


def test_numbers_of_every_kind_stand_alone():
    assert pieces("h\u2082o m\u00b2 \u2163 24fps \u00bd") == [
        "h",
        "\u2082",
        "o",
        "m",
        "\u00b2",
        "\u2163",
        "2",
        "4",
        "fps",
        "\u00bd",
    ]


def test_letters_of_every_script_stay_together():
    assert pieces("caf\u00e9 \u65e5\u672c\u8a9e it's") == ["caf\u00e9", "\u65e5\u672c\u8a9e", "it", "'s"]


def test_curly_quotes_and_composed_accents_are_those_of_the_keyboard():
    assert CLIP.encode("it\u2019s \u201cfine\u201d cafe\u0301") == CLIP.encode('it\'s "fine" caf\u00e9')


def test_special_tokens_are_single():
    assert CLIP.encode("<end_of_text>") == [49407] and CLIP.encode("<start_of_text>") == [49406]


def test_long_prompts_are_cut_and_told():
    row = CLIP(["word " * 100])[0].tolist()
    assert len(row) == 77 and row[0] == 49406 and row[-1] == 49407 and CLIP.overflow("word " * 100) == 25
    assert CLIP.overflow("word") == 0


def test_fewer_merges_are_the_first_ones():
    few = Tokenizer(300, context_length=20, pad_token=5)
    ids = few.encode("the")
    assert few.start == 512 + 300 and all(i < few.start for i in ids)
    assert ids == CLIP.encode("the")  # "th" and "the" are among the first
    assert few(["a"])[0].tolist()[3:] == [5] * 17
    with pytest.raises(ValueError, match="the list has 48894"):
        Tokenizer(48895)
