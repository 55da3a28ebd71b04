"""A slide that was begun goes on: only what is missing is predicted, and only with the same settings."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

import prediction.progress
from predict import main
from prediction.grid import Frame, Grid
from prediction.model import Predictor
from prediction.progress import Progress
from prediction.store import prepare
from tests.helpers.predicting import digests, record, words
from tests.prediction.test_store import SETTINGS


@pytest.fixture
def opened(tmp_path):
    """Opens the progress of a slide, with any settings, as a new process would."""
    slide = tmp_path / "a.tif"
    slide.write_bytes(b"slide")
    grid = Grid(Frame(1000, 900, 1.0, 0.5), 256, 0.25, None, (1.0, 1.0))

    def open_progress(name: str = "a", **changed: object) -> Progress:
        settings = replace(SETTINGS, **changed)  # type: ignore[arg-type]
        prepare(tmp_path / "out", settings)
        return Progress(tmp_path / "out", slide.with_name(f"{name}.tif"), settings, grid)

    return open_progress


def test_a_new_process_finds_the_rows_that_are_missing(opened):
    with closing(opened()) as progress:
        assert progress.missing((0, 900)) == [(0, 900)]
        progress.probability.write(5, 110, np.full((2, 3), 7, np.uint8))
        progress.note(100, 300, last=True)
        progress.note(450, 600, last=True)
    with closing(opened(batch_size=1)) as progress:
        assert progress.probability.read(5, 110, 3, 2).tolist() == [[7] * 3] * 2
        assert progress.missing((0, 900)) == [(0, 100), (300, 450), (600, 900)]
        # Ranks that share the slide have other bands than before.
        assert progress.missing((0, 250)) == [(0, 100)]
        assert progress.missing((250, 500)) == [(300, 450)]
        assert progress.missing((450, 600)) == progress.missing((7, 7)) == []


def test_a_note_grows_and_is_not_written_all_the_time(opened, monkeypatch):
    with closing(opened()) as progress:
        progress.note(100, 200, last=False)
        assert progress.missing((0, 300)) == [(0, 300)]
        monkeypatch.setattr(prediction.progress, "EVERY_SECONDS", 0)
        progress.note(100, 90, last=False)  # the first rows of patches lie above the band
        assert progress.missing((0, 300)) == [(0, 300)]
        progress.note(100, 200, last=False)
        progress.note(100, 250, last=False)
        assert progress.missing((0, 300)) == [(0, 100), (250, 300)]


def test_other_settings_or_another_slide_of_the_name_begin_anew(opened, tmp_path):
    (tmp_path / "a.0123456789abcdef.tif").write_bytes(b"a slide with such a name")
    with closing(opened("a.0123456789abcdef")) as other, closing(opened()) as progress:
        other.note(0, 800, last=True)
        progress.note(0, 800, last=True)
    with closing(opened(threshold=0.7)) as progress:
        assert progress.missing((0, 900)) == [(0, 900)]
        progress.note(0, 800, last=True)
    (tmp_path / "a.tif").write_bytes(b"longer than before")
    with closing(opened(threshold=0.7)) as progress:
        assert progress.missing((0, 900)) == [(0, 900)]
    assert len(list((tmp_path / "out" / ".work").glob("*.rows"))) == 2  # one of each of the two slides
    with closing(opened("a.0123456789abcdef")) as other:
        assert other.missing((0, 900)) == [(800, 900)]


def test_a_killed_prediction_goes_on_within_the_slide(toys, slides, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        """As a signal, it is no error of the slide."""

    real, calls = Predictor.__call__, []

    def dies(predictor: Predictor, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if sum(calls) > 60:
            raise Killed
        return real(predictor, images)

    def counts(predictor: Predictor, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return real(predictor, images)

    monkeypatch.setattr(prediction.progress, "EVERY_SECONDS", 0)
    command = words(toys / "lesion", slides / "tumor_001.tif", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", dies)
        with pytest.raises(Killed):
            main(command)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", counts)
        assert main(command) == 0
    patches = record(tmp_path, "tumor_001")["patches"]
    assert sum(calls) < patches - 30, f"of {patches} patches"
    expected = {name: digest for name, digest in digests(whole).items() if "tumor_001" in name}
    found = digests(tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert not (tmp_path / ".work").exists()
