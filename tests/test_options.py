"""The command line: the original's options, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import EXIT_USAGE
from utils.options import build_parser, configure_environment, option_values, parse_options

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


def test_steps_that_follow_from_others(tmp_path):
    words = ["--slide_path", str(tmp_path), "--num_steps", "2000"]
    assert parse_options(words).warmup_steps == 100
    short = parse_options([*words, "--debug"])
    assert (short.num_steps, short.validation_patches, short.warmup_steps) == (100, 100, 5)
    assert (short.planned_steps, short.planned_validation_patches) == (2000, 512)


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
        (["--ema", "1"], "--ema 1"),
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


# Where each option is tested: by a test that fails if it is ignored.
TESTED = {
    "train": "last_line_is_the_validation_miou: img_size batch_size num_steps data_sampler log_every validate_every "
    "log_dir validation_patches val_split, "
    "learning_rate_is_scaled_warmed_up_and_scheduled_as_asked: learning_rate warmup_steps lr_schedule lr_scaling",
    "data": "validation_slides_are_split_off_by_the_seed: slide_path label_path, "
    "validation_slides_of_their_own_in_another_format: valid_slide_path valid_label_path valid_slide_format "
    "valid_label_format, bad_slides_are_an_error_or_left_out: skip_bad_slides, "
    "unlabelled_slides_as_asked: unlabelled, the_samplers_get_what_was_asked_for: bb_downsample "
    "batch_tumor_ratio resolution label_map seed augment stain_jitter annotation_weighting max_bad_slides",
    "dataset": "decorations_case_and_long_suffixes_are_taken_off: slide_format label_format",
    "camelyon": "centres_divide_the_slides: dataset data_root train_centers val_centers",
    "loader": "order_is_the_same_for_every_number_of_processes: sample_processes",
    "options": "what_has_to_be_set_before_tensorflow_is_imported: no_cuda verbose",
    "memory": "the_report_comes_before_training_and_ends_what_does_not_fit: memory_report, "
    "recompute_is_taken_by_the_trainer: recompute",
    "distributed": "no_horovod_under_a_launcher_is_refused: horovod, "
    "fp16_allreduce_changes_the_weights_within_its_precision: fp16_allreduce, "
    "two_ranks_with_synchronised_batch_norm_are_one_with_twice_the_batch: sync_batch_norm, "
    "accumulated_batches_are_one_of_their_size: accumulate_steps, "
    "adasum_and_what_overflows_on_one_rank_keep_ranks_equal: adasum mixed_precision",
    "pretrained": "own_weights_give_equal_outputs: weights_path",
    "resume": "the_same_bits_after_kill_stop_and_a_torn_checkpoint: deterministic, "
    "resume_without_log_dir_is_refused: resume, resume_force_goes_on_with_other_options: resume_force",
    "training_options": "debug_is_a_whole_run_of_100_images_and_says_what_the_real_one_takes: debug, "
    "hard_mining_logs_what_it_rejects: hard_mining, "
    "histograms_profile_and_hparams_are_there_for_tensorboard: histograms profile, "
    "checkpoints_are_written_and_kept_as_asked: checkpoint_every keep_checkpoints, "
    "early_stopping_ends_the_run_with_a_model_and_does_not_go_on: early_stopping, "
    "time_limit_stops_with_a_checkpoint: time_limit, "
    "moving_average_of_the_weights_is_validated_and_exported_and_loaded: ema, "
    "the_optimizer_is_the_one_asked_for_with_its_clipping: optimizer clip_norm weight_decay, "
    "the_last_part_of_the_steps_keeps_the_averages_of_batch_norm: freeze_bn, "
    "hard_mining_is_as_hard_as_asked: hard_mining_threshold hard_mining_tries, "
    "the_model_is_built_as_asked: model fpn_min_level fpn_cells output_stride bn_momentum, "
    "pixel_weights_and_loss_are_those_asked_for: pos_pixel_weight neg_pixel_weight loss",
}


def test_every_option_has_a_test():
    listed: list[str] = []
    for file, entries in TESTED.items():
        text = (Path(__file__).parent / f"test_{file}.py").read_text()
        for entry in entries.split(", "):
            name, options = entry.split(": ")
            assert f"def test_{name}(" in text, f"test_{file}.py has no test_{name}"
            listed += options.split()
    assert sorted(listed) == sorted(set(vars(build_parser().parse_args([]))))


def test_help_and_errors_do_not_wait_for_tensorflow():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: print('tensorflow' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.rstrip().endswith("False")
