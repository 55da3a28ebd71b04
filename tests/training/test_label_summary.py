"""What is said of the labels before training: areas, classes that do not occur, groups that the map leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samplers import SlidePair
from samplers.labels.label_map import IGNORED, LabelMap
from samplers.labels.mask import MaskLabel
from samplers.pairs.checks import LabelFacts, examine_pair
from samplers.slides.slide import Slide
from tests.helpers.lesion_slides import HEIGHT, SPACING, WIDTH, asap_xml, make_slide
from tests.helpers.tiny_slides import write_levels
from training.data import prepare_slides, sampler_config
from training.label_summary import LABELS_FILE, LabelSummary, RunLabels, tumour_only, unseen_centers
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks.world import World

BLUR, LESION = (100, 100, 300, 200), (250, 150, 450, 250)  # they overlap by 50 × 50 pixels
PIXEL = (SPACING / 1000) ** 2  # mm²
MAP = LabelMap.parse(["Tumor:1", "blur:ignore", "1:1", "255:ignore"])


def facts_of(pair: SlidePair, label_map: LabelMap) -> LabelFacts:
    reasons, facts, _ = examine_pair(pair.slide, pair.label, label_map, 64)
    assert not reasons
    return facts


def two_groups(folder: Path, name: str, *more: str) -> SlidePair:
    """A slide with an outline of Tumor and one of blur over it."""
    pair = make_slide(folder, name, [LESION], label="xml")
    assert pair.label is not None
    parts = [asap_xml([LESION]), asap_xml([BLUR], "blur"), *(asap_xml([LESION], group) for group in more)]
    inner = "".join(part.split("<Annotations>")[1].split("</Annotations>")[0] for part in parts)
    pair.label.write_text(f"<ASAP_Annotations><Annotations>{inner}</Annotations></ASAP_Annotations>")
    return pair


def test_areas_of_outlines_are_what_is_seen_of_them(tmp_path: Path) -> None:
    pair = two_groups(tmp_path, "tumor_1", "stroma", "Tumor")
    facts = facts_of(pair, MAP)
    assert facts.groups == {"Tumor": 2, "blur": 1, "stroma": 1}
    assert facts.areas is not None
    tumour, blur = 200 * 100 - 50 * 50, 200 * 100  # the two outlines of the lesion are one area
    expected = {1: tumour, IGNORED: blur, 0: WIDTH * HEIGHT - tumour - blur}
    assert facts.areas == pytest.approx({value: area * PIXEL for value, area in expected.items()})
    unannotated = facts_of(pair, replace(MAP, unannotated=IGNORED)).areas
    assert unannotated == pytest.approx({1: tumour * PIXEL, IGNORED: (WIDTH * HEIGHT - tumour) * PIXEL})


def test_areas_of_a_mask_and_of_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_slide(tmp_path, "tumor_1", [LESION], label=None)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[150:250, 250:450] = 1
    mask[:100] = 255
    label = write_levels(tmp_path / "tumor_1_mask.tif", [mask], SPACING)
    expected = {1: 200 * 100 * PIXEL, IGNORED: 100 * WIDTH * PIXEL}
    expected[0] = WIDTH * HEIGHT * PIXEL - sum(expected.values())
    assert facts_of(SlidePair(pair.slide, label), MAP).areas == pytest.approx(expected)
    assert facts_of(pair, MAP) == LabelFacts({0: pytest.approx(WIDTH * HEIGHT * PIXEL)}, {})
    with Slide(pair.slide) as slide:
        large = MaskLabel(label, slide, MAP)
        monkeypatch.setattr("samplers.labels.mask._MAX_COUNTED_PIXELS", 1000)
        assert large.areas() is None
        large.close()


def test_a_summary_names_what_is_missing_and_what_is_left_out() -> None:
    pairs = [SlidePair(Path(f"{name}.tif"), Path("x") if name != "c" else None) for name in "abc"]
    facts = [
        LabelFacts({0: 10.0, 1: 2.0, IGNORED: 1.0}, {"Tumor": 3, "fat": 2}),
        LabelFacts({0: 5.0, 1: 0.5}, {"fat": 1}),
        LabelFacts({0: 20.0}, {}),
    ]
    label_map = LabelMap.parse(["Tumor:1", "_0:1", "stroma:2"])
    names = [["other"], ["Tumor", "_0"], ["stroma"]]
    summary = LabelSummary.of(pairs, dict(zip(pairs, facts)))
    assert summary.text(names) == "2 of 3 slides have one: 35 mm² other, 2.5 mm² Tumor, 1 mm² ignored"
    assert summary.warnings(label_map, names) == [
        "annotations of groups that --label_map leaves out, with their number: fat (3)",
        "no training slide shows these classes, so they are not learnt: stroma",
    ]
    unmeasured = LabelSummary.of(pairs, dict(zip(pairs, [*facts[:2], LabelFacts(None, {})])))
    assert "1 not measured" in unmeasured.text(names)
    assert len(unmeasured.warnings(label_map, names)) == 1  # the class may be there
    assert "nothing is drawn from 1 slide without a label" in tumour_only(summary)


def test_the_labels_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        two_groups(tmp_path, f"tumor_{number}")
    words = ["--slide_path", str(tmp_path), "--label_path", str(tmp_path), "--label_format", "xml"]
    words += [
        "--label_map",
        "Tumor:1",
        "necrosis:2",
        "--img_size",
        "128",
        "--data_sampler",
        "surf",
        "--val_split",
        "0.5",
    ]
    options = parse_options([*words, "--class_weights", "balanced", "--batch_tumor_ratio", "0.5"])
    world = World()
    slides = prepare_slides(options, world)
    config = sampler_config(options, slides.label_map)
    labels = RunLabels.of(options, config, *slides[:2], slides.facts, world, None)
    said = capsys.readouterr().err
    assert "blur (1)" in said
    assert "they are not learnt: necrosis" in said
    assert "batch_tumor_ratio" not in said
    assert labels.to_json()["train"]["mm2"][1] == pytest.approx(200 * 100 * PIXEL)
    assert labels.weights[1] > labels.weights[0] > 0

    # A run that goes on keeps its weights, but not if it is forced to go on with other ones.
    (tmp_path / LABELS_FILE).write_text(json.dumps({**labels.to_json(), "weights": [3, 4, 5]}))
    again = RunLabels.of(options, config, *slides[:2], slides.facts, world, tmp_path)
    assert again.weights == [3, 4, 5]
    capsys.readouterr()
    other = parse_options([*words, "--class_weights", "Tumor:7"])  # its --batch_tumor_ratio is 1
    assert RunLabels.of(other, config, *slides[:2], slides.facts, world, tmp_path).weights == [1, 7, 1]
    assert (
        "with --batch_tumor_ratio 1 (the default) each training patch meets tumour" in capsys.readouterr().err
    )
    (tmp_path / LABELS_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"labels\.json cannot be read"):
        RunLabels.of(options, config, *slides[:2], slides.facts, world, tmp_path)


def test_slides_of_centres_that_training_has_none_of_are_said():
    def of(*names: str) -> list[SlidePair]:
        return [SlidePair(Path(name), None) for name in names]

    assert (
        "than training (1)" in unseen_centers(of("center_0/a.tif"), of("center_0/b.tif", "center_1/c.tif"))[0]
    )
    assert (
        "than training (4)" in unseen_centers(of("patient_004_node_4.tif"), of("patient_099_node_0.tif"))[0]
    )
    assert not unseen_centers(of("center_0/a.tif", "center_1/c.tif"), of("center_1/d.tif"))
    assert not unseen_centers(
        of("tumor_001.tif"), of("center_1/d.tif")
    )  # where its slides are from is not known
    assert not unseen_centers(of("tumor_001.tif"), of("normal_001.tif"))
