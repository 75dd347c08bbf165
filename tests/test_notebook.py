"""The notebook that teaches: it runs, which checks its equations, and says what is committed.

    python -m tests.test_notebook       # runs it and writes what it shows into it
"""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='no nbclient: pip install ".[test]"')
nbclient = pytest.importorskip("nbclient", reason='no nbclient: pip install ".[test]"')
pytest.importorskip("ipykernel", reason='no ipykernel: pip install ".[test]"')

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples/one_step.ipynb"


def executed():
    """The notebook, after it ran in its folder, with what it shows."""
    notebook = nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    return notebook


def printed(notebook) -> list[str]:
    """By each cell."""
    return ["".join(shown.text for shown in cell.get("outputs", ()) if "text" in shown)
            for cell in notebook.cells]


def test_the_equations_give_what_the_package_gives():
    run = executed()
    assert "equal to the bit\n" in printed(run)
    assert printed(run) == printed(nbformat.read(NOTEBOOK, 4)), "python -m tests.test_notebook"
    kinds = [kind for cell in run.cells for shown in cell.get("outputs", ())
             for kind in shown.get("data", ())]
    assert kinds.count("image/png") == 2 and kinds.count("text/html") == 1  # pictures, a player
    assert NOTEBOOK.stat().st_size < 300_000  # without the player


if __name__ == "__main__":
    shown = executed()
    for cell in shown.cells:
        cell.metadata.pop("execution", None)  # the times of this run
        if "player" in cell.metadata.get("tags", ()):
            cell.outputs = []
    nbformat.write(shown, NOTEBOOK)
