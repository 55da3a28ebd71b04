"""The command line: the original's options, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import EXIT_USAGE
from utils.options import build_parser, option_values, parse_options

ORIGINAL = {
    "img_size": 1024, "batch_size": 2, "num_steps": 50000, "val_split": 0.15, "model": "effdetd0",
    "no_cuda": False, "horovod": True, "fp16_allreduce": False, "dataset": None, "train_centers": [-1],
    "val_centers": [-1], "hard_mining": False, "slide_path": None, "label_path": None,
    "valid_slide_path": None, "valid_label_path": None, "weights_path": None, "slide_format": "tif",
    "label_format": "tif", "valid_slide_format": "tif", "valid_label_format": "tif",
    "data_sampler": "radboud", "bb_downsample": 7, "batch_tumor_ratio": 1, "sample_processes": 1,
    "resolution": 0.25, "label_map": None, "log_dir": None, "log_every": 128, "validate_every": 2048,
    "debug": False, "pos_pixel_weight": 1, "neg_pixel_weight": 1,
}  # fmt: skip


def test_original_options_and_defaults():
    defaults = vars(build_parser().parse_args([]))
    assert {name: defaults[name] for name in ORIGINAL} == ORIGINAL


def test_original_choices():
    choices = {a.dest: a.choices for a in build_parser()._actions if a.choices}
    assert set(choices["model"]) >= {"effdetd0", "effdetd4", "deeplab"}
    assert choices["data_sampler"] == ["radboud", "surf"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--img_size", "1000"], "1024"),
        (["--img_size", "0"], "--img_size"),
        (["--slide_path", "/nowhere"], "/nowhere"),
        (["--label_map", "Tumor"], "Tumor"),
        (["--batch_tumor_ratio", "1.5"], "--batch_tumor_ratio"),
        (["--valid_slide_path", "."], "--valid_label_path"),
        (["--pos_pixel_weight", "0", "--neg_pixel_weight", "0"], "--pos_pixel_weight"),
        (["--resolution", "nan"], "--resolution"),
        (["--val_split", "0"], "--val_split"),
    ],
)
def test_wrong_options_end_with_2_and_name_the_option(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(["--slide_path", str(tmp_path), *words])
    assert end.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_surf_works_at_level_0_unless_a_resolution_is_given(tmp_path):
    surf = ["--slide_path", str(tmp_path), "--data_sampler", "surf"]
    assert parse_options(surf).resolution is None
    assert parse_options([*surf, "--resolution", "0.25"]).resolution == 0.25
    assert parse_options(["--slide_path", str(tmp_path)]).resolution == 0.25


def test_option_values_are_json_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    values = option_values(parse_options(["--slide_path", "slides"]))
    assert json.loads(json.dumps(values))["slide_path"] == str(tmp_path / "slides")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adasum", "--accumulate_steps", "2"], "--adasum does not go with"),
        (["--no-horovod", "--accumulate_steps", "2"], "take off --no-horovod"),
        (["--mixed_precision", "float16", "--accumulate_steps", "2"], "take bfloat16"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(["--slide_path", str(tmp_path), *words])
    assert ended.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_help_and_errors_do_not_wait_for_tensorflow():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: print('tensorflow' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.rstrip().endswith("False")
