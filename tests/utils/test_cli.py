"""What is printed of warnings, and how often."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from utils.cli import show_warnings
show_warnings()
from absl import logging as absl_logging
absl_logging.info("sharding")  # as TensorFlow does when it writes a checkpoint
logging.getLogger("samplers.slides.slide").warning("a slide is odd")
logging.getLogger("elsewhere").warning("another library warns")
logging.getLogger("elsewhere").info("and says more")
"""


def test_each_warning_is_printed_once_also_after_a_checkpoint():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["warning: a slide is odd", "another library warns"]
