"""From options to slides: which are found, checked, left out and divided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

from samplers import SlidePair
from samplers.labels import mask
from samplers.labels.label import LabelMap
from samplers.pairs import checks
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import write_levels
from training.data import _find, prepare_slides, sampler_config, split_values
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks.single import Ranks


def prepared_with_classes(
    demo: Path, *words: str, resumed: Path | None = None
) -> tuple[list[SlidePair], list[SlidePair], LabelMap]:
    folders = ["--slide_path", str(demo / "slides"), "--label_path", str(demo / "masks")]
    options = parse_options([*folders, "--data_sampler", "surf", "--img_size", "256", *words])
    return prepare_slides(options, Ranks(), resumed)


def prepared(demo: Path, *words: str, resumed: Path | None = None) -> tuple[list[SlidePair], list[SlidePair]]:
    return prepared_with_classes(demo, *words, resumed=resumed)[:2]


def names(pairs: list[SlidePair]) -> set[str]:
    return {pair.name for pair in pairs}


def folder_of(demo: Path, kind: str, folder: Path, *numbers: int) -> Path:
    """Links to some of the demo's slides or masks."""
    folder.mkdir()
    for number in numbers:
        (file,) = (demo / kind).glob(f"*_{number:03d}*")
        (folder / file.name).symlink_to(file)
    return folder


def test_validation_slides_are_split_off_by_the_seed(demo):
    found = {
        tuple(names(prepared(demo, "--val_split", "0.34", "--seed", str(seed))[1])) for seed in range(12)
    }
    assert {len(val) for val in found} == {1}
    assert len(found) == 3
    assert len(prepared(demo, "--val_split", "0.67")[1]) == 2


def test_validation_slides_of_their_own_in_another_format(demo, tmp_path):
    slides = folder_of(demo, "slides", tmp_path / "s", 1, 2)
    masks = folder_of(demo, "masks", tmp_path / "l", 1, 2)
    val = ["--valid_slide_path", str(folder_of(demo, "slides", tmp_path / "vs", 3))]
    val += [
        "--valid_label_path",
        str(folder_of(demo, "xml", tmp_path / "vl", 3)),
        "--valid_label_format",
        "xml",
    ]
    train, found = prepared(demo, "--slide_path", str(slides), "--label_path", str(masks), *val)
    assert (names(train), names(found)) == ({"tumor_001", "tumor_002"}, {"tumor_003"})
    assert found[0].label.suffix == ".xml"


def touched(folder: Path, *files: str) -> str:
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    return str(folder)


def found(root: Path, *words: str) -> list[list[tuple[str, str | None]]]:
    """(slide, label) of both sides, of two folders with files of every format and a slide without a label."""
    files = [f"{stem}.{end}" for stem in "ab" for end in ("svs", "tif", "ndpi")]
    labels = [f"a.{end}" for end in ("xml", "png", "tif", "geojson")]
    folders = [f"--{side}{kind}_path={touched(root / (side + kind), *names)}" for side in ("", "valid_")
               for kind, names in (("slide", files), ("label", labels))]  # fmt: skip
    sides = _find(parse_options([*folders, *words]))
    return [[(pair.slide.name, pair.label and pair.label.name) for pair in pairs] for pairs in sides]


def test_each_side_has_files_of_its_formats(tmp_path):
    words = "--slide_format svs --label_format xml --valid_slide_format ndpi --valid_label_format png"
    assert found(tmp_path, *words.split()) == [[("a.svs", "a.xml")], [("a.ndpi", "a.png")]]


def test_unlabelled_slides_are_treated_alike_on_both_sides(tmp_path):
    for number, (word, more) in enumerate((("skip", []), ("normal", [("b.tif", None)]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert found(folder, "--unlabelled", word) == [[("a.tif", "a.tif"), *more]] * 2


def test_a_slide_on_both_sides_is_refused(demo):
    both = ["--valid_slide_path", str(demo / "slides"), "--valid_label_path", str(demo / "masks")]
    with pytest.raises(UserError, match="3 slides are in training and validation"):
        prepared(demo, *both)


def test_a_patient_on_both_sides_is_refused(demo, tmp_path):
    for side, node, number in (("train", 0, 1), ("val", 1, 2)):
        (tmp_path / side).mkdir()
        for kind, end in (("slides", ".tif"), ("masks", "_mask.tif")):
            (file,) = (demo / kind).glob(f"*_{number:03d}*")
            (tmp_path / side / f"patient_007_node_{node}{end}").symlink_to(file)
    words = [f"--{prefix}{kind}_path={tmp_path / side}" for prefix, side in (("", "train"), ("valid_", "val"))
             for kind in ("slide", "label")]  # fmt: skip
    with pytest.raises(UserError, match="1 patients are in training and validation: 007"):
        prepared(demo, *words)


def sides(demo: Path, root: Path, train: str, val: str) -> list[str]:
    """Two slides in folders of their own, under these names, and the options that take them."""
    for side, name, number in (("train", train, 1), ("val", val, 2)):
        (root / side).mkdir(parents=True)
        for kind, end in (("slides", ".tif"), ("masks", "_mask.tif")):
            (file,) = (demo / kind).glob(f"*_{number:03d}*")
            (root / side / f"{name}{end}").symlink_to(file)
    return [f"--{prefix}{kind}_path={root / side}" for prefix, side in (("", "train"), ("valid_", "val"))
            for kind in ("slide", "label")]  # fmt: skip


def test_a_patient_of_a_pattern_or_of_tcga_on_both_sides_is_refused(demo, tmp_path, capsys):
    words = sides(demo, tmp_path / "a", "P7-1", "P7-2")
    assert [len(side) for side in prepared(demo, *words)] == [1, 1]
    with pytest.raises(UserError, match="1 patients are in training and validation: P7"):
        prepared(demo, *words, "--patient_pattern", "^(.+)-")
    assert [len(side) for side in prepared(demo, *words, "--patient_pattern", "^([A-Z][0-9]-1)$")] == [1, 1]
    said = capsys.readouterr().err
    assert (
        "warning: 1 of 2 slides do not match --patient_pattern, so each is a patient of its own: P7-2" in said
    )
    words = sides(demo, tmp_path / "b", "TCGA-A2-A0CM-01Z-00-DX1.x", "TCGA-A2-A0CM-01Z-00-DX2.y")
    with pytest.raises(UserError, match="1 patients are in training and validation: TCGA-A2-A0CM"):
        prepared(demo, *words)


@pytest.mark.parametrize("val", ["tumor_center_na_x_256_0", "x"])
def test_patches_of_a_slide_on_both_sides_are_refused(val, demo, tmp_path):
    words = sides(demo, tmp_path, "tumor_center_na_x_0_0", val)
    with pytest.raises(UserError, match="1 slides have patches in training and in validation: x"):
        prepared(demo, *words)


def test_a_link_to_nothing_is_a_bad_slide_and_other_files_are_named(demo, tmp_path, capsys):
    slides = folder_of(demo, "slides", tmp_path / "s", 1, 2)
    (slides / "tumor_003.tif").symlink_to("nowhere/tumor_003.tif")
    (slides / "tumor_004.svs").touch()
    words = ["--slide_path", str(slides), "--val_split", "0.5"]
    with pytest.raises(
        UserError, match=r"1 of 3 slides cannot be used:\n.*is a link to nowhere/tumor_003\.tif"
    ):
        prepared(demo, *words)
    assert (
        "1 other files are left out (1 .svs; the slides' format is tif): tumor_004.svs"
        in capsys.readouterr().err
    )


def test_masks_without_small_levels_are_warned_of_with_the_command_that_makes_them(
    demo, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mask, "_MAX_COUNTED_PIXELS", 1000 * 1000)  # the slides have 1536²
    words = [f"--slide_path={folder_of(demo, 'slides', tmp_path / 's', 1, 2, 3)}"]
    masks = folder_of(demo, "masks", tmp_path / "l", 1, 2, 3)
    prepared(demo, *words, f"--label_path={masks}")
    assert "no small level" not in capsys.readouterr().err
    for path in sorted(masks.iterdir())[:2]:
        original = path.readlink()
        path.unlink()
        write_levels(path, [tifffile.imread(original)])
    prepared(demo, *words, f"--label_path={masks}")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no small level" in line]
    assert "2 masks have" in warning
    slow = sorted(masks.iterdir())[0]
    command = warning[warning.index("import pyvips") :].rstrip('"')
    exec(command.replace("NEW_MASK", str(tmp_path / "new.tif")).replace("'MASK'", repr(str(slow))))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "new.tif"), tifffile.imread(slow))
    slow.unlink()
    (tmp_path / "new.tif").rename(slow)
    prepared(demo, *words, f"--label_path={masks}")
    assert "1 masks have" in capsys.readouterr().err


def test_a_run_does_not_check_again_what_another_has_checked(demo, tmp_path, monkeypatch, caplog):
    folders = [
        f"--slide_path={tmp_path / 's'}",
        f"--label_path={folder_of(demo, 'xml', tmp_path / 'l', 1, 2, 3)}",
    ]
    slides = folder_of(demo, "slides", tmp_path / "s", 1, 2, 3)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))
    look = Mock(side_effect=checks.open_whole)
    monkeypatch.setattr(checks, "open_whole", look)
    (outlines,) = (tmp_path / "l").glob("*_001.xml")
    content = outlines.read_text()
    outlines.unlink()
    dot = '<Annotation Name="dot" Type="Dot" PartOfGroup="_0"><Coordinates/></Annotation></Annotations>'
    outlines.write_text(content.replace("</Annotations>", dot))

    def found(*words: str) -> tuple[int, dict[SlidePair, checks.LabelFacts], list[str]]:
        caplog.clear()
        before = look.call_count
        options = parse_options([*folders, "--label_format=xml", "--img_size=256", *words])
        facts = prepare_slides(options, Ranks()).facts
        return look.call_count - before, facts, caplog.messages

    checked, facts, said = found()
    assert checked == 3
    assert ["is a Dot and has no area" in message for message in said] == [True]
    assert found() == (0, facts, said)
    assert found("--img_size=128")[0] == 3
    changed = slides / "tumor_002.tif"
    original = changed.readlink()
    changed.unlink()
    changed.write_bytes(original.read_bytes())
    assert found("--seed=1")[0] == 1


def test_an_error_that_nobody_expected_is_the_reason_of_its_slide(demo, tmp_path, monkeypatch):
    real = checks.decode_samples

    def broken(slide: Slide) -> None:
        if "tumor_002" in slide.path.name:
            raise ZeroDivisionError("of the test")
        real(slide)

    monkeypatch.setattr(checks, "decode_samples", broken)
    words = ["--log_dir", str(tmp_path / "run")]
    with pytest.raises(
        UserError, match=r"1 of 3 slides cannot.*\n.*_002.tif: failed: ZeroDivisionError: of the test"
    ):
        prepared(demo, *words)
    kept = (tmp_path / "run" / "failures.log").read_text()
    assert "Traceback" in kept
    assert "tumor_002.tif" in kept
    train, val = prepared(demo, *words, "--skip_bad_slides", "--val_split", "0.5")
    assert names([*train, *val]) == {"tumor_001", "tumor_003"}
    for error in (KeyboardInterrupt, MemoryError):
        monkeypatch.setattr(checks, "decode_samples", raising(error))
        with pytest.raises(error):
            prepared(demo)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def test_bad_slides_are_an_error_or_left_out(demo, tmp_path, capsys):
    slides = folder_of(demo, "slides", tmp_path / "s", 1, 2)
    (tmp_path / "s" / "tumor_003.tif").write_bytes(b"II*\0 nothing")
    words = ["--slide_path", str(slides), "--val_split", "0.5"]
    with pytest.raises(UserError, match=r"1 of 3 slides cannot be used:\n.*tumor_003\.tif"):
        prepared(demo, *words)
    train, val = prepared(demo, *words, "--skip_bad_slides")
    assert names([*train, *val]) == {"tumor_001", "tumor_002"}
    assert "left out, 1 of 3 slides" in capsys.readouterr().err


def test_unlabelled_slides_as_asked(demo, tmp_path):
    masks = folder_of(demo, "masks", tmp_path / "l", 1, 2)
    words = ["--label_path", str(masks), "--val_split", "0.5"]
    assert [len(side) for side in prepared(demo, *words)] == [1, 1]
    assert (
        sum(len(side) for side in prepared(demo, *words, "--unlabelled", "normal")) == 2
    )  # it is called tumor_003
    slides = folder_of(demo, "slides", tmp_path / "s", 1, 2, 3)
    (slides / "tumor_003.tif").rename(slides / "case_003.tif")
    renamed = ["--slide_path", str(slides), *words, "--unlabelled", "normal"]
    assert sum(len(side) for side in prepared(demo, *renamed)) == 3
    with pytest.raises(UserError, match="1 slides without a label"):
        prepared(demo, *words, "--unlabelled", "error")


def test_the_samplers_get_what_was_asked_for(demo):
    words = (
        "--data_sampler radboud --img_size 256 --batch_size 3 --batch_tumor_ratio 0.5 --bb_downsample 4 "
        "--resolution 0.5 --label_map Tumor:2 --seed 7 --stain_jitter strong --annotation_weighting area "
        "--max_bad_slides 3 --validation_patches 9"
    )
    options = parse_options(["--slide_path", str(demo / "slides"), *words.split()])
    config = sampler_config(options, LabelMap.parse(options.label_map))
    assert (config.sampler, config.img_size, config.batch_size, config.batch_tumor_ratio) == (
        "radboud",
        256,
        3,
        0.5,
    )
    assert (config.bb_downsample, config.resolution, config.seed, config.stain_jitter) == (
        4,
        0.5,
        7,
        "strong",
    )
    assert (config.annotation_weighting, config.max_bad_slides, config.max_validation_patches) == (
        "area",
        3,
        9,
    )
    assert (config.label_map.num_classes, config.augment) == (3, True)
    words = ["--slide_path", str(demo / "slides"), "--no-augment", "--data_sampler", "surf"]
    other = sampler_config(parse_options(words), LabelMap())
    assert (other.sampler, other.augment) == ("surf", False)


def test_the_check_of_the_slides_knows_spacing_and_classes(demo):
    with pytest.raises(UserError, match="smaller than a patch of 2048"):
        prepared(demo, "--resolution", "2")
    words = ["--label_map", "255:2", "--val_split", "0.34"]
    assert prepared_with_classes(demo, *words)[2].num_classes == 3


def test_a_run_that_goes_on_keeps_its_split(demo, tmp_path):
    splits = {seed: prepared(demo, "--val_split", "0.34", "--seed", str(seed)) for seed in range(12)}
    other = next(seed for seed in splits if names(splits[seed][1]) != names(splits[0][1]))
    (tmp_path / "splits.json").write_text(json.dumps(split_values(*splits[0])))
    train, val = prepared(demo, "--val_split", "0.34", "--seed", str(other), resumed=tmp_path)
    assert (names(train), names(val)) == tuple(names(side) for side in splits[0])
