"""What the README and the pages say of the code is true of the code."""

import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_FAMILIES
from zerosmooth.checkpoint import save
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks

ROOT = Path(__file__).parent.parent
CODE = (ROOT / "docs/code.md").read_text()
ROWS = re.findall(r"^\| ([\d, -]+) \| (.+?) \| (`.+`) \|$", CODE, flags=re.MULTILINE)


def numbers(text: str) -> set[int]:
    """Of "5, 6" or "10-14"."""
    found = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def named(source: str) -> set[int]:
    """Equations that code names: "Eq. 9", "(Eq. 5, 6)", "(11-14)"."""
    after = re.findall(r"Eq\. (\d[\d, -]*)", source) + re.findall(r"\((\d[\d, -]*)\)", source)
    return set().union(*map(numbers, after)) if after else set()


def find(place: str) -> object:
    """`cascade.Cascade.weight` in the package."""
    path = place.split(".")
    n = 2 if path[0] in ("models", "extensions") else 1  # folders
    module, path = ".".join(path[:n]), path[n:]
    found = importlib.import_module(f"zerosmooth.{module}")
    for name in path:
        found = getattr(found, name)
    return found


def test_the_table_has_all_equations_of_the_method():
    assert set().union(*(numbers(equations) for equations, *_ in ROWS)) == set(range(5, 25))


@pytest.mark.parametrize(("equations", "places"), [(row[0], row[2]) for row in ROWS])
def test_each_place_exists_and_names_its_equations(equations, places):
    there = [named(_source(find(place))) for place in re.findall(r"`([\w.]+)`", places)]
    asked = numbers(equations)
    assert all(found & asked for found in there), "a place does not name any of its equations"
    assert asked <= set().union(*there)


def _source(thing: object) -> str:
    """Its own, and of a method its class's docstring: what a reader who follows the link sees."""
    owner = getattr(thing, "__qualname__", "").rpartition(".")[0]
    source = inspect.getsource(thing)
    if owner:
        source += inspect.getdoc(getattr(inspect.getmodule(thing), owner)) or ""
    return source


PAGES = sorted((ROOT / "docs").glob("*.md"))
RESULTS = sorted((ROOT / "docs/results").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *RESULTS,
          *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", RESULTS, ids=lambda path: path.stem)
def test_results_have_a_picture_each(page):
    assert f"]({page.stem}.png)" in page.read_text()


@pytest.mark.parametrize(("pages", "most"), [([ROOT / "README.md"], 900), (PAGES, 12_000)],
                         ids=["README", "docs"])
def test_pages_are_short_enough_to_be_read(pages, most):
    assert sum(len(page.read_text().split()) for page in pages) <= most


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_code_on_a_page_fits_a_line(page):
    for block in re.findall(r"```.*?\n(.*?)```", page.read_text(), flags=re.DOTALL):
        assert max(map(len, block.splitlines())) <= 100


@pytest.mark.long
def test_the_walks_pictures_can_be_made_again(tmp_path):
    """All that docs/method.md shows, by its script, from tiny checkpoints of square videos with few
    steps."""
    files = []
    for family in ("vc2", "svd"):
        config = TINY_FAMILIES[family]
        config = replace(config, defaults=replace(config.defaults, width=config.defaults.height))
        files.append(tmp_path / f"{family}.safetensors")
        tensors = Networks(FAMILIES[family], config).state_dict().items()
        save(files[-1], FAMILIES[family], config, tensors, torch.float32, "a test", "")
    command = [sys.executable, "docs/figures.py", "--ckpt", *files, "--steps", "2", "--outdir",
               tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"!\[.*\]\((.+)\.png\)", (ROOT / "docs/method.md").read_text()))
    assert shown == {path.stem for path in tmp_path.glob("*.png")}


def test_an_installation_finds_the_files_of_a_clone():
    """What `pip install .` copied is what lies here. Skipped where this clone itself is what is
    installed."""
    site = sysconfig.get_path("purelib")  # not this folder, where building leaves a description too
    installed = next(iter(importlib.metadata.distributions(name="zerosmooth", path=[site])), None)
    copied = {str(path) for path in (installed and installed.files) or ()}
    if not copied or any("__editable__" in path for path in copied):
        pytest.skip("not installed, or as this clone")
    here = {str(path.relative_to(ROOT)) for package in ("zerosmooth", "weights_convert")
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert here <= copied
