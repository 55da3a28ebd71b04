"""The forecast is near what is written in the end, and says when the disk is too small for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from CAMELYON17_PREPROCESSING import forecast as forecast_module
from CAMELYON17_PREPROCESSING.forecast import Forecast, forecast
from CAMELYON17_PREPROCESSING.options import parse_options, settings_of
from CAMELYON17_PREPROCESSING.preprocess import find_sources
from samplers.reader import BadSlideError
from tests.helpers.preprocessing import words


def forecast_of(demo17: Path, out: Path, *more: str) -> Forecast:
    options = parse_options(words(demo17, out, *more))
    return forecast(find_sources(options)[0], settings_of(options))


def test_it_is_near_what_is_written(demo17, whole, monkeypatch):
    monkeypatch.setattr(forecast_module, "PATCHES", 16)
    found = forecast_of(demo17, whole)
    written = [path for path in whole.rglob("*") if path.is_file() and path.suffix in (".png", ".json")]
    patches = [path for path in written if path.name.startswith("tumor_center")]
    size = sum(path.stat().st_size for path in written if "tumor_center" in path.name)
    assert found.slides_seen == 4
    assert found.patches == pytest.approx(len(patches), rel=0.3)
    assert found.files == pytest.approx(len(written), rel=0.3)
    assert found.bytes == pytest.approx(size, rel=0.3)


def test_of_many_slides_some_are_looked_at_and_bad_ones_count_as_the_others(demo17, whole, monkeypatch):
    options = parse_options(words(demo17, whole))
    sources, real = find_sources(options)[0] * 10, forecast_module.plan
    calls = []

    def plan(source, settings):
        calls.append(source)
        if len(calls) == 2:
            raise BadSlideError(source.pair, "broken")
        return real(source, settings)

    monkeypatch.setattr(forecast_module, "plan", plan)
    found = forecast(sources, settings_of(options))
    assert len(calls) == 8
    assert found.slides_seen == 7
    patches = len(list(whole.rglob("tumor_center*")))
    assert patches * 10 * 0.5 < found.patches < patches * 10 * 2


def test_max_patches_limits_it(demo17, whole):
    found = forecast_of(demo17, whole, "--max_patches", "2")
    assert 0 < found.patches <= 4 * 2 * 2


def test_a_disk_that_is_too_small_is_warned_of(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    (line,) = Forecast(1200, 2404, free / 3, 8, 30).said(tmp_path)
    assert "estimated from 30 patches of 8 slides: 1,200 patches, 2,404 files" in line
    assert "warning" in Forecast(1200, 2404, free * 2.0, 8, 30).said(tmp_path)[1]
    assert not Forecast().said(tmp_path)
