"""What is to stay small stays small."""

import pytest

from . import size


@pytest.mark.parametrize("what", size.sums(size.counts()))
def test_code_stays_within_its_limits(what):
    n, limit = size.sums(size.counts())[what]
    assert n <= limit


def test_no_line_is_too_long():
    assert size.long_lines() == []


def test_docstrings_comments_and_blank_lines_are_no_code(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""Doc\nstring."""\n\n# comment\nx = """a\nb"""  # said\n\n\n'
                    'def f(a,\n      b):\n    """Doc."""\n    return a\n')
    assert size.code_lines(path) == 5
