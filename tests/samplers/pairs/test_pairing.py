from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.pairs.pairing import SlidePair, find_pairs, listed, split_pairs
from samplers.slides.errors import DataError


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def named(pairs: list[SlidePair]) -> dict[str, str | None]:
    return {pair.slide.name: pair.label and pair.label.name for pair in pairs}


def pairs_of(*names: str, labelled: bool = True) -> list[SlidePair]:
    return [SlidePair(Path(f"{name}.tif"), Path(f"{name}.xml") if labelled else None) for name in names]


def test_decorations_case_and_long_suffixes_are_taken_off(tmp_path: Path) -> None:
    slides = files(
        tmp_path / "s", "tumor_001.tif", "Tumor_002.TIF", "tumor_003.tiff", "tumor_004.tif", "x.svs", ".y.tif"
    )
    labels = files(
        tmp_path / "l", "tumor_001_Mask.tif", "tumor_002_mask.tif", "mask_tumor_003.tif", "TUMOR_004.tif"
    )
    pairs, warnings = find_pairs(slides, labels, "tif", ".tif")
    assert named(pairs) == {
        "tumor_001.tif": "tumor_001_Mask.tif",
        "Tumor_002.TIF": "tumor_002_mask.tif",
        "tumor_003.tiff": "mask_tumor_003.tif",
        "tumor_004.tif": "TUMOR_004.tif",
    }
    assert warnings == []


def test_no_fuzzy_matching(tmp_path: Path) -> None:
    slides = files(tmp_path / "s", "tumor_001.tif", "tumor_0011.tif")
    labels = files(tmp_path / "l", "tumor_001.xml")
    pairs, warnings = find_pairs(slides, labels, "tif", "xml")
    assert named(pairs) == {"tumor_001.tif": "tumor_001.xml"}
    assert len(warnings) == 1
    assert "tumor_0011.tif" in warnings[0]


def test_normal_slides_of_camelyon16_need_no_label(tmp_path: Path) -> None:
    slides = files(tmp_path / "s", "normal_001.tif", "tumor_001.tif")
    labels = files(tmp_path / "l", "tumor_001.xml")
    pairs, warnings = find_pairs(slides, labels, "tif", "xml", unlabelled="error")
    assert (named(pairs), warnings) == ({"normal_001.tif": None, "tumor_001.tif": "tumor_001.xml"}, [])


def test_unlabelled_slides(tmp_path: Path) -> None:
    slides = files(tmp_path / "s", "a.tif", "b.tif", "c.tif")
    labels = files(tmp_path / "l", "a.xml")
    pairs, (warning,) = find_pairs(slides, labels, "tif", "xml")
    assert named(pairs) == {"a.tif": "a.xml"}
    assert "2 slides without a label" in warning
    assert all(name in warning for name in ("b.tif", "c.tif"))
    pairs, warnings = find_pairs(slides, labels, "tif", "xml", "normal")
    assert (len(pairs), warnings) == (3, [])
    with pytest.raises(DataError, match=r"2 slides without a label.*b\.tif.*c\.tif"):
        find_pairs(slides, labels, "tif", "xml", "error")
    with pytest.raises(ValueError, match="unlabelled"):
        find_pairs(slides, labels, "tif", "xml", "perhaps")


def test_patches_and_their_masks_in_one_folder(tmp_path: Path) -> None:
    folder = files(
        tmp_path / "p", "tumor_a_1_2.png", "mask_tumor_a_1_2.png", "tumor_b_1_2.png", "mask_tumor_b_1_2.png"
    )
    pairs, _ = find_pairs(folder, folder, "png", "png")
    assert named(pairs) == {f"tumor_{x}_1_2.png": f"mask_tumor_{x}_1_2.png" for x in "ab"}


@pytest.mark.parametrize(
    ("slides", "labels", "message"),
    [
        (["a.tif"], ["a.xml", "b.xml", "c.xml"], r"2 labels without a slide.*b\.xml.*c\.xml"),
        (["a.tif"], ["a.xml", "a_mask.xml"], r"labels for the same slide.*a\.xml.*a_mask\.xml"),
        (["a.tif", "A.tiff"], ["a.xml"], r"slides of the same name.*A\.tiff.*a\.tif"),
        (["a.tif"], [], "no pair.*1 .tif slides"),
        ([], [], "no pair.*0 .tif slides"),
        (["a.svs"], [], "no pair.*0 .tif slides"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, slides: list[str], labels: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_pairs(files(tmp_path / "s", *slides), files(tmp_path / "l", *labels), "tif", "xml")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_pairs(tmp_path / "nowhere", tmp_path, "tif", "xml")


def test_many_names_are_counted(tmp_path: Path) -> None:
    slides, labels = (
        files(tmp_path / "s", "a.tif"),
        files(tmp_path / "l", *(f"b{i:02}.xml" for i in range(25))),
    )
    with pytest.raises(DataError, match=r"25 labels.*b09\.xml and 15 more$"):
        find_pairs(slides, labels, "tif", "xml")


@given(
    tumour=st.integers(0, 20), normal=st.integers(0, 20), part=st.floats(0.01, 0.9), seed=st.integers(0, 99)
)
@settings(max_examples=150, deadline=None)
def test_split_is_whole_seeded_and_stratified(tumour: int, normal: int, part: float, seed: int) -> None:
    pairs = pairs_of(*(f"tumor_{i}" for i in range(tumour)))
    pairs += pairs_of(*(f"normal_{i}" for i in range(normal)), labelled=False)
    if len(pairs) < 2:
        with pytest.raises(DataError, match="cannot be divided"):
            split_pairs(pairs, part, seed)
        return
    train, val = split_pairs(pairs, part, seed)
    assert sorted(map(str, train + val)) == sorted(map(str, pairs))
    assert train
    assert val
    assert abs(len(val) - part * len(pairs)) <= 2
    for side in (train, val):
        assert tumour < 2 or any(pair.label for pair in side)
    assert split_pairs(pairs[::-1], part, seed)[1][::-1] == val  # as a list: no slide is lost or there twice


def test_split_depends_on_the_seed() -> None:
    pairs = pairs_of(*(f"tumor_{i:03}" for i in range(30)))
    assert len({tuple(split_pairs(pairs, 0.2, seed)[1]) for seed in range(5)}) > 1


def test_split_keeps_patients_together() -> None:
    pairs = pairs_of(*(f"patient_{p:03}_node_{n}" for p in range(10) for n in range(5)))
    for seed in range(5):
        train, val = split_pairs(pairs, 0.2, seed)
        assert (len(train), len(val)) == (40, 10)
        assert not {pair.name[:11] for pair in train} & {pair.name[:11] for pair in val}
    with pytest.raises(DataError, match="1 slides or patients"):
        split_pairs(pairs[:5], 0.2, 0)


def test_no_split_is_all_training() -> None:
    pairs = pairs_of("a", "b")
    assert split_pairs(pairs, 0, 0) == (pairs, [])
    for part in (1, -0.1, 1.5):
        with pytest.raises(ValueError, match="validation split"):
            split_pairs(pairs, part, 0)


def test_a_folder_that_cannot_be_listed_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file cannot be listed"):
        listed(tmp_path / "file")
