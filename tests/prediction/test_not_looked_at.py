"""A slide that was not looked at is not negative, and one slide's failure ends no other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from predict import main
from prediction import stream, work
from prediction.find import find_slides
from prediction.model import Predictor
from tests.helpers.lesion_slides import HEIGHT, WIDTH
from tests.helpers.predicting import record, words
from tests.helpers.tiny_slides import write_levels
from utils.cli import UserError
from utils.ranks import killed_rank


def rows(out: Path) -> dict[str, str]:
    with (out / "slides.csv").open() as file:
        return {row["slide"]: row["node_label"] for row in csv.DictReader(file)}


@pytest.fixture
def some(slides, tmp_path) -> Path:
    """A slide with a lesion, and two on which no tissue is found: pale, and grey."""
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(slides / "tumor_001.tif", folder)
    noise = np.random.default_rng(0).integers(-6, 6, (HEIGHT, WIDTH, 1))
    for name, level in (("pale", 238), ("grey", 120)):
        write_levels(folder / f"{name}.tif", [(level + noise).repeat(3, axis=2).astype(np.uint8)], 0.5)
    return folder


def test_a_slide_without_tissue_has_no_row(toys, some, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(toys / "lesion", some, out)) == 1
    said = capsys.readouterr().err
    for name in ("pale", "grey"):
        assert f"bad slide, left out: {name}: " in said
        assert not list(out.rglob(f"{name}*"))
    assert "no tissue was found on it" in said
    assert set(rows(out)) == {"tumor_001"}
    every = tmp_path / "every"
    assert main(words(toys / "lesion", some, every, "--no-tissue_only")) == 0
    assert rows(every)["grey"] == "negative"
    assert record(every, "grey")["patches"] > 0


def test_what_an_earlier_version_called_negative_without_a_look_is_looked_at_again(
    toys, some, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(words(toys / "lesion", some / "tumor_001.tif", out)) == 0
    path = out / "slides" / "tumor_001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patches": 0, "node_label": "negative"}))
    assert main(words(toys / "lesion", some / "tumor_001.tif", out)) == 0
    assert record(out, "tumor_001")["patches"] > 0
    shutil.copy(some / "grey.tif", some / "tumor_001.tif")
    path.write_text(json.dumps({**json.loads(path.read_text()), "patches": 0}))
    assert main(words(toys / "lesion", some / "tumor_001.tif", out)) == 1
    assert rows(out) == {}
    (out / "slides" / "other.json").write_text(json.dumps({"slide": "other", "patches": 0}))
    assert main(words(toys / "lesion", some / "grey.tif", out)) == 1
    assert rows(out) == {}  # nor is a slide negative that this run does not see


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0, -3.0])
def test_what_is_no_probability_is_not_negative(value, toys, some, tmp_path, monkeypatch, capsys):
    def broken(self: Predictor, images: np.ndarray) -> np.ndarray:
        found = np.zeros((len(images), 1, *images.shape[1:3]), np.float32)
        found[-1, 0, 5, 7] = value
        return found

    monkeypatch.setattr(Predictor, "__call__", broken)
    assert main(words(toys / "lesion", some / "tumor_001.tif", tmp_path / "out")) == 1
    assert "tumor_001.tif: the model's output is no probability" in capsys.readouterr().err
    assert rows(tmp_path / "out") == {}


@pytest.mark.parametrize("place", [(stream, "read_patch"), (work, "write_overlay"), (work, "tissue_of")])
def test_an_error_that_nobody_expected_is_that_of_its_slide(
    place, toys, slides, tmp_path, monkeypatch, capsys
):
    real = getattr(*place)

    def broken(*arguments: object) -> object:
        if any("tumor_002" in str(getattr(argument, "path", "")) for argument in arguments):
            raise ZeroDivisionError("of the test")
        return real(*arguments)

    monkeypatch.setattr(*place, broken)
    out = tmp_path / "out"
    assert main(words(toys / "lesion", slides, out)) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: tumor_002: failed: ZeroDivisionError: of the test" in said
    assert "Traceback" not in said
    assert set(rows(out)) == {"normal_001", "tumor_001"}
    assert not list(out.rglob("*tumor_002*"))
    kept = (out / "failures.log").read_text()
    assert "tumor_002.tif" in kept
    assert 'raise ZeroDivisionError("of the test")' in kept


def test_memory_that_is_used_up_and_ctrl_c_end_the_run(toys, slides, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(killed_rank, "end_at_once", said.append)
    for error in (MemoryError("of the test"), KeyboardInterrupt()):

        def broken(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(stream, "read_patch", broken)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                main(words(toys / "lesion", slides, tmp_path))
        else:
            main(words(toys / "lesion", slides, tmp_path))
            assert "of the test" in said[0]


def test_a_link_to_nothing_is_a_bad_slide(toys, some, tmp_path, capsys):
    (some / "gone.tif").symlink_to("nowhere/gone.tif")
    assert main(words(toys / "lesion", some, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: gone: " in said
    assert "is a link to nowhere/gone.tif, which is not there" in said
    assert main(words(toys / "lesion", some / "gone.tif", tmp_path / "out2")) == 1


def test_folders_name_what_they_leave_out(tmp_path):
    for name in (
        "a.tif",
        "b.SVS",
        "c.czi",
        "d.png",
        "e_mask.tif",
        "notes.txt",
        "f.xml",
        ".g.tif",
        "deep/h.ndpi",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, (others, deeper) = find_slides([str(tmp_path)])
    assert {path.name for path in found} == {"a.tif", "b.SVS"}
    assert "3 other files are left out (1 .czi, 1 .png, 1 .tif; " in others
    assert others.endswith("c.czi, d.png, e_mask.tif")
    assert deeper.endswith("deep")
    assert {path.name for path in find_slides([str(tmp_path / "*")])[0]} >= {"a.tif", "h.ndpi"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.czi").touch()
    with pytest.raises(UserError, match=r"no slides are there; .*1 other files .*x\.czi"):
        find_slides([str(tmp_path / "none")])
