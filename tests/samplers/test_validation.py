"""The validation patches: the same for any number of ranks, all lesions, within bounds; and the pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from samplers import (
    PatchInfo,
    SamplerConfig,
    SlidePair,
    draw_samples,
    training_loader,
    validation,
    validation_loader,
)
from samplers.picture import PATCH, TISSUE, TUMOUR, TUMOUR_PATCH
from samplers.validation import MIN_OTHERS, validation_patches
from tests.helpers.groups import Gathering, Member, on_members
from tests.helpers.lesion_slides import HEIGHT, LESIONS, WIDTH, make_slide
from tests.helpers.tiny_slides import write_levels
from utils.cli import UserError

CONFIG = SamplerConfig("surf", img_size=64, batch_size=3, batch_tumor_ratio=0.5, augment=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    folder = tmp_path_factory.mktemp("validation")
    return [
        make_slide(folder, "tumor_1"),
        make_slide(folder, "tumor_2", [(0, 330, 90, 400), (950, 0, 960, 8)], label="xml", downsamples=(1, 5)),
        make_slide(folder, "normal_1", [], label=None),
    ]


def test_the_union_over_ranks_is_the_same_for_every_number_of_them(pairs: list[SlidePair]) -> None:
    found = []
    for size in (1, 2, 3):
        patches = []
        for rank in range(size):
            with validation_loader(pairs, CONFIG, rank, size, processes=rank) as loader:
                first = [(p, label.tobytes()) for b in loader for p, label in zip(b.patches, b.labels)]
                again = [(p, label.tobytes()) for b in loader for p, label in zip(b.patches, b.labels)]
            assert first == again
            patches += first
        assert len(set(patches)) == len(patches)
        found.append(set(patches))
    assert found[0] == found[1] == found[2]


def test_all_of_a_lesion_is_validated(pairs: list[SlidePair]) -> None:
    patches = [patch for pair, patch in validation_patches(pairs, CONFIG) if pair.name == "tumor_1"]
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for patch in patches:
        covered[patch.y_l0 : patch.y_l0 + 64, patch.x_l0 : patch.x_l0 + 64] = True
    for left, top, right, bottom in LESIONS:
        assert covered[top:bottom, left:right].all()
    assert len(patches) == 2 * sum(patch.tumour for patch in patches)  # as many others


def test_slides_without_tumour_are_validated_on_their_tissue(pairs: list[SlidePair]) -> None:
    with validation_loader(pairs[2:], CONFIG, 0, 1, processes=0) as loader:
        batches = list(loader)
    assert [len(batch.images) for batch in batches] == [3, 3, 2]
    assert sum(len(batch.patches) for batch in batches) == MIN_OTHERS
    assert not any(batch.labels.any() for batch in batches)


def test_the_bound_holds_and_is_shared_among_slides(pairs: list[SlidePair]) -> None:
    items = validation_patches(pairs, replace(CONFIG, max_validation_patches=12))
    assert len(items) == 12
    names = [pair.name for pair, _ in items]
    assert {name: names.count(name) for name in names} == {"normal_1": 4, "tumor_1": 4, "tumor_2": 4}
    assert sum(patch.tumour for _, patch in items) == 4
    assert validation_patches(pairs, replace(CONFIG, max_validation_patches=12, seed=1)) != items


def test_patches_are_as_the_slide_is_and_not_augmented(pairs: list[SlidePair]) -> None:
    whole = cv2.cvtColor(cv2.imread(str(pairs[0].slide)), cv2.COLOR_BGR2RGB)
    with validation_loader(pairs[:1], CONFIG, 0, 1, processes=1) as loader:
        for batch in loader:
            for image, label, patch in zip(batch.images, batch.labels, batch.patches):
                x, y = patch.x_l0, patch.y_l0
                np.testing.assert_array_equal(image, whole[y : y + 64, x : x + 64])
                assert label.any() == patch.tumour


def test_a_slide_of_glass_alone_is_an_error(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "glass.tif", [np.full((200, 200, 3), 245, np.uint8)])
    with pytest.raises(UserError, match="neither tissue nor a lesion on the 1 validation slides"):
        validation_patches([SlidePair(path, None)], CONFIG)


def test_a_slide_that_a_rank_cannot_read_is_left_out_by_all_of_them(
    tmp_path: Path, pairs: list[SlidePair], caplog: pytest.LogCaptureFixture
) -> None:
    gone = SlidePair(tmp_path / "gone.tif", None)
    expected = validation_patches(pairs[1:], CONFIG)
    assert validation_patches([gone, *pairs[1:]], CONFIG) == expected
    assert caplog.messages[0].startswith("bad slide, left out of the validation: gone: ")


def test_the_ranks_share_the_slides_and_have_the_same_patches(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = validation_patches(pairs, CONFIG)
    read = Mock(side_effect=validation._patches)
    monkeypatch.setattr(validation, "_patches", read)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))

    def patches(rank: int, gathering: Gathering) -> list[validation.Item]:
        return validation_patches(pairs, CONFIG, Member(rank, 2, gathering))

    for _ in range(2):  # the second time from what was kept
        assert on_members(2, patches)[0] == [expected, expected]
        assert sorted(call.args[0].pair.name for call in read.call_args_list) == sorted(p.name for p in pairs)
    validation_patches(pairs, replace(CONFIG, seed=1))
    assert read.call_count == 2 * len(pairs)


def test_more_unreadable_slides_than_are_allowed_are_an_error_that_names_them(
    tmp_path: Path, pairs: list[SlidePair]
) -> None:
    gone = [SlidePair(tmp_path / f"gone_{i}.tif", None) for i in (1, 2)]
    message = r"(?s)validation slide gone_1: .*gone_1\.tif: no such file"
    for config, slides in (
        (replace(CONFIG, max_bad_slides=0), [*pairs, gone[0]]),
        (CONFIG, [*pairs, *gone]),
        (replace(CONFIG, max_bad_slides=2), gone),  # all of them
    ):
        with pytest.raises(UserError, match=message):
            validation_patches(slides, config)


def test_more_ranks_than_patches_leave_a_rank_without_batches(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, max_validation_patches=2)
    for processes in (0, 1):
        with validation_loader(pairs, config, 2, 3, processes) as loader:
            assert list(loader) == []


def test_pictures_show_outlines_and_patches(pairs: list[SlidePair], tmp_path: Path) -> None:
    with training_loader(pairs, CONFIG, 0, 1, processes=0) as loader:
        patches = [patch for batch, _ in zip(loader, range(8)) for patch in batch.patches]
    files = draw_samples(tmp_path / "new" / "samples", pairs, CONFIG, patches)
    assert [file.name for file in files] == ["tumor_1.png", "tumor_2.png", "normal_1.png"]
    picture = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    assert max(picture.shape) >= 500
    for colour in (TISSUE, TUMOUR, PATCH, TUMOUR_PATCH):
        assert (picture == colour).all(axis=2).sum() > 50


def test_a_slide_that_cannot_be_drawn_is_a_warning_and_the_others_are_drawn(
    pairs: list[SlidePair], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = SlidePair(tmp_path / "gone.tif", None)
    patches = [PatchInfo(name, 0, 0, 64, False) for name in ("gone", "normal_1")]
    (file,) = draw_samples(tmp_path, [gone, pairs[2]], CONFIG, patches)
    assert file.name == "normal_1.png"
    assert f"no picture of gone: {gone.slide}: no such file" in caplog.messages[0]
