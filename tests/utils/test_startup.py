"""TensorFlow's import says what is of use, and nothing else."""

from __future__ import annotations

import subprocess
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


# Takes the place of TensorFlow's own function: a CPU without AVX-512, on which oneDNN only has float32.
OLD_CPU = """namespace tensorflow {
enum DataType : int;
bool IsDataTypeSupportedByOneDNNOnThisCPU(const DataType& type) { return type == 1; }
}"""
FLOAT16 = """import sys
from training.options import build_parser
from utils.startup import configure_environment, import_tensorflow
options = build_parser().parse_args(sys.argv[1:])
configure_environment(options)
import_tensorflow(options.verbose)
from training.trainer import set_up_keras
set_up_keras(options)
import tensorflow as tf
tf.cast([0.0], tf.float16)
"""


def test_gradients_sent_as_float16_are_no_error_on_an_old_cpu(tmp_path: Path) -> None:
    library = tmp_path / "old_cpu.so"
    compiler = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(compiler, input=OLD_CPU, text=True, check=True)
    said = [
        run_python(["-c", FLOAT16, *words], LD_PRELOAD=str(library)).stderr
        for words in (["--fp16_allreduce", "--verbose"], ["--fp16_allreduce"])
    ]
    assert "oneDNN supports DT_HALF only on platforms with AVX-512" in said[0]
    assert said[1] == ""
