"""A clone of the suite whose network is a toy and whose environment is that of the tests: a run takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers.launch import ROOT

# train.py of the clone: the toy, which handles signals from its first line on as train.py does.
TRAIN = """
import runpy, sys
sys.path[:] = [{root!r}] + [path for path in sys.path if path != {clone!r}]
from utils.cli import EXIT_STOPPED
from utils.interrupt import end_quietly
if __name__ == "__main__":
    end_quietly(EXIT_STOPPED)
    runpy.run_path({program!r}, run_name="__main__")
"""
# What utils/env.sh leaves behind it, without a set-up.
ENVIRONMENT = """
MPI=${{MPI:-openmpi}} VENV={venv}
PATH=$VENV/bin:$PATH
export LD_LIBRARY_PATH="${{LD_LIBRARY_PATH:-}}"
export PATH MPI VENV TF_USE_LEGACY_KERAS=1
"""


def make_clone(folder: Path, toy: str) -> Path:
    """Make a clone in the folder that trains with a program of tests/helpers, for instance toy_train.py. Return it."""
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in ("utils", "train.py", "logs", "data"):
            (folder / path.name).symlink_to(path)
    (folder / "utils").mkdir()
    for path in (ROOT / "utils").iterdir():
        if path.name != "env.sh":
            (folder / "utils" / path.name).symlink_to(path)
    program = str(ROOT / "tests/helpers" / toy)
    (folder / "train.py").write_text(TRAIN.format(root=str(ROOT), clone=str(folder), program=program))
    (folder / "utils/env.sh").write_text(ENVIRONMENT.format(venv=sys.prefix))
    return folder
