"""Which label belongs to which slide: by name alone, and what does not fit is named."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from samplers.pairs.pairing import SlidePair, find_pairs, pair_files
from samplers.slides.errors import DataError


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def named(pairs: list[SlidePair]) -> dict[str, str | None]:
    return {pair.slide.name: pair.label and pair.label.name for pair in pairs}


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
    (warning,) = warnings
    assert "1 other files are left out (1 .svs; the slides' format is tif): x.svs" in warning


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


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=f"{tmp_path} cannot be listed: .*Permission denied"):
        find_pairs(tmp_path, None, "tif", "xml")


def test_many_names_are_counted(tmp_path: Path) -> None:
    slides, labels = (
        files(tmp_path / "s", "a.tif"),
        files(tmp_path / "l", *(f"b{i:02}.xml" for i in range(25))),
    )
    with pytest.raises(
        DataError, match=r"25 labels.*b09\.xml and 15 more; 1 slides without a label: .*a\.tif$"
    ):
        find_pairs(slides, labels, "tif", "xml")


def test_unicode_endings_of_pictures_and_words_of_other_tools(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Präparat_1") for form in ("NFC", "NFD"))
    slides = files(
        tmp_path / "s", f"{composed}.tif", "c.tif", "d.tif", "e.ome.tif", "f.svs.tif", "g_labels.tif"
    )
    names = (f"{apart}.xml", "c.svs.xml", "d_annotations.xml", "e.xml", "f.xml", "g_labels.xml")
    pairs, warnings = find_pairs(slides, files(tmp_path / "l", *names), "tif", "xml")
    assert warnings == []
    assert [(pair.name[0], pair.label and pair.label.name) for pair in pairs] == [
        *(("c", "c.svs.xml"), ("d", "d_annotations.xml"), ("e", "e.xml"), ("f", "f.xml")),
        *(("g", "g_labels.xml"), ("P", f"{apart}.xml")),
    ]


def test_a_label_without_a_slide_is_named_together_with_the_slides_that_lack_one(tmp_path: Path) -> None:
    slides = files(tmp_path / "s", "case_1.tif", "case_2.tif")
    labels = files(tmp_path / "l", "case_1_lesions.xml", "case_2.xml")
    for unlabelled in ("skip", "normal", "error"):
        with pytest.raises(
            DataError, match=r"1 labels .*case_1_lesions\.xml; 1 slides without a label: .*case_1\.tif"
        ):
            find_pairs(slides, labels, "tif", "xml", unlabelled)


@pytest.mark.parametrize("name", ["b.geojson", "b_mask.tif", "b.svs_annotations.json", "B_labels.png"])
def test_a_slide_whose_label_has_another_format_is_not_tumour_free(tmp_path: Path, name: str) -> None:
    slides, labels = files(tmp_path / "s", "a.tif", "b.tif"), files(tmp_path / "l", "a.xml", name)
    pairs, (left_out, other) = (
        find_pairs(slides, labels, "tif", "xml") if name[-3:] in ("tif", "png") else (0, (0, 0))
    )
    if pairs:
        assert "1 slides without a label" in left_out
        assert f"1 other files are left out (1 .{name[-3:]}; the labels' format is xml): {name}" in other
    with pytest.raises(
        DataError, match=f"1 slides .*would be taken as tumour-free, but have .*b.tif with {name}"
    ):
        find_pairs(slides, labels, "tif", "xml", "normal")


def test_a_slide_called_tumor_is_never_tumour_free(tmp_path: Path) -> None:
    slides = files(tmp_path / "s", "tumor_001.tif", "a.tif", "b.tif")
    pairs, (warning,) = find_pairs(slides, files(tmp_path / "l", "a.xml"), "tif", "xml", "normal")
    assert named(pairs) == {"a.tif": "a.xml", "b.tif": None}
    assert "left out, 1 slides with tumour but without a label" in warning


def test_labels_of_slides_that_were_not_downloaded_are_allowed_only_under_the_challenges_names(
    tmp_path: Path,
) -> None:
    slides = [tmp_path / name for name in ("test_001.tif", "test_002.tif")]
    labels = [tmp_path / name for name in ("test_001.xml", "test_003.xml")]
    pairs, (warning,) = pair_files(slides, labels, "normal", orphans_allowed=True)
    assert named(pairs) == {"test_001.tif": "test_001.xml", "test_002.tif": None}
    assert "1 labels without a slide" in warning
    with pytest.raises(DataError, match=r"test_002_lesion\.xml; 1 slides without a label: .*test_002\.tif"):
        pair_files(slides, [labels[0], tmp_path / "test_002_lesion.xml"], "normal", orphans_allowed=True)
    with pytest.raises(DataError, match=r"test_003\.xml; 1 slides without a label: .*case_3\.tif"):
        pair_files([slides[0], tmp_path / "case_3.tif"], labels, "normal", orphans_allowed=True)
