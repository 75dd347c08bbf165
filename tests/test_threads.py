"""How torch's threads wait for each other is chosen before torch loads, unless the user has
chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = (
    ["sample.py"],
    ["-m", "zerosmooth_cli"],
    ["-m", "evaluation"],
    ["-m", "weights_convert"],
    ["-m", "smallworld.train"],
    ["-m", "benchmarks.unets"],
    ["-c", "import zerosmooth"],
)


def torch_sees(folder: Path, command: list[str], **said: str) -> str:
    """What torch finds in the environment when it loads: one stands in for it here."""
    code = "import os, sys\nprint(os.environ.get('GOMP_SPINCOUNT'))\nsys.exit()"
    (folder / "torch.py").write_text(code)
    env = {name: x for name, x in os.environ.items()
           if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env |= {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **said}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True,
                          text=True).stdout.strip()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_choose_how_threads_wait_before_torch_loads(tmp_path, command):
    assert torch_sees(tmp_path, command) == "5000"


def test_what_the_user_chose_stays(tmp_path):
    assert torch_sees(tmp_path, COMMANDS[0], GOMP_SPINCOUNT="7") == "7"
    assert torch_sees(tmp_path, COMMANDS[0], OMP_WAIT_POLICY="active") == "None"


def test_a_torch_that_is_loaded_already_changes_nothing():
    code = "import os, torch, zerosmooth; print(os.environ.get('GOMP_SPINCOUNT'))"
    env = {name: x for name, x in os.environ.items()
           if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True,
                          text=True)
    assert done.stdout.strip() == "None"
