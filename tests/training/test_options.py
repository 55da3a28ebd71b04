"""The command line: the original's options, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.unread_options import ROOT, unread_options
from training.option_checks import parse_options
from training.options import build_parser, option_values
from utils.cli import EXIT_USAGE
from utils.startup import configure_environment

# All of training/ but the parser and its checks, which read options that may do nothing elsewhere.
PROGRAM_FILES = [
    f"training/{path.name}"
    for path in (ROOT / "training").glob("*.py")
    if path.name not in ("options.py", "option_checks.py")
]
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
        (["--class_weights", "Tumour:2"], "there is no class 'Tumour', the classes are other, Tumor"),
        (["--class_weights", "Tumor"], "'Tumor' is not NAME:WEIGHT"),
        (["--partly_annotated", "/nowhere"], "/nowhere"),
        (["--batch_tumor_ratio", "1.5"], "--batch_tumor_ratio"),
        (["--valid_slide_path", "."], "--valid_label_path"),
        (["--pos_pixel_weight", "0", "--neg_pixel_weight", "0"], "--pos_pixel_weight"),
        (["--resolution", "nan"], "--resolution"),
        (["--bb_downsample", "-1"], "--bb_downsample"),
        (["--val_split", "0"], "--val_split"),
        (["--seed", "-1"], "--seed"),
        (["--patient_pattern", "("], "--patient_pattern: '(' is no regular expression"),
        (["--patient_pattern", "P.."], "--patient_pattern: 'P..' has no group"),
        (["--seed", str(2**32)], "--seed"),
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


def test_steps_that_follow_from_others(tmp_path):
    words = ["--slide_path", str(tmp_path), "--num_steps", "2000"]
    assert parse_options(words).warmup_steps == 100
    short = parse_options([*words, "--debug"])
    assert (short.num_steps, short.validation_patches, short.warmup_steps) == (100, 100, 5)
    assert (short.planned_steps, short.planned_validation_patches) == (2000, 512)
    assert not [name for name in option_values(short) if name.startswith("planned_")]


def test_the_side_of_a_patch_is_a_multiple_of_what_the_model_needs(tmp_path):
    words = ["--slide_path", str(tmp_path), "--img_size", "1000", "--model", "deeplab"]
    assert parse_options(words).img_size == 1000


def test_the_model_is_that_of_the_weights(tmp_path, capsys):
    weights = tmp_path / "a.h5"
    weights.write_bytes(b"efficientnet-b4")
    words = ["--slide_path", str(tmp_path), "--weights_path", str(weights)]
    assert parse_options(words).model == "effdetd4"
    with pytest.raises(SystemExit):
        parse_options([*words, "--model", "deeplab"])
    assert "is of effdetd4, not of --model deeplab" in capsys.readouterr().err


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
        (["--optimizer", "adam", "--weight_decay", "0.1"], "take adamw"),
        (["--hard_mining_tries", "2"], "goes with --hard_mining"),
        (["--no-augment", "--stain_jitter", "strong"], "--no-augment"),
        (["--data_root", "."], "--dataset"),
        (["--model", "deeplab", "--fpn_cells", "3"], "--fpn_cells is EfficientDet's"),
        (["--model", "deeplab", "--fpn_min_level", "2"], "--fpn_min_level is EfficientDet's"),
        (["--output_stride", "8"], "--output_stride is DeepLabV3+'s"),
        (["--data_sampler", "surf", "--annotation_weighting", "area"], "is the Radboud sampler's"),
        (["--dataset", "16", "--data_root", "."], "--dataset does nothing beside --slide_path"),
        (
            ["--valid_slide_path", ".", "--valid_label_path", ".", "--val_split", "0.2"],
            "--val_split does nothing",
        ),
        (["--valid_label_format", "xml"], "goes with --valid_slide_path"),
        (["--label_format", "xml"], "goes with --label_path"),
        (["--loss", "dice", "--pos_pixel_weight", "2"], "does nothing with --loss dice"),
        (["--no-horovod", "--fp16_allreduce"], "does nothing with --no-horovod"),
        (["--adasum", "--lr_scaling", "sqrt"], "does nothing with --adasum"),
        (["--freeze_bn", "1", "--sync_batch_norm"], "does nothing with --freeze_bn 1"),
        (["--profile", "50000:50010"], "--profile begins at step 50000"),
        (["--debug", "--resume", "--log_dir", "."], "--debug always begins anew"),
        (["--resume_force"], "needs the --log_dir"),
        (["--debug", "--resume_force", "--log_dir", "."], "does nothing with --debug"),
        (["--class_weights", "Tumor:2", "--pos_pixel_weight", "2"], "does nothing beside --class_weights"),
        (["--class_weights", "balanced", "--loss", "dice"], "does nothing with --loss dice"),
        (["--all_annotations"], "goes with --dataset"),
        (["--time_limit", "90"], "HH:MM"),
        (["--profile", "9:3"], "START:STOP"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(["--slide_path", str(tmp_path), *words])
    assert ended.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_what_has_to_be_set_before_tensorflow_is_imported(tmp_path, monkeypatch):
    for name in (
        "TF_CPP_MIN_LOG_LEVEL",
        "CUDA_VISIBLE_DEVICES",
        "HOROVOD_CYCLE_TIME",
        "HOROVOD_STALL_CHECK_TIME_SECONDS",
        "OMPI_MCA_mpi_yield_when_idle",
        "TF_ENABLE_ONEDNN_OPTS",
    ):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)
    words = ["--slide_path", str(tmp_path)]
    configure_environment(parse_options([*words, "--verbose"]))
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # the user's word goes before ours
    configure_environment(parse_options([*words, "--no_cuda"]))
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"
    assert os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] == "600"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert os.environ.pop("HOROVOD_CYCLE_TIME") == "20"
    configure_environment(parse_options([*words, "--no_cuda", "--sync_batch_norm"]))
    assert os.environ["HOROVOD_CYCLE_TIME"] == "1"  # ms; each layer waits for it


def test_every_option_is_read_by_the_program():
    parser = build_parser()
    files = ["train.py", "models/*.py", "utils/**/*.py", *PROGRAM_FILES]
    assert unread_options(parser, files) == set()
    parser.add_argument("--nobody_reads_it")
    assert unread_options(parser, files) == {"nobody_reads_it"}


def test_help_shows_each_default_once():
    for group in build_parser().format_help().split("\n  --")[1:]:
        assert group.count("(default:") <= 1, group
        assert "None" not in group, group


def test_of_all_ranks_the_first_one_shows_the_help(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    for rank, shown in ((0, True), (1, False)):
        monkeypatch.setenv("PMI_RANK", str(rank))
        with pytest.raises(SystemExit, match=r"^0$"):
            build_parser().parse_args(["--help"])
        assert capsys.readouterr().out.startswith("usage:") is shown


def test_help_and_errors_do_not_wait_for_tensorflow():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: print('tensorflow' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.rstrip().endswith("False")
