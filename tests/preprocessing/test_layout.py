"""A folder of patches for each slide: the same files as in one folder, found by train.py; what was begun goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.options import parse_options, settings_of
from CAMELYON17_PREPROCESSING.preprocess import find_sources, main
from CAMELYON17_PREPROCESSING.settings import Folders
from samplers.pairs.names import slide_of_patch
from samplers.pairs.pairing import find_pairs
from tests.helpers.launch import run_python
from tests.helpers.preprocessing import digests, table, words


def in_folders(demo17: Path, out: Path) -> list[str]:
    return words(demo17, out, "--layout", "slide")


@pytest.fixture(scope="module")
def sorted_out(demo17: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slides")
    assert main(in_folders(demo17, out)) == 0
    return out


def by_name(out: Path) -> dict[str, str]:
    found = {f"{name.split('/')[0]}/{Path(name).name}": digest for name, digest in digests(out).items()}
    return {name: digest for name, digest in found.items() if not name.endswith("preprocessing.json")}


def test_the_files_are_those_of_one_folder_and_lie_in_that_of_their_slide(whole, sorted_out):
    assert by_name(sorted_out) == by_name(whole)
    for kind in store.KINDS:
        patches = list((sorted_out / kind).rglob("*tumor_center*"))
        assert len(patches) == 2 * len(table(sorted_out / kind))
        for path in patches:
            slide = slide_of_patch(path.stem.removeprefix("mask_"))
            assert path.parent == sorted_out / kind / "patches" / str(slide)


def test_training_finds_the_pairs_of_both_layouts_without_a_warning_about_them(whole, sorted_out):
    found, warnings = find_pairs(sorted_out / "positive", sorted_out / "positive", "png", "png")
    expected, before = find_pairs(whole / "positive", whole / "positive", "png", "png")
    assert sorted(pair.name for pair in found) == sorted(pair.name for pair in expected)
    assert all(pair.label == pair.slide.with_name(f"mask_{pair.slide.name}") for pair in found)
    assert len(warnings) == len(before)
    assert not [line for line in warnings if "patches" in Path(line.split(": ")[-1]).parts]


def test_a_folder_keeps_its_layout_and_a_new_one_has_folders_of_slides(demo17, whole, tmp_path, capsys):
    command = [word for word in words(demo17, tmp_path) if word not in ("--layout", "flat")]
    assert settings_of(parse_options(command)).layout == "slide"
    out = shutil.copytree(whole, tmp_path / "out")
    note = out / "positive" / "preprocessing.json"
    values = json.loads(note.read_text())
    del values["layout"]  # as an earlier version wrote it
    note.write_text(json.dumps(values))
    (next((out / "positive" / "slides").glob("*.json"))).unlink()
    command[command.index("--save_positive_path") + 1] = str(out / "positive")
    assert main(command) == 0
    assert digests(out) == digests(whole)
    assert main([*command, "--layout", "slide"]) == 2
    assert "--layout was flat, is slide" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["slide", "flat"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_slide_that_was_begun_goes_on(layout, changed, demo17, whole, sorted_out, tmp_path):
    finished = sorted_out if layout == "slide" else whole
    out = shutil.copytree(finished, tmp_path / "out")
    options = parse_options(words(demo17, out, "--layout", layout))
    settings, folders = settings_of(options), Folders(out / "positive", out / "negative")
    source = max(find_sources(options)[0], key=lambda source: len(list(out.rglob(f"*{source.name}_*"))))
    store.record_of(folders, source.name).unlink()
    store.begin(folders, source, settings)
    if changed:  # the label with which it was begun was another one
        begun = out / "positive" / "slides" / f"{source.name}.begun"
        begun.write_text(begun.read_text().replace(".xml", ".other"))
    there = sorted(path for path in out.rglob(f"*_{source.name}_*") if not path.name.startswith("mask_"))
    gone, kept = there[::2], there[1::2]
    for path in gone[1:]:
        path.unlink()
    gone[0].write_bytes(b"")  # the node died before it was on the disk
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert len(times) > 5
    assert main(words(demo17, out, "--layout", layout)) == 0
    assert digests(out) == digests(finished)
    same = [path.stat().st_mtime_ns == time for path, time in times.items()]
    assert not any(same) if changed else all(same)


@pytest.mark.slow
def test_training_runs_on_the_folders_of_slides(sorted_out, tmp_path):
    positive = str(sorted_out / "positive")
    words = "--slide_format png --label_format png --data_sampler surf --img_size 128 --batch_size 2 --num_steps 8"
    command = [
        "tests/helpers/toy_train.py",
        "--slide_path",
        positive,
        "--label_path",
        positive,
        *words.split(),
    ]
    done = run_python([*command, "--no_cuda", "--val_split", "0.34", "--log_dir", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    drawn = json.loads((tmp_path / "splits.json").read_text())
    assert {slide_of_patch(Path(pair["slide"]).stem) for pair in drawn["train"]}.isdisjoint(
        slide_of_patch(Path(pair["slide"]).stem) for pair in drawn["val"]
    )
