"""How much code there is: lines without blank ones, comments and docstrings, at most 100 columns.

    python -m tests.size            # a line a folder, then the limits

Counted by `tokenize`, so that neither the layout of docstrings nor comments change it.
"""

from __future__ import annotations

import sys
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = "zerosmooth_cli/main.py"  # what sample.py runs
METHOD = [f"zerosmooth/{name}.py" for name in ("operators", "bus", "attention", "cascade")]
COLUMNS = 100
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
         tokenize.ENCODING, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines that hold a token of code. A string that is a statement of its own is none."""
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    lines: set[int] = set()
    begins = True  # whether a statement begins
    for token, following in zip(tokens, tokens[1:]):
        if token.type in BLANK:
            begins |= token.type in (tokenize.NEWLINE, tokenize.ENCODING)
            continue
        alone = begins and token.type == tokenize.STRING and following.type == tokenize.NEWLINE
        if not alone:
            lines.update(range(token.start[0], token.end[0] + 1))
        begins = False
    return len(lines)


@cache
def counts() -> dict[str, int]:
    """Code lines by file, of all that is not hidden."""
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    kept = [path for path in files if not path.parts[0].startswith((".", "build", "runs", "env"))]
    return {path.as_posix(): code_lines(ROOT / path) for path in sorted(kept)}


def sums(files: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What is limited: how much there is of it, and the limit."""
    library = sum(n for path, n in files.items() if path.startswith("zerosmooth/"))
    own = sum(n for path, n in files.items() if not path.startswith("tests/"))
    return {"the method's four files": (sum(files[path] for path in METHOD), 450),
            "zerosmooth/ and the command": (library + files[COMMAND], 3800),
            "the command": (files[COMMAND], 120),
            "all without tests": (own, OWN)}


OWN = 13_950  # 9,500, and since: worlds, motion, peers, Latte, Wan, checks, Python, ComfyUI


def long_lines() -> list[str]:
    """Lines over COLUMNS, as path:number."""
    return [f"{path}:{i}" for path in counts()
            for i, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
            if len(line.partition("  # noqa")[0]) > COLUMNS]


def main() -> int:
    files = counts()
    folders: dict[str, int] = {}
    for path, n in files.items():
        folder = path.partition("/")[0]
        folders[folder] = folders.get(folder, 0) + n
    for folder, n in folders.items():
        print(f"{n:6,}  {folder}")
    over = long_lines()
    for what, (n, limit) in sums(files).items():
        print(f"{n:6,}  of {limit:6,}  {what}")
    print(f"{len(over):6,}  lines over {COLUMNS} columns {' '.join(over[:5])}")
    return int(bool(over) or any(n > limit for n, limit in sums(files).values()))


if __name__ == "__main__":
    sys.exit(main())
