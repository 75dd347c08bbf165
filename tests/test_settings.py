"""One name for a setting everywhere: `--set`, Python's keywords, and records."""

import re
import sys
from dataclasses import asdict, fields

import pytest

from zerosmooth.extensions import METHODS, Method
from zerosmooth.families import FAMILIES
from zerosmooth.fields import UserError
from zerosmooth.settings import Output, Running, Settings, options, settings_for
from zerosmooth_cli.arguments import FLAGS, asked
from zerosmooth_cli.command import processes

from .command import QUICK, ROOT, make, quick, records, run, sample

MOST_FILES = 23  # that run, outside models/, before the network does
LONGEST_CALL = 10  # files in which each calls the next, from the command to the network
OTHER = {"dtype": "bfloat16", "name": "{seed}", "device": "cpu", "negative_prompt": "dogs",
         "scale": "8", "preset": "anchored", "method": "direct", "a1_probability": "0.25"}


def another(option) -> str:
    """A value, as text, that is not the default."""
    if option.name in OTHER:
        return OTHER[option.name]
    if option.kind is bool:
        return str(not option.default).lower()
    if option.name == "prediction":
        return "carried"
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    return "0.5" if option.kind is float else str((option.default or 4) + 1)


@pytest.mark.parametrize("of", [Settings, Running, Output])
def test_every_option_has_a_field_and_a_text_and_is_set_by_its_name(of):
    assert [option.name for option in options(of)] == [field.name for field in fields(of)]
    for option in options(of):
        text = another(option)
        said = asked(sample.parse(["--set", f"{option.name}={text}"]))
        assert said == {option.name: option.read(text)}
        assert said[option.name] != option.default or option.name == "device"
        assert option.text


def test_the_settings_of_python_are_those_of_the_command_and_of_records(
        tiny, tmp_path, monkeypatch, pipeline):
    quick(monkeypatch)
    own = {"steps": 3, "scale": 2, "key_frames": 4, "overlap": 1, "dtype": "float32", "fps": 10}
    text = [f"{name}={value}" for name, value in own.items()]
    make(tiny, "--set", "gif=true", "picture=false", *text, "--outdir", tmp_path)
    assert records(tmp_path)[0]["settings"] == asdict(pipeline.settings(**own))


@pytest.mark.parametrize("option", list(options(Settings)), ids=lambda option: option.name)
def test_each_setting_is_a_keyword(pipeline, option):
    """It is used, or refused for a reason of its own."""
    value = option.read(another(option))
    try:
        settings = pipeline.settings(**{option.name: value})
    except UserError as error:
        assert "there is no setting" not in str(error)
    else:
        assert getattr(settings, option.name) == value


def test_a_flag_is_short_for_set_and_the_last_one_counts():
    for argv in (["--set", "steps=3", "fps=10"], ["--steps", "3", "--fps", "10"],
                 ["--steps", "4", "--set", "steps=3", "fps=10"],
                 ["--set", "steps=4", "fps=10", "--steps", "3"]):
        assert asked(sample.parse(argv)) == {"steps": 3, "fps": 10}
    assert asked(sample.parse([])) == {}
    assert asked(sample.parse(["--set", "overlap=none"])) == {"overlap": None}


def test_a_device_that_is_set_is_that_of_the_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="device 'toaster' is no device"):
        with processes(sample.parse(["--set", "device=toaster"])):
            pass


def test_help_fits_a_screen_and_names_each_flag():
    said = run("--help")
    assert all(f"--{name} " in said for name in (*FLAGS, "set", "settings", "again", "check"))
    assert len(said.splitlines()) <= 50 and max(map(len, said.splitlines())) <= 100


def test_all_settings_are_listed_with_their_meaning_and_default():
    said = run("--settings")
    for of in (Settings, Running, Output):
        for option in options(of):
            flag = f"--{option.name}" if option.name in FLAGS else f"--set {option.name}="
            (line,) = (line for line in said.splitlines() if line.split("  ")[0].strip() == flag
                       or line.startswith(f"{flag} "))
            assert option.text in line and "(default: " in line


@pytest.mark.parametrize(("text", "near"), [
    ("offlaod=true", "offload"), ("sidebyside=true", "side_by_side"), ("stepz=5", "steps")])
def test_an_unknown_name_is_told_with_what_is_near(tiny, text, near):
    said = make(tiny, "--set", text, status=1)
    name = text.partition("=")[0]
    assert said == f"sample.py: there is no setting '{name}'; did you mean {near}?\n"


def test_a_new_method_is_one_entry(monkeypatch):
    """Which may correct hidden states, and take but one value of a setting."""
    mine = Method("mine", corrects=True, needs={"eta": 0.5}, idle=())
    monkeypatch.setitem(METHODS, "mine", mine)
    family = FAMILIES["vc2"]
    settings = settings_for(family, family.config, method="mine", strength=0.25)
    assert settings.cascade.strength == 0.25 and settings.eta == 0.5
    with pytest.raises(UserError, match="eta=1.0 with mine; use 0.5"):
        settings_for(family, family.config, method="mine", eta=1.0)


def files_until_the_network(work) -> tuple[list[str], list[str]]:
    """The project's files outside models/ that run until the network is called on data, and those
    of the call itself."""
    found: dict[str, None] = {}
    calls: dict[str, None] = {}

    class Reached(BaseException):
        pass

    def look(frame, event, arg):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(f"{ROOT}/") or (
                code.co_name == "<module>"):
            return
        found.setdefault(code.co_filename)
        given = frame.f_locals
        if code.co_name == "forward" and "timestep" in given and given["x"].device.type != "meta":
            while frame := frame.f_back:
                calls.setdefault(frame.f_code.co_filename)
            raise Reached

    sys.setprofile(look)
    try:
        work()
    except Reached:
        pass
    finally:
        sys.setprofile(None)
    own = [[path.removeprefix(f"{ROOT}/") for path in files] for files in (found, calls)]
    return tuple([path for path in files if path.startswith("zerosmooth")
                  and not path.startswith("zerosmooth/models/")] for files in own)


def test_few_files_lie_between_the_command_and_the_network(tiny, tmp_path):
    argv = ["--ckpt", tiny / "vc2.safetensors", *QUICK, "--outdir", tmp_path]
    found, calls = files_until_the_network(lambda: sample.main([*map(str, argv)]))
    assert len(found) <= MOST_FILES, found
    assert 4 < len(calls) <= LONGEST_CALL, calls


@pytest.mark.parametrize(("typed", "hint"), [
    (["--promt", "x"], "did you mean --prompt?"), (["--strength", "0.5"], "--set strength=VALUE"),
    (["--stregth=0.5"], "did you mean --set strength?"), (["--qqqq"], "--help lists all flags"),
    (["a", "red", "ball"], "in quotes: --prompt"),
])
def test_a_flag_that_is_none_is_told_what_was_meant(typed, hint):
    assert hint in run(*typed, status=2)


def test_the_command_says_its_version():
    assert re.fullmatch(r"zerosmooth \d+\.\d+\.\d+\n", run("--version"))


def test_a_mistake_is_said_before_what_will_be_made(tiny, tmp_path):
    said = run("--ckpt", tiny / "svd.safetensors", "--image", tmp_path / "none.png", status=1)
    assert said == f"sample.py: the image {tmp_path / 'none.png'} does not exist\n"
