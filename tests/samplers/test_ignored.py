"""Ignored regions and partly annotated slides: what is not known decides nothing, whatever its label was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import SAMPLERS, PatchInfo, SamplerConfig, SamplerError, SlidePair
from samplers.labels.label_map import IGNORED, LabelMap, shows_tumour
from samplers.picture import picture_of
from samplers.reader import OpenPair, overview
from samplers.validation import validation_patches
from tests.helpers.filled_batches import filled_batches
from tests.helpers.lesion_slides import HEIGHT, SPACING, WIDTH, asap_xml, level, make_slide
from tests.helpers.tiny_slides import write_levels

BLUR = (250, 150, 500, 420)  # left, top, right, bottom in level-0 pixels, in the tissue
SEEN = (520, 300, 640, 420)  # a lesion outside of it
IGNORING = LabelMap.parse(["Tumor:1", "blur:ignore", "1:1", "255:ignore"])
CONFIG = SamplerConfig(
    "surf", img_size=64, batch_size=4, batch_tumor_ratio=0.5, label_map=IGNORING, resolution=SPACING
)


def labelled(folder: Path, kind: str, hidden: list[tuple[int, int, int, int]]) -> SlidePair:
    """A slide with the lesion SEEN and the ignored BLUR; `hidden` are lesions below it."""
    folder.mkdir()
    slide = make_slide(folder, "tumor_1", [SEEN], label=None).slide  # the pixels do not show what is hidden
    if kind == "xml":
        label = folder / "tumor_1.xml"
        # The file's order says nothing: the label map's does.
        label.write_text(asap_xml([BLUR], "blur").replace("</Annotations></ASAP_Annotations>", "")
                         + asap_xml([SEEN, *hidden]).replace("<ASAP_Annotations><Annotations>", ""))  # fmt: skip
    else:
        label = folder / "tumor_1_mask.tif"
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for left, top, right, bottom in [SEEN, *hidden]:
            mask[top:bottom, left:right] = 1
        mask[BLUR[1] : BLUR[3], BLUR[0] : BLUR[2]] = 255
        write_levels(label, [level(mask, step) for step in (1, 2)], SPACING)
    return SlidePair(slide, label)


def drawn(pair: SlidePair, config: SamplerConfig, batches: int = 6) -> list[tuple[PatchInfo, bytes, bytes]]:
    return [
        (patch, image.tobytes(), label.tobytes())
        for images, labels, patches in filled_batches([pair], config, batches)
        for patch, image, label in zip(patches, images, labels)
    ]


rectangles = st.tuples(
    st.integers(BLUR[0], BLUR[2] - 2),
    st.integers(BLUR[1], BLUR[3] - 2),
    st.integers(1, 250),
    st.integers(1, 270),
).map(lambda r: (r[0], r[1], min(r[0] + r[2], BLUR[2]), min(r[1] + r[3], BLUR[3])))


@pytest.mark.parametrize("sampler", ["surf", "radboud"])
@pytest.mark.parametrize("kind", ["xml", "mask"])
def test_what_an_ignored_region_hides_changes_no_patch_and_no_picture(
    kind: str, sampler: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = replace(CONFIG, sampler=sampler, img_size=64, augment=True)
    plain = labelled(tmp_path_factory.mktemp("plain") / "a", kind, [])
    expected = (
        drawn(plain, config),
        [patch for _, patch in validation_patches([plain], config)],
        picture_of(plain, config, [], 0).tobytes(),
    )

    @settings(max_examples=8, deadline=None)
    @given(st.lists(rectangles, min_size=1, max_size=3))
    def check(hidden: list[tuple[int, int, int, int]]) -> None:
        pair = labelled(tmp_path_factory.mktemp("hidden") / "a", kind, hidden)
        found = [patch for _, patch in validation_patches([pair], config)]
        assert (drawn(pair, config), found, picture_of(pair, config, [], 0).tobytes()) == expected

    check()


@pytest.mark.parametrize("size", [8, 64, 200])
@pytest.mark.parametrize("kind", ["xml", "mask"])
def test_patches_are_known_enough_and_tumour_is_what_is_known_of_it(
    kind: str, size: int, tmp_path: Path
) -> None:
    pair = labelled(tmp_path / "a", kind, [(260, 160, 480, 400)])
    config = replace(CONFIG, img_size=size, min_known=0.6)
    met = False
    for patch, _, pixels in drawn(pair, config, 12):
        label = np.frombuffer(pixels, np.uint8).reshape(size, size)
        assert np.mean(label != IGNORED) >= 0.6
        assert shows_tumour(label).any() == patch.tumour
        met |= bool((label == IGNORED).any())
    assert met or size == 8  # not only what is far from it


def test_only_what_is_annotated_teaches(tmp_path: Path) -> None:
    """With one outline of each class and all else ignored, every patch holds enough of an outline."""
    pair = make_slide(tmp_path, "tumor_1", [SEEN], label="xml")
    assert pair.label is not None
    pair.label.write_text(
        asap_xml([SEEN]).replace("</Annotations></ASAP_Annotations>", "")
        + asap_xml([(200, 200, 330, 330)], "stroma").replace("<ASAP_Annotations><Annotations>", "")
    )
    label_map = LabelMap.parse(["Tumor:1", "stroma:0"], "ignore")
    for sampler in ("surf", "radboud"):
        config = replace(CONFIG, sampler=sampler, label_map=label_map, min_known=0.3)
        kinds = set()
        for patch, _, pixels in drawn(pair, config):
            label = np.frombuffer(pixels, np.uint8)
            assert np.mean(label != IGNORED) >= 0.3
            kinds.add((patch.tumour, *np.unique(label[label != IGNORED]).tolist()))
        assert kinds <= {(True, 1), (False, 0)}
        assert len(kinds) == 2, sampler
    for _, patch in validation_patches([pair], config):
        opened = OpenPair(pair, config)
        assert np.mean(opened.read_label(patch.x_l0, patch.y_l0) != IGNORED) > 0.15
        opened.close()


def test_no_tumour_free_patch_where_nothing_but_tumour_is_annotated(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1", [SEEN], label="xml")
    config = replace(CONFIG, label_map=LabelMap.parse(None, "ignore"))
    with pytest.raises(SamplerError, match="tumour-free patch"):
        drawn(pair, config)
    assert all(patch.tumour for patch, _, _ in drawn(pair, replace(config, batch_tumor_ratio=1.0)))


def test_of_a_partly_annotated_slide_only_the_outlines_are_known(tmp_path: Path) -> None:
    whole = make_slide(tmp_path, "tumor_1", [SEEN], label="xml")
    for partly in (False, True):
        opened = OpenPair(replace(whole, partly_annotated=partly), replace(CONFIG, label_map=LabelMap()))
        label = opened.read_label(SEEN[0] - 32, SEEN[1] - 32)
        assert sorted(np.unique(label)) == ([1, IGNORED] if partly else [0, 1])
        assert overview(opened, 0).known.all() == (not partly)
        opened.close()
    # The rest of the batch comes from slides that are known.
    normal = make_slide(tmp_path, "normal_1", [], label=None)
    sampler = SAMPLERS["surf"]([replace(whole, partly_annotated=True), normal], CONFIG, 0, 1)
    images, labels = np.empty((4, 64, 64, 3), np.uint8), np.empty((4, 64, 64), np.uint8)
    patches = sampler.fill(0, images, labels).patches
    assert [(patch.slide, patch.tumour) for patch in patches] == [
        *[("tumor_1", True)] * 2,
        *[("normal_1", False)] * 2,
    ]
