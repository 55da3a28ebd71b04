"""Pictures of the first patches: of ranks that share patches, those of one of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from samplers import PatchInfo, SamplerConfig
from samplers.picture import TUMOUR_PATCH
from tests.helpers.groups import Gathering, Member, on_members
from tests.helpers.lesion_slides import make_slide
from training.dispensable import Dispensable
from training.samples import Samples
from utils.ranks.single import Ranks


def test_a_patch_that_ranks_share_is_drawn_once(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1")
    config = SamplerConfig("surf", img_size=64, batch_size=1)
    patches = [PatchInfo("tumor_1", 100 * i, 80 * i, 64, True) for i in range(6)]

    def collected(world: Ranks, folder: Path) -> int:
        samples = Samples(folder, world, [pair], config, Dispensable(print))
        for patch in patches:
            samples.add([patch])
        samples.draw()
        return len(samples.patches)

    assert collected(Ranks(), tmp_path / "whole") == 6

    def shared(member: int, gathering: Gathering) -> int:
        return collected(Member(member, 2, gathering=gathering), tmp_path / "shared")

    assert on_members(2, shared)[0] == [6, 0]
    pictures = [cv2.imread(str(tmp_path / name / "tumor_1.png")) for name in ("whole", "shared")]
    np.testing.assert_array_equal(*pictures)
    assert (pictures[0] == TUMOUR_PATCH[::-1]).all(axis=2).any()


def test_a_slide_that_vanished_and_a_folder_that_cannot_be_made_cost_pictures_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [make_slide(tmp_path, name) for name in ("tumor_1", "tumor_2")]
    pairs[0].slide.unlink()
    config = SamplerConfig("surf", img_size=64, batch_size=1)
    said: list[str] = []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "samples", tmp_path / "file" / "samples"):
        samples = Samples(folder, Ranks(), pairs, config, Dispensable(said.append))
        samples.add([PatchInfo(pair.name, 100, 80, 64, True) for pair in pairs])
        samples.draw()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["tumor_2.png"]
    assert len(caplog.messages) == len(said) == 1
    assert caplog.messages[0].startswith("no picture of tumor_1: ")
    assert "Not a directory" in said[0]
