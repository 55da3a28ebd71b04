"""The program: stopped and started again, bad slides, full disks, wrong options, ranks."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time

import pytest

from CAMELYON17_PREPROCESSING import cut, store
from CAMELYON17_PREPROCESSING.preprocess import main, parse_options
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers.pairs.pairing import SlidePair
from samplers.reader import BadSlideError
from samplers.slides.errors import ReadError
from tests.helpers.launch import ROOT, run_python, start_python, wait_for
from tests.helpers.preprocessing import digests, words
from tests.helpers.tiny_slides import overwrite_tile
from utils.files import OutputError


def test_a_second_run_does_nothing_and_other_options_are_refused(demo17, whole, capsys):
    before = digests(whole)
    assert main(words(demo17, whole)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert digests(whole) == before
    assert main(words(demo17, whole, "--min_tumor", "0.5")) == 2
    assert "--min_tumor was 0.01, is 0.5" in capsys.readouterr().err


def test_four_processes_write_the_same_files(demo17, whole, tmp_path):
    assert main(words(demo17, tmp_path, "--num_threads", "4")) == 0
    assert digests(tmp_path) == digests(whole)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 10))])
def test_killed_and_started_again_gives_the_same_files(seed, demo17, whole, tmp_path):
    chance = random.Random(seed)
    command = ["-m", "CAMELYON17_PREPROCESSING.preprocess", *words(demo17, tmp_path)]
    process = start_python(command)
    wait_for((tmp_path / "positive" / "slides").exists, process)
    time.sleep(chance.uniform(0, 2.5))
    process.kill()
    process.communicate()
    workers = [line for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True,
               check=True).stdout.splitlines() if str(process.pid) in line and "spawn" in line]  # fmt: skip
    assert workers == []
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_a_bad_slide_is_named_and_leaves_no_patch_and_the_others_are_done(demo17, whole, tmp_path, capsys):
    root = shutil.copytree(demo17, tmp_path / "root with space")
    bad = max((root / "training").rglob("patient*.tif"))
    overwrite_tile(bad, 3, b"\xff\xd9 broken")
    out = tmp_path / "out"
    assert main(words(root, out)) == 1
    said = capsys.readouterr()
    assert f"bad slide, left out: {bad.stem}" in said.err
    assert "1 slides could not be used, all others are done" in said.err
    kept = {name for name in digests(whole) if bad.stem not in name}
    assert {name for name in digests(out) if name in kept} == kept
    assert not [name for name in digests(out) if bad.stem in name]


def test_folders_that_do_not_fit_end_with_2(demo17, demo, tmp_path, capsys):
    out = ["--train_tumor_wsi_path", str(demo17 / "training"), "--train_tumor_mask_path", str(demo / "masks")]
    assert main([*out, "--save_positive_path", str(tmp_path / "positive")]) == 2
    said = capsys.readouterr().err
    assert "4 slides without a label: " in said
    assert "3 labels without a slide: " in said
    assert all(name in said for name in ("patient_000_node_0.tif", "tumor_001_mask.tif"))


def test_a_file_that_cannot_be_written_ends_with_1(demo17, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OutputError("no space left on device")

    monkeypatch.setattr(store, "write_record", full)
    assert main(words(demo17, tmp_path)) == 1
    assert "no space left on device. Make room" in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_1_and_bad_slides_are_named_all_the_same(
    demo17, tmp_path, monkeypatch, capsys
):
    root = shutil.copytree(demo17, tmp_path / "root")
    bad = max((root / "training").rglob("patient*.tif"))
    bad.write_bytes(b"no slide")

    def full(*_: object) -> None:
        raise OutputError("no space left on device")

    monkeypatch.setattr(store, "write_tables", full)
    assert main(words(root, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "no space left on device. Make room" in said
    assert f"bad slide, left out: {bad.stem}" in said


def test_an_annotation_of_which_nothing_can_be_used_is_a_bad_slide_and_parts_are_a_warning(
    demo17, tmp_path, capsys
):
    root = shutil.copytree(demo17, tmp_path / "root")
    first, second = sorted((root / "training").rglob("*.xml"))[:2]
    text = first.read_text()
    group = re.findall(r'PartOfGroup="(\w+)"', text)[0]
    first.write_text(text.replace(f'PartOfGroup="{group}"', 'PartOfGroup="whatever"'))
    dot = '<Annotation Name="d" Type="Dot" PartOfGroup="metastases"><Coordinates>' \
          '<Coordinate Order="0" X="5" Y="5"/></Coordinates></Annotation>'  # fmt: skip
    second.write_text(second.read_text().replace("</Annotations>", dot + "</Annotations>"))
    assert main(words(root, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert f"bad slide, left out: {first.stem}" in said
    assert "no annotation that could be used" in said
    assert any(line.startswith("warning:") and second.stem in line for line in said.splitlines())


def test_tumour_slides_without_annotation_are_not_taken_as_tumour_free(demo, tmp_path, capsys):
    masks = shutil.copytree(demo / "masks", tmp_path / "masks")
    (masks / "tumor_002_mask.tif").unlink()
    out = ["--train_tumor_wsi_path", str(demo / "slides"), "--train_tumor_mask_path", str(masks)]
    folder = tmp_path / "p"
    out += ["--save_positive_path", str(folder), "--patch_size", "256", "--save_neg"]
    assert main(out) == 2
    assert re.search(r"1 slides without a label: .*tumor_002\.tif", capsys.readouterr().err)
    assert main([*out, "--unlabelled", "normal"]) == 0
    assert "1 slides with tumour but without a label" in capsys.readouterr().err
    assert not [name for name in digests(tmp_path) if "tumor_002" in name and "masks" not in name]


def test_a_picture_that_cannot_be_drawn_makes_a_bad_slide(demo17, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise ReadError("tile 7")

    monkeypatch.setattr(cut, "picture_of", broken)
    source = SourceSlide(SlidePair(next(demo17.rglob("patient*.tif")), None))
    with pytest.raises(BadSlideError, match="tile 7"):
        cut.draw(source, PatchSettings(patch_size=128, save_png=True), Folders(tmp_path, tmp_path),
                 {"positive": [], "negative": []})  # fmt: skip


def test_another_folder_for_negatives_is_refused(demo17, whole, tmp_path, capsys):
    assert main(words(demo17, whole, "--save_tumor_negative_path", str(tmp_path))) == 2
    assert "--save_tumor_negative_path was ../negative" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "--root"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--root", ".", "--train_tumor_wsi_path", "."], "either"),
        (["--root", ".", "--train_tumor_mask_path", "."], "--train_tumor_mask_path"),
        (["--root", ".", "--save_tumor_negative_path", "x"], "--save_neg"),
        (["--root", ".", "--seed", "3"], "--max_patches"),
    ],
)
def test_wrong_options_end_with_2(wrong, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(wrong)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_ends_with_2(demo17, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(words(demo17, tmp_path / "file")) == 2
    assert "cannot be written: [Errno 20] Not a directory" in capsys.readouterr().err


def test_a_folder_of_no_known_layout_ends_with_2(tmp_path, capsys):
    assert main(["--root", str(tmp_path), "--save_positive_path", str(tmp_path / "p")]) == 2
    assert "neither CAMELYON17's layout nor CAMELYON16's" in capsys.readouterr().err


@pytest.mark.mpi
def test_two_ranks_write_the_same_files(demo17, whole, tmp_path):
    command = ["-m", "CAMELYON17_PREPROCESSING.preprocess", *words(demo17, tmp_path)]
    done = run_python(command, ranks=2)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_both_scripts_pass_their_arguments_on(tmp_path):
    for script in (ROOT / "run_prepro.sh", ROOT / "CAMELYON17_PREPROCESSING" / "run_prepro.sh"):
        done = subprocess.run(["sh", str(script), "--root", "no such folder"], capture_output=True, text=True,
                              cwd=tmp_path, check=False)  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "there is no folder no such folder" in done.stderr
