"""Memory that srun's tasks of MPICH allocate while they start holds nothing of what was freed before."""

from __future__ import annotations

import pytest

from tests.helpers.launch import run_python

CODE = """
import ctypes
from utils.ranks.slurm_pmi import short_addresses
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def used():
    places = [libc.malloc(4096) for _ in range(100)]
    found = sum(any(ctypes.string_at(place, 4096)) for place in places)
    for place in places:
        ctypes.memset(place, 7, 4096)
    for place in places:
        libc.free(place)
    return found > 0

used()
with short_addresses():
    within = used()
print(within, used())
"""


@pytest.mark.parametrize(("step", "within"), [("0", False), ("", True)])
def test_memory_is_zero_while_mpich_starts_under_srun(step, within):
    done = run_python(["-c", CODE], SLURM_STEP_ID=step, PMI_RANK="0", PMI_SIZE="2")
    assert done.stdout == f"{within} True\n", done.stderr
