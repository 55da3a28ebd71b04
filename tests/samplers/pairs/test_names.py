"""Names: what belongs to one slide, and what to one patient."""

from __future__ import annotations

import unicodedata

import pytest

from samplers.pairs.names import (
    is_challenge_name,
    is_decorated,
    is_tumour,
    patient_of,
    patient_pattern,
    plain_key,
    slide_key,
)


@pytest.mark.parametrize(
    "name",
    [
        *("Case 1", "case 1", "CASE 1_Mask", "mask_case 1", "case 1_masks", "case 1-mask", "case 1.mask"),
        *("case 1_annotation", "case 1_annotations", "case 1-Labels", "case 1.label", "case 1_prediction"),
        *(
            "case 1.svs",
            "case 1.ome",
            "case 1.ome.tif",
            "case 1.svs_annotations",
            "case 1_mask.ndpi",
            "mask_case 1.scn",
        ),
    ],
)
def test_names_of_one_slide(name: str) -> None:
    assert slide_key(name) == "case 1"


@pytest.mark.parametrize(
    "name", ["case_1", "case 10", "case 1_lesions", "case 1 mask", "unmask_case 1", "case 1.v2"]
)
def test_nothing_is_guessed(name: str) -> None:
    assert slide_key(name) != "case 1"


@pytest.mark.parametrize("name", ["Präparat_1", "Ångström", "ΌΨΗ", "한글", "İstanbul"])
def test_unicode_forms_and_case_are_one(name: str) -> None:
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    assert len(forms) == 2
    assert len({plain_key(form) for form in forms}) == 1
    assert {slide_key(f"{form}_mask") for form in forms} == {plain_key(name)}


def test_marks_in_another_order_are_the_same_name() -> None:
    assert plain_key("Α\u0345\u0301") == plain_key("Α\u0301\u0345")


def test_a_name_is_never_empty() -> None:
    for name in ("mask_", "_mask", ".svs", "_labels", "_prediction"):
        assert slide_key(name)


def test_labels_are_told_from_slides() -> None:
    assert [is_decorated(name) for name in ("x", "x.svs", "x_mask", "MASK_x", "x-labels", "x_1")] == [
        *(False, False, True, True, True, False)
    ]


def test_names_of_the_challenges() -> None:
    for name in ("tumor_001", "test_129", "normal_001", "patient_004_node_4"):
        assert is_challenge_name(name)
    for name in ("tumor_001_lesions", "test_1a", "patient_004_node_4_he", "case_1"):
        assert not is_challenge_name(name)
    assert [
        is_tumour(name) for name in ("tumor_001", "tumour_1", "tumor_center_0_normal_001_0_0", "normal_1")
    ] == [*(True, True, False, False)]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("patient_017_node_4", "017"),
        ("TCGA-A2-A0CM-01Z-00-DX1.AC4901DE-4B6D-4185-BB9F-156033839828", "TCGA-A2-A0CM"),
        ("tcga-a2-a0cm-01a-01-bs1", "TCGA-A2-A0CM"),
        ("tumor_center_na_TCGA-A2-A0CM-01Z-00-DX1_512_0", "TCGA-A2-A0CM"),
        ("TCGA-A2-A0CMX", None),
        ("tumor_001", None),
    ],
)
def test_patients(name: str, patient: str | None) -> None:
    assert patient_of(name) == patient


def test_patients_of_a_pattern_of_ones_own() -> None:
    pattern = patient_pattern(r"^(\w+?)-")
    assert patient_of("P7-a", pattern) == "P7"
    assert (
        patient_of("tumor_center_na_P7-a_512_0", pattern) == "P7"
    )  # the name of the slide, not of its patch
    assert patient_of("patient_017_node_4", pattern) is None  # nothing but the pattern counts
    assert patient_of("x", patient_pattern("(a)?x")) is None  # the group took no part


@pytest.mark.parametrize(
    ("text", "said"), [("(", "no regular expression"), (r"P\d+", "has no group"), ("(?:a)", "has no group")]
)
def test_patterns_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        patient_pattern(text)
