"""What the CPU can do, as far as Linux says."""

from __future__ import annotations

from pathlib import Path

BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16"))


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the names of the CPU's features; none if the system does not tell."""
    try:
        # The system takes a while for the text of each core, so only that of the first one is read.
        with cpuinfo.open() as lines:
            found = next((line.split(":", 1)[-1] for line in lines if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(found.split())


def computes_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16, without which it takes longer than float32."""
    return bool(BFLOAT16 & cpu_flags())
