"""The output folder of predict.py: what may differ when a run goes on, and what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prediction.store import PredictionSettings, prepare, record_of
from utils.cli import UserError

SETTINGS = PredictionSettings("a model", 256, 0.25, 4, None, True, 7, False, None, 0.5, 0.075)


def test_a_run_that_was_out_of_memory_goes_on_with_a_smaller_batch(tmp_path):
    prepare(tmp_path, SETTINGS)
    record_of(tmp_path, "slide").write_text("{}")
    prepare(tmp_path, replace(SETTINGS, batch_size=1))


@pytest.mark.parametrize(
    "other", [{"overlap": 0.5}, {"img_size": 512}, {"model": "another"}, {"tta": True}, {"threshold": 0.4}]
)
def test_what_changes_the_result_is_refused(tmp_path, other):
    prepare(tmp_path, SETTINGS)
    record_of(tmp_path, "slide").write_text("{}")
    with pytest.raises(UserError, match=f"--{next(iter(other))} was"):
        prepare(tmp_path, replace(SETTINGS, **other))
