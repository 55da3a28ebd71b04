"""The challenges' folder layouts, centres, and how they divide slides for train.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from samplers.pairs.camelyon import BY_STAGES, camelyon16, camelyon17, center_of, is_camelyon17, of_centers
from samplers.pairs.pairing import SlidePair
from samplers.slides.errors import DataError
from training.data import _find
from training.option_checks import parse_options
from utils.cli import UserError

OLD_16 = {
    "TrainingData/Train_Tumor": ["tumor_001.tif", "tumor_002.tif"],
    "TrainingData/Train_Normal": ["normal_001.tif"],
    "TrainingData/Ground_Truth/XML": ["tumor_001.xml", "tumor_002.xml"],
    "TrainingData/Ground_Truth/Mask": ["tumor_001_Mask.tif", "tumor_002_Mask.tif"],
    "Testset/Images": ["Test_001.tif", "Test_002.tif"],
    "Testset/Ground_Truth/Annotations": ["Test_001.xml"],
    "Testset/Ground_Truth/Masks": ["Test_001_Mask.tif"],
}
NEW_16 = {
    "training/tumor": ["tumor_001.tif", "tumor_002.tif"],
    "training/normal": ["normal_001.tif"],
    "training/lesion_annotations": ["tumor_001.xml", "tumor_002.xml", "tumor_003.xml"],
    "testing/images": ["test_001.tif", "test_002.tif"],
    "testing/lesion_annotations": ["test_001.xml"],
}


def make(root: Path, layout: dict[str, list[str]]) -> Path:
    for folder, names in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    return root


def seventeen(root: Path, slides: str, labels: str = "training/lesion_annotations") -> Path:
    """Five centres with two patients of two nodes; node 1 of each is annotated."""
    layout: dict[str, list[str]] = {labels: []}
    for patient in (0, 7, 20, 39, 40, 41, 60, 61, 80, 99):
        folder = slides.format(center=patient // 20, patient=f"patient_{patient:03d}")
        stems = [f"patient_{patient:03d}_node_{node}" for node in (0, 1)]
        layout.setdefault(folder, []).extend(f"{stem}.tif" for stem in stems)
        layout[labels].append(f"{stems[1]}.xml")
    return make(root, layout)


def names(pairs: list[SlidePair]) -> dict[str, str | None]:
    return {pair.name: pair.label and pair.label.name for pair in pairs}


@pytest.mark.parametrize("label_format", ["xml", "tif"])
def test_camelyon16_as_it_was_published_first(label_format, tmp_path):
    train, test = camelyon16(make(tmp_path, OLD_16), "tif", label_format, "skip")
    end = ".xml" if label_format == "xml" else "_Mask.tif"
    assert names(train[0]) == {
        "normal_001": None,
        "tumor_001": "tumor_001" + end,
        "tumor_002": "tumor_002" + end,
    }
    assert names(test[0]) == {"Test_001": "Test_001" + end, "Test_002": None}


def test_camelyon16_as_it_is_now_with_annotations_of_slides_that_were_not_downloaded(tmp_path):
    train, test = camelyon16(make(tmp_path, NEW_16), "tif", "xml", "skip")
    assert set(names(train[0])) == {"normal_001", "tumor_001", "tumor_002"}
    assert "1 labels without a slide" in train[1][0]
    assert names(test[0]) == {"test_001": "test_001.xml", "test_002": None}


def test_test_slides_without_annotations_do_not_keep_from_training(tmp_path):
    layout = {folder: names for folder, names in NEW_16.items() if folder != "testing/lesion_annotations"}
    train, test = camelyon16(make(tmp_path, layout), "tif", "xml", "skip")
    assert len(train[0]) == 3
    assert test[0] == []
    assert "left out, 2 test slides" in test[1][0]


def test_what_is_missing_is_named_with_the_folders(tmp_path):
    with pytest.raises(DataError, match="Train_Tumor"):
        camelyon16(tmp_path, "tif", "xml", "skip")
    with pytest.raises(DataError, match=r"label_format tif.*training/masks"):
        camelyon16(make(tmp_path, NEW_16), "tif", "tif", "skip")
    with pytest.raises(DataError, match="center_"):
        camelyon17(tmp_path, "tif", "xml", "skip")


@pytest.mark.parametrize(
    ("slides", "labels"),
    [
        ("training/center_{center}", "training/lesion_annotations"),
        ("training/center_{center}/{patient}", "annotations"),
        ("training/patients", "lesion_annotations"),
        ("training/patients/{patient}", "training/annotations"),
    ],
)
def test_camelyon17_layouts(slides, labels, tmp_path):
    pairs, warnings = camelyon17(seventeen(tmp_path, slides, labels), "tif", "xml", "skip")
    assert len(pairs) == 10
    assert all(pair.label.stem == pair.name for pair in pairs)
    assert "10 slides without a label" in warnings[0]
    assert [center_of(pair.slide) for pair in pairs] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_slides_without_annotation_are_tumour_free_only_if_the_stages_do_not_say_otherwise(tmp_path):
    root = seventeen(tmp_path, "training/patients")
    assert "no stage_labels.csv" in camelyon17(root, "tif", "xml", "normal")[1][0]
    (root / "stage_labels.csv").write_text(
        "patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\npatient_007_node_0.tif,micro\n"
    )
    pairs, warnings = camelyon17(root, "tif", "xml", "normal")
    assert [pair.name for pair in pairs if pair.label is None] == ["patient_000_node_0"]
    assert "9 slides without annotation" in warnings[0]


@pytest.mark.parametrize(
    ("path", "center"),
    [
        ("/data/center_3/patient_001_node_0.tif", 3),
        ("/data/center_1/training/center_2/x.tif", 2),
        ("/data/patient_041_node_2.tif", 2),
        ("/data/tumor_center_4_patient_001_node_0_512_0.png", 4),
        ("/data/tumor_center_na_tumor_001_512_0.png", None),
        ("/data/tumor_001.tif", None),
    ],
)
def test_center_of(path, center):
    assert center_of(Path(path)) == center


def test_unknown_centre_is_an_error_that_names_the_slide():
    with pytest.raises(DataError, match=r"tumor_001\.tif"):
        of_centers([SlidePair(Path("/data/tumor_001.tif"), None)], [1])


def found(root: Path, *words: str) -> tuple[set[int | None], set[int | None]]:
    options = parse_options(["--dataset", "17", "--data_root", str(root), "--label_format", "xml", *words])
    train, val = _find(options)
    return {center_of(pair.slide) for pair in train}, {center_of(pair.slide) for pair in val}


@pytest.mark.parametrize(
    ("words", "train", "val"),
    [
        ([], {0, 1, 2, 3, 4}, set()),  # --val_split divides them
        (["--train_centers", "0", "1", "--val_centers", "2"], {0, 1}, {2}),
        (["--val_centers", "4"], {0, 1, 2, 3}, {4}),
        (["--train_centers", "4", "3"], {3, 4}, {0, 1, 2}),
        (["--train_centers", "1", "2", "--val_centers", "2", "1"], {1, 2}, set()),
    ],
)
def test_centres_divide_the_slides(words, train, val, tmp_path):
    assert found(seventeen(tmp_path, "training/center_{center}"), *words) == (train, val)


@pytest.mark.parametrize(("dataset", "folder"), [("16", "training/tumor"), ("17", "training/patients")])
def test_slides_of_a_dataset_are_of_the_format_asked_for(dataset, folder, tmp_path):
    layout = {folder: ["a.tif", "a.svs"], "training/lesion_annotations": ["a.xml"]}
    words = ["--dataset", dataset, "--data_root", str(make(tmp_path, layout)), "--label_format", "xml"]
    (pair,), _ = _find(parse_options([*words, "--slide_format", "svs"]))
    assert (pair.slide.name, pair.label.name) == ("a.svs", "a.xml")


def test_centres_that_leave_nothing_are_an_error(tmp_path):
    root = seventeen(tmp_path, "training/center_{center}")
    with pytest.raises(UserError, match="train_centers"):
        found(root, "--train_centers", "9", "--val_centers", "1")
    with pytest.raises(UserError, match="val_centers"):
        found(root, "--train_centers", "1", "--val_centers", "9")


def test_test_slides_of_camelyon16_are_for_validation_and_explicit_paths_win(tmp_path, monkeypatch):
    root, other = make(tmp_path / "16", NEW_16), make(tmp_path, {"x": ["a.tif", "a.xml"]}) / "x"
    monkeypatch.setenv("CAMELYON_ROOT", str(root))
    words = ["--dataset", "16", "--label_format", "xml"]
    train, val = _find(parse_options(words))
    assert (len(train), set(names(val))) == (3, {"test_001", "test_002"})
    mine = ["--valid_slide_path", str(other), "--valid_label_path", str(other), "--valid_label_format", "xml"]
    train, val = _find(parse_options([*words, *mine]))
    assert (len(train), set(names(val))) == (3, {"a"})
    with pytest.raises(SystemExit):  # the dataset's slides would be left out without a word
        parse_options([*words, "--slide_path", str(other), "--label_path", str(other)])


BUCKET_16 = {
    "images": [
        f"{name}.tif" for name in ("normal_001", "tumor_001", "tumor_002", "test_001", "test_002", "other")
    ]
    + ["x.svs"],
    "annotations": ["tumor_001.xml", "tumor_002.xml", "test_001.xml", "test_009.xml"],
    "masks": ["tumor_001_mask.tif", "tumor_002_mask.tif", "test_001_mask.tif"],
}


@pytest.mark.parametrize("label_format", ["xml", "tif"])
@pytest.mark.parametrize("above", ["", "CAMELYON16"])
def test_the_buckets_layout_of_camelyon16(label_format, above, tmp_path):
    make(tmp_path / above, BUCKET_16)
    train, test = camelyon16(tmp_path, "tif", label_format, "skip")
    end = ".xml" if label_format == "xml" else "_mask.tif"
    labels = {"normal_001": None, **{name: name + end for name in ("tumor_001", "tumor_002")}}
    assert names(train[0]) == labels
    assert names(test[0]) == {"test_001": "test_001" + end, "test_002": None}
    assert (
        "2 other files are left out (1 .svs, 1 .tif; the slides' format is tif): other.tif, x.svs"
        in train[1][0]
    )
    assert not any("test_0" in line for line in train[1])


def test_the_bucket_without_annotations_of_the_test_part(tmp_path):
    layout = {**BUCKET_16, "annotations": ["tumor_001.xml"]}
    train, test = camelyon16(make(tmp_path, layout), "tif", "xml", "normal")
    assert names(train[0]) == {
        "normal_001": None,
        "tumor_001": "tumor_001.xml",
    }  # tumor_002 is not tumour-free
    assert test[0] == []
    assert "left out, 2 test slides: no test labels" in test[1][0]


@pytest.mark.parametrize("above", ["", "CAMELYON17"])
def test_the_buckets_layout_of_camelyon17(above, tmp_path):
    layout = {
        "images": [
            f"patient_{patient:03}_node_{node}.tif" for patient in (0, 4, 25, 100, 199) for node in (0, 4)
        ],
        "annotations": ["patient_004_node_4.xml", "patient_025_node_0.xml"],
        "masks": ["patient_004_node_4_mask.tif"],
    }
    make(tmp_path / above, layout)
    assert is_camelyon17(tmp_path)
    pairs, warnings = camelyon17(tmp_path, "tif", "xml", "skip")
    assert names(pairs) == {name[:-4]: name for name in layout["annotations"]}
    assert "4 slides of the test patients 100 to 199" in warnings[0]
    assert warnings[-1].startswith("CAMELYON17: 2 of 6 slides have outlines")
    assert "isolated tumour cells are not annotated exhaustively" in warnings[-1]
    assert names(camelyon17(tmp_path, "tif", "tif", "skip")[0]) == {"patient_004_node_4": layout["masks"][0]}
    free = camelyon17(tmp_path, "tif", "xml", BY_STAGES)
    assert names(free[0]) == names(pairs)  # nothing says that the others are
    stages = "".join(f"{name},negative\n" for name in ("patient_000_node_0.tif", "patient_199_node_0.tif"))
    (tmp_path / above / "stages.csv").write_text("patient,stage\n" + stages)
    free = camelyon17(tmp_path, "tif", "xml", BY_STAGES)
    assert set(names(free[0])) == {*names(pairs), "patient_000_node_0"}


def test_a_test_slide_that_the_reference_calls_tumor_is_not_tumour_free(tmp_path):
    root = make(tmp_path, {**BUCKET_16, "evaluation": []})
    for text, free in (
        ("test_001,Tumor\ntest_002,Normal\n", True),
        ("test_002.tif,Tumor,IDC,Macro\n", False),
    ):
        (root / "evaluation" / "reference.csv").write_text(text)
        pairs, warnings = camelyon16(root, "tif", "xml", "skip")[1]
        assert ("test_002" in names(pairs), len(pairs)) == (free, 1 + free)
        assert any("1 slides without a label that" in line for line in warnings) != free


def test_a_label_of_no_known_slide_is_an_error(tmp_path):
    layout = {
        **BUCKET_16,
        "annotations": ["tumor_001.xml", "tumor_002.xml", "test_001.xml", "test_002 lesion.xml"],
    }
    with pytest.raises(DataError, match=r"test_002 lesion\.xml; 1 slides without a label: .*test_002\.tif"):
        camelyon16(make(tmp_path, layout), "tif", "xml", "skip")


def test_slides_of_another_format_and_deep_subfolders_are_named(tmp_path):
    layout = {
        **NEW_16,
        "training/tumor": ["tumor_001.tif", "tumor_003.svs"],
        "training/normal/a/b": ["normal_002.tif"],
    }
    train, _ = camelyon16(make(tmp_path, layout), "tif", "xml", "skip")
    assert any("1 .svs" in line and "tumor_003.svs" in line for line in train[1])
    assert any("not searched" in line and line.endswith("normal/a/b") for line in train[1])
