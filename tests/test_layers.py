"""No import points upwards: what a file knows of the package is what a reader has read before
it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD = ["operators", "bus", "attention", "samplers", "cascade"]  # in the order of reading
BELOW = {"fields", "models.kernels", "offload"}  # which know nothing of the method
LIBRARY = sorted(p for p in (ROOT / "zerosmooth").rglob("*.py") if p.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """Modules that a file imports when it is loaded, of this repository: "bus", "models.unet",
    "evaluation", .."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body:  # not those inside functions, nor those for types alone
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("zerosmooth.") for name in found if name.split(".")[0] in TOP}


TOP = {"zerosmooth", "zerosmooth_cli", "weights_convert", "evaluation", "smallworld", "benchmarks",
       "examples", "tests", "sample"}


@pytest.mark.parametrize("name", METHOD)
def test_the_methods_files_import_what_stands_above_them(name):
    allowed = set(METHOD[: METHOD.index(name)]) | BELOW
    assert imported(ROOT / "zerosmooth" / f"{name}.py") <= allowed


@pytest.mark.parametrize("name", METHOD)
def test_the_methods_files_are_read_in_one_sitting(name):
    assert len((ROOT / "zerosmooth" / f"{name}.py").read_text().splitlines()) < 260


@pytest.mark.parametrize("path", sorted((ROOT / "zerosmooth/models").glob("*.py")),
                         ids=lambda p: p.stem)
def test_networks_know_the_method_and_no_more(path):
    assert imported(path) <= {*METHOD, *BELOW, "operators"} | {n for n in imported(path)
                                                               if n.startswith("models")}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_the_library_knows_neither_commands_nor_what_measures_it(path):
    others = TOP - {"zerosmooth"}
    assert not {name for name in imported(path) if name.split(".")[0] in others}


def test_measuring_real_videos_does_not_load_the_drawn_world():
    for path in (ROOT / "evaluation").rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == "smallworld"}, path
