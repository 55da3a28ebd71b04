"""TensorFlow's import says what is of use, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launch import ROOT, run_python

# Stands for TensorFlow, whose libraries write to the file descriptor.
LIBRARY = r"""
import os
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
os.write(2, b"I0000 00:00:1795.1 7 port.cc:153] oneDNN custom operations are on.\n")
os.write(2, b"F0000 this CPU lacks AVX\n")
class config:
    def list_physical_devices():
        os.write(2, b"E0000 00:00:1795.1 7 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error\n")
        os.write(2, b"E0000 something else\n")
"""
CODE = "from utils.startup import import_tensorflow; import_tensorflow({}); import os; os.write(2, b'I0000 later\\n')"


@pytest.mark.parametrize(
    ("end", "verbose", "said"),
    [
        ("", False, ["F0000 this CPU lacks AVX", "E0000 something else", "I0000 later"]),
        ("", True, ["WARNING", "I0000 00:", "F0000", "I0000 later"]),
        ("os.abort()", False, ["F0000 this CPU lacks AVX"]),
        ("raise KeyboardInterrupt", False, ["F0000 this CPU lacks AVX", "Traceback"]),
    ],
)
def test_lines_of_loading_are_left_out_and_no_others(
    end: str, verbose: bool, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tensorflow.py").write_text(LIBRARY + end)
    done = run_python(
        ["-c", CODE.format(verbose)], CUDA_VISIBLE_DEVICES="-1", PYTHONPATH=f"{tmp_path}:{ROOT}"
    )
    lines = done.stderr.splitlines()
    assert len(lines) >= len(said)
    for line, beginning in zip(lines, said):
        assert line.startswith(beginning)


def test_tensorflow_itself_is_quiet() -> None:
    done = run_python(["-c", CODE.format(False)], TF_ENABLE_ONEDNN_OPTS="1")
    assert (done.returncode, done.stderr) == (0, "I0000 later\n")
