"""What /proc/cpuinfo says."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils import cpu


def test_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert cpu.cpu_flags(path) == frozenset()
    path.write_text("processor : 0\nflags\t\t: fpu avx512f\nprocessor : 1\nflags : fpu sse\n")
    assert cpu.cpu_flags(path) == {"fpu", "avx512f"}
    path.write_text("Features : asimd bf16\n")
    assert cpu.cpu_flags(path) == frozenset()


@pytest.mark.parametrize(
    ("flags", "able"), [({"avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)]
)
def test_bfloat16_takes_instructions_for_it(
    flags: set[str], able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags))
    assert cpu.computes_bfloat16() is able
