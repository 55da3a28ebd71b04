"""What NVIDIA's driver tells of the GPUs of this host, without TensorFlow."""

from __future__ import annotations

import shutil
import subprocess

HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that leave no GPU; the last is Slurm's


def ask_driver(what: str) -> list[str]:
    """Return one value for each GPU of the node (or of the job, where its others are hidden); none without driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    words = [command, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
