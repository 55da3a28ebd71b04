from __future__ import annotations

import numpy as np
import pytest

from samplers.labels.label_map import (
    IGNORED,
    LabelMap,
    class_names,
    shows_tumour,
    swapped_classes,
)
from utils.cli import UserError


def test_default_paints_tumour_first_and_exclusions_after_it() -> None:
    groups = LabelMap.parse(None).groups
    assert [group for group, value in groups if value == 1] == ["_0", "_1", "Tumor", "metastases"]
    assert [value for _, value in groups] == [1] * 4 + [0] * 4
    assert LabelMap.parse([]) == LabelMap()


def test_order_is_kept_and_classes_counted() -> None:
    label_map = LabelMap.parse(["_2:0", "Tumor: Positive:3", "_0:1"])
    assert label_map.groups == (("_2", 0), ("Tumor: Positive", 3), ("_0", 1))
    assert label_map.num_classes == 4
    assert LabelMap.parse(["_0:0"]).num_classes == 2


@pytest.mark.parametrize("item", ["_0", ":1", "_0:", "_0:x", "_0:-1", "_0:1.5", "_0:255", "_0:²"])
def test_wrong_items_are_named(item: str) -> None:
    with pytest.raises(UserError, match="label map") as error:
        LabelMap.parse(["_1:1", item])
    assert repr(item) in str(error.value)


def test_a_group_may_be_there_once() -> None:
    with pytest.raises(UserError, match="'_0:0': the group is there twice"):
        LabelMap.parse(["_0:1", "_0:0"])


def test_values_of_masks() -> None:
    assert LabelMap().values().tolist() == [0] + [1] * 255
    assert LabelMap.parse(["_0:1", "_2:2"]).values()[2] == 1  # groups of annotations are no values
    table = LabelMap.parse(["1:0", "2:1", "300:3"]).values()
    np.testing.assert_array_equal(table[:4], [0, 0, 1, 0])


def test_names_of_classes_are_not_those_of_ignored_regions_values_or_no_group() -> None:
    label_map = ["blurred:ignore", "None:1", "255:ignore", "3:2", "stroma:2", "_0:1", "Tumor:1"]
    assert class_names(label_map, 4) == [["other"], ["_0", "Tumor"], ["stroma"], ["class_3"]]
    assert class_names(["None:1"], 2) == [["other"], ["class_1"]]


def test_groups_that_are_not_known() -> None:
    label_map = LabelMap.parse(["Tumor:1", "blur:ignore", "255:ignore", "1:2"])
    assert label_map.groups == (("Tumor", 1), ("blur", IGNORED), ("255", IGNORED), ("1", 2))
    assert label_map.num_classes == 3
    assert label_map.ignores
    assert label_map.values()[[0, 1, 255]].tolist() == [0, 2, IGNORED]
    assert class_names(["Tumor:1", "blur:ignore"], 2) == [["other"], ["Tumor"]]
    assert LabelMap.parse(["blur:ignore"]).num_classes == 2


def test_what_is_not_annotated_is_background_or_not_known() -> None:
    assert not LabelMap.parse(["Tumor:1"]).ignores
    label_map = LabelMap.parse(["Tumor:1"], "ignore")
    assert label_map.ignores
    assert label_map.values()[0] == IGNORED
    assert LabelMap.parse(["0:0", "1:1"], "ignore").values()[:2].tolist() == [0, 1]


def test_what_is_known_and_above_0_is_tumour() -> None:
    classes = np.array([0, 1, 2, 254, IGNORED], np.uint8)
    assert shows_tumour(classes).tolist() == [False, True, True, True, False]


def test_the_map_of_the_original_command_is_taken_with_a_warning() -> None:
    text = swapped_classes(LabelMap.parse(["_0:0", "_2:1"]))
    assert text is not None
    assert "gives _0, which are tumour, class 0" in text
    assert "and _2, which are not, a class above 0" in text
    assert text.endswith("--label_map _0:1 _2:0")
    text = swapped_classes(LabelMap.parse(["mine:3", "Tumor:0", "blur:ignore"]))
    assert text is not None
    assert text.endswith("--label_map mine:3 Tumor:1 blur:ignore")
    for items in (None, ["_0:1", "_2:0"], ["_0:2", "_2:1"], ["x:0", "y:1"], ["Tumor:ignore"]):
        assert swapped_classes(LabelMap.parse(items)) is None
