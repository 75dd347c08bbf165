"""A prompt that a small model cannot show is told so, with what would fit."""

import re
import shlex
from pathlib import Path

import pytest

from smallworld import far, recipes
from zerosmooth.checkpoint import DEFAULT, describe, find
from zerosmooth_cli import main as sample

FAR = Path(recipes.__file__).with_name("far-small.safetensors")
EXAMPLE = "a red circle moving left quickly on a gray background"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is counted."""
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])


def said(capsys, *arguments: str) -> str:
    assert sample.main(["--check", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", [find("vc2-small"), find("lavie-small"), FAR])
def test_a_shipped_checkpoint_knows_the_words_of_its_training(path):
    words = recipes.RECIPES[path.stem].words()
    checkpoint = describe(path)
    assert checkpoint.words == tuple(words) and len(words) > 20
    assert not checkpoint.unknown(checkpoint.config.defaults.prompt)
    assert {*far.COLORS} <= {*words}


def test_words_outside_are_named_with_what_fits(capsys):
    text = said(capsys, "--prompt", "a panda eating pizza, a panda moving left")
    (note,) = (line for line in text.splitlines() if line.startswith("note: "))
    assert note.startswith("note: vc2-small cannot show panda, eating, pizza; ")
    assert EXAMPLE in note and "circle, cyan" in note
    many = said(capsys, "--prompt", "one two three four five six seven", "--ckpt", "lavie-small")
    assert "lavie-small cannot show one, two, three, four, five and 2 more words" in many


def test_what_fits_is_not_remarked_on(capsys):
    for arguments in ([], ["--prompt", "A Green, square moving UP!"], ["--ckpt", "svd-small"]):
        assert "note: " not in said(capsys, *arguments)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_told(capsys, prompt):
    assert "note: a prompt is empty: vc2-small shows what it likes; it was trained on such as " \
           f"'{EXAMPLE}'" in said(capsys, "--prompt", prompt)


def test_prompts_of_a_file_are_told_once(capsys, tmp_path):
    (tmp_path / "x.txt").write_text("a red cat\na red dog\na red cat jumping")
    text = said(capsys, "--prompt_file", str(tmp_path / "x.txt"))
    assert text.count("note: ") == 1 and "cannot show cat, dog, jumping;" in text


def test_help_asks_the_small_model_for_nothing_that_it_cannot_show(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    shown = 0
    for line in re.findall(r"python sample\.py .*", capsys.readouterr().out):
        arguments = shlex.split(line, comments=True)
        if "--prompt" in arguments and "--ckpt" not in arguments:
            prompt = arguments[arguments.index("--prompt") + 1]
            assert not describe(find(DEFAULT)).unknown(prompt)
            shown += 1
        assert "panda" not in line
    assert shown == 1
