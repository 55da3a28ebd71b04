"""Files that are read at any place: few descriptors for many files, and a file that changes in between is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from samplers.slides import stored_file
from samplers.slides.cache import BoundedCache
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide
from samplers.slides.stored_file import MAX_DESCRIPTORS, StoredFile, require_file
from tests.helpers.tiny_slides import texture, write_levels


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_file, "_descriptors", BoundedCache(3))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_at_any_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    file = StoredFile(tmp_path / "f")
    assert file.read(90, 10) == bytes(range(90, 100))
    assert file.read(5, 2) == b"\5\6"
    for place in ((95, 6), (-1, 3), (1 << 60, 1)):
        with pytest.raises(DataError, match="behind the end of the file"):
            file.read(*place)


def test_500_slides_and_masks_need_few_descriptors(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", [texture(40, 30)[:, :, 0]], tile=16)
    before = descriptors()
    opened = []
    for number in range(500):
        link = tmp_path / f"{number}.tif"
        link.hardlink_to(path)
        opened += [Slide(link), Slide(link, "label")]
    expected = opened[1].read(0, 0, 40, 30)
    assert all((mask.read(0, 0, 40, 30) == expected).all() for mask in opened[1::2])
    assert descriptors() - before <= MAX_DESCRIPTORS + 2
    for slide in opened:
        slide.close()
    assert descriptors() <= before + 2


def test_threads_read_while_descriptors_are_closed_and_opened(tmp_path: Path, few: None) -> None:
    files = []
    for number in range(12):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 1000)
        files.append(StoredFile(tmp_path / str(number)))

    def read(number: int) -> bool:
        return files[number % 12].read(number % 900, 50) == bytes([number % 12]) * 50

    before = descriptors()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(3000)))
    assert descriptors() <= before + 8


@pytest.mark.parametrize("how", ["longer", "later", "gone"])
def test_a_file_that_changed_is_refused(tmp_path: Path, few: None, how: str) -> None:
    path = write_levels(tmp_path / "s.tif", [texture(40, 30)], tile=16)
    with Slide(path) as slide:
        others = [StoredFile(write_levels(tmp_path / f"{n}.tif", [texture(8, 8)])) for n in range(3)]
        status = path.stat()
        if how == "longer":
            path.write_bytes(path.read_bytes() + b"x")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif how == "later":
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        else:
            path.unlink()
        with pytest.raises(ReadError, match=r"s\.tif: level 0.* the file has changed since it was opened"):
            slide.read(0, 0, 10, 10)
    assert others


def test_a_change_is_named_when_it_breaks_a_read(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "s.tif", [np.zeros((30, 40, 3), np.uint8)], tile=16)
    with Slide(path) as slide:
        with path.open("r+b") as file:
            file.truncate(20)
        with pytest.raises(ReadError, match=r"cut off.*the file has changed since it was opened"):
            slide.read(0, 0, 10, 10)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "z.tif").symlink_to("nowhere/z.tif")
    os.symlink("loop.tif", tmp_path / "loop.tif")
    for name, reason in (
        ("no.tif", "no such file"),
        ("a.tif", "empty"),
        ("z.tif", "is a link to nowhere/z.tif, which is not there"),
        ("loop.tif", "which is not there"),
    ):
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            require_file(tmp_path / name)
