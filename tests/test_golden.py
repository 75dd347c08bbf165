"""Our networks, samplers and cascade against figures that the authors' own code computed; see
`tests.parity`."""

from pathlib import Path

import pytest

from .parity import check

FILES = sorted((Path(__file__).parent / "golden").iterdir())
LONG = ("pipeline", "cascade", "windowed", "vc2_A2")  # whole runs, and second files of a network


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem,
                 marks=[pytest.mark.long] if any(part in path.stem for part in LONG) else [])
    for path in FILES])
def test_agrees_with_the_authors_code(path):
    if path.stem.endswith(("latte_text", "wan_text")):
        pytest.importorskip("transformers")
    value, bound = check(path)
    assert value <= bound
