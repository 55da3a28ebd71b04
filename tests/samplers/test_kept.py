"""What was found about slides is found again, unless a file, an option or the code has changed."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from samplers import kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_was_saved_is_loaded_and_nothing_else_is_left(folder: Path) -> None:
    assert kept.load_json("a") is None
    kept.save_json("a", {"b": [1.5, None]})
    assert kept.load_json("a") == {"b": [1.5, None]}
    assert os.listdir(folder) == ["a"]


def test_a_damaged_file_is_not_there(folder: Path) -> None:
    kept.save_json("a", list(range(100)))
    content = bytearray((folder / "a").read_bytes())
    for damaged in (content[:-3], content[:20] + b"x" + content[21:], b""):
        (folder / "a").write_bytes(damaged)
        assert kept.load_json("a") is None


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, "caches/extended-fov-segmentation/slides"), ("", None), ("here", "here")]
)
def test_the_folder_is_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    if chosen is None:
        monkeypatch.delenv("CACHE_DIR")
    else:
        monkeypatch.setenv("CACHE_DIR", chosen and str(tmp_path / chosen))
    assert kept.folder() == (expected and tmp_path / expected)
    kept.save_json("a", 1)
    assert kept.load_json("a") == (1 if expected else None)


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "file" / "kept"))
    for _ in range(2):
        assert list(kept.kept_array("a", lambda: np.arange(3))) == [0, 1, 2]
    (message,) = caplog.messages
    assert "cannot be kept" in message
    assert str(tmp_path / "file") in message


def test_a_full_disk_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    kept.save_json("a", 1)
    assert os.listdir(folder) == []
    assert "No space left" in caplog.text


def test_a_file_that_changes_has_another_state(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes(b"one")
    before = kept.state_of(path)
    assert kept.state_of(path) == before
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert kept.state_of(path) != before
    os.utime(path, ns=(0, before[2]))
    assert kept.state_of(path) == before
    path.write_bytes(b"longer")
    os.utime(path, ns=(0, before[2]))
    assert kept.state_of(path) != before
    assert kept.state_of(None) is None


def test_slides_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "slide.mrxs").touch()
    (tmp_path / "slide").mkdir()
    part = tmp_path / "slide" / "Data0000.dat"
    part.write_bytes(b"1")
    before = kept.state_of(tmp_path / "slide.mrxs")
    part.write_bytes(b"12")
    assert kept.state_of(tmp_path / "slide.mrxs") != before
    (tmp_path / "slide.vms").touch()
    with pytest.raises(OSError, match="parts in other files"):
        kept.state_of(tmp_path / "slide.vms")


def test_slides_that_are_folders(tmp_path: Path) -> None:
    (tmp_path / "1.2.3").mkdir()
    for name in ("a.dcm", "b.DCM", "notes.txt"):
        (tmp_path / "1.2.3" / name).write_bytes(b"1")
    before = kept.state_of(tmp_path / "1.2.3")
    (tmp_path / "1.2.3" / "notes.txt").write_bytes(b"12")
    assert kept.state_of(tmp_path / "1.2.3") == before
    (tmp_path / "1.2.3" / "b.DCM").write_bytes(b"12")
    changed = kept.state_of(tmp_path / "1.2.3")
    assert changed != before
    (tmp_path / "1.2.3" / "a.dcm").unlink()
    assert kept.state_of(tmp_path / "1.2.3") not in (before, changed)


def test_other_options_and_other_code_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = kept.name_of("check", ["slide.tif", 1, 2], 256)
    assert kept.name_of("check", ["slide.tif", 1, 2], 256) == name
    assert kept.name_of("check", ["slide.tif", 1, 2], 512) != name
    monkeypatch.setattr(kept, "_LIBRARIES", (*kept._LIBRARIES, np))
    kept._version.cache_clear()
    try:
        assert kept.name_of("check", ["slide.tif", 1, 2], 256) != name
    finally:
        kept._version.cache_clear()


def test_one_looks_and_the_others_wait(folder: Path) -> None:
    begun = threading.Event()

    def find() -> np.ndarray:
        assert not begun.is_set()
        begun.set()
        time.sleep(0.1)
        return np.eye(3, dtype=np.uint8)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kept.kept_array("a", find), range(4)))
    for array in found:
        np.testing.assert_array_equal(array, np.eye(3))


def test_old_files_are_removed(folder: Path) -> None:
    for name, age in (("old", kept.MAX_AGE + 60), ("new", 60)):
        kept.save_json(name, name)
        os.utime(folder / name, (time.time() - age,) * 2)
    kept.remove_old()
    assert os.listdir(folder) == ["new"]
