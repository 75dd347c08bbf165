"""Our networks, samplers and cascade against figures that the authors' own code computed; see `tests.parity`."""

from pathlib import Path

import pytest

from .parity import check

FILES = sorted((Path(__file__).parent / "golden").iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_the_authors_code(path):
    value, bound = check(path)
    assert value <= bound
