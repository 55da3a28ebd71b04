"""The command line: the original's options, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.option_table import check_table
from training.option_checks import parse_options
from training.options import build_parser, option_values
from utils.cli import EXIT_USAGE
from utils.startup import configure_environment

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
        (["--bb_downsample", "-1"], "--bb_downsample"),
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
    assert os.environ.pop("HOROVOD_CYCLE_TIME") == "20"
    configure_environment(parse_options([*words, "--no_cuda", "--sync_batch_norm"]))
    assert os.environ["HOROVOD_CYCLE_TIME"] == "1"  # ms; each layer waits for it


# Where each option is tested: by a test that fails if it is ignored.
TESTED = {
    "train": "metrics_have_every_logged_and_validated_step: num_steps log_every validate_every, "
    "learning_rate_is_scaled_warmed_up_and_scheduled_as_asked: learning_rate warmup_steps lr_schedule lr_scaling, "
    "what_a_run_leaves_behind: log_dir",
    "loop": "a_step_is_an_image_of_any_rank: batch_size num_steps, "
    "logs_validations_and_checkpoints_come_when_they_are_due: log_every validate_every checkpoint_every, "
    "nothing_comes_within_an_update_of_several_batches: accumulate_steps, "
    "the_learning_rate_is_multiplied_as_asked_but_not_with_adasum: learning_rate lr_scaling adasum, "
    "the_learning_rate_is_warmed_up_and_then_scheduled: warmup_steps lr_schedule, "
    "batch_norm_is_calibrated_once_and_frozen_in_the_last_part_of_the_steps: freeze_bn",
    "run": "both_loaders_have_the_processes_that_were_asked_for: sample_processes, "
    "the_model_has_the_classes_of_the_label_map: label_map profile log_dir, "
    "weights_are_loaded_and_their_averages_begin_with_them: weights_path ema, "
    "both_programs_set_the_environment_before_they_run: no_cuda verbose, "
    "both_programs_choose_devices_as_asked: no_cuda",
    "data": "validation_slides_are_split_off_by_the_seed: slide_path label_path val_split seed, "
    "validation_slides_of_their_own_in_another_format: valid_slide_path valid_label_path, "
    "each_side_has_files_of_its_formats: slide_format label_format valid_slide_format valid_label_format, "
    "bad_slides_are_an_error_or_left_out: skip_bad_slides, "
    "unlabelled_slides_as_asked: unlabelled, unlabelled_slides_are_treated_alike_on_both_sides: unlabelled, "
    "the_samplers_get_what_was_asked_for: data_sampler img_size batch_size bb_downsample batch_tumor_ratio resolution "
    "label_map seed augment stain_jitter annotation_weighting max_bad_slides validation_patches, "
    "the_check_of_the_slides_knows_spacing_and_classes: img_size resolution label_map",
    "config": "the_seed_deals_the_slides_out_to_the_ranks: seed, "
    "the_seed_decides_which_batches_have_one_more_tumour_patch: seed, "
    "stains_are_jittered_as_asked: augment stain_jitter seed, "
    "regions_are_found_on_the_level_that_was_asked_for: bb_downsample data_sampler, "
    "validation_looks_for_tissue_on_the_level_that_was_asked_for: bb_downsample, "
    "so_many_slides_may_fail_in_training_and_in_validation: max_bad_slides",
    "surf": "the_batch_has_the_wanted_part_of_tumour: batch_tumor_ratio",
    "radboud": "weighting_shows_in_what_is_drawn: annotation_weighting",
    "validation": "the_bound_holds_and_is_shared_among_slides: validation_patches seed",
    "camelyon": "centres_divide_the_slides: dataset data_root train_centers val_centers, "
    "slides_of_a_dataset_are_of_the_format_asked_for: dataset slide_format",
    "memory": "the_report_comes_before_training_and_ends_what_does_not_fit: memory_report, "
    "recompute_is_taken_by_the_trainer: recompute",
    "distributed": "no_horovod_under_a_launcher_is_refused: horovod, "
    "fp16_allreduce_changes_the_weights_within_its_precision: fp16_allreduce, "
    "two_ranks_with_synchronised_batch_norm_are_one_with_twice_the_batch: sync_batch_norm, "
    "accumulated_batches_are_one_of_their_size: accumulate_steps, "
    "adasum_and_what_overflows_on_one_rank_keep_ranks_equal: mixed_precision",
    "trainer": "gradients_are_reduced_as_asked: fp16_allreduce sync_batch_norm accumulate_steps adasum, "
    "horovod_is_asked_for_adasum_and_for_the_precision_of_what_is_sent: adasum fp16_allreduce, "
    "operations_are_deterministic_if_asked: deterministic, the_averaged_weights_are_what_is_validated: ema",
    "resume": "resume_without_log_dir_is_refused: resume, "
    "resume_force_goes_on_with_other_options: resume_force",
    "options_at_work": "debug_is_a_whole_run_of_100_images_and_says_what_the_real_one_takes: debug, "
    "hard_mining_logs_what_it_rejects: hard_mining, "
    "histograms_profile_and_hparams_are_there_for_tensorboard: histograms profile, "
    "checkpoints_are_written_and_kept_as_asked: checkpoint_every keep_checkpoints, "
    "early_stopping_ends_the_run_with_a_model_and_does_not_go_on: early_stopping, "
    "time_limit_stops_with_a_checkpoint: time_limit, "
    "moving_average_of_the_weights_is_validated_and_exported_and_loaded: ema, "
    "the_optimizer_is_the_one_asked_for_with_its_clipping: optimizer clip_norm weight_decay, "
    "the_last_part_of_the_steps_keeps_the_averages_of_batch_norm: freeze_bn, "
    "start_weights_are_of_the_seed: seed, "
    "hard_mining_is_as_hard_as_asked: hard_mining_threshold hard_mining_tries, "
    "the_model_is_built_as_asked: model fpn_min_level fpn_cells output_stride bn_momentum, "
    "pixel_weights_and_loss_are_those_asked_for: pos_pixel_weight neg_pixel_weight loss",
}


def test_every_option_has_a_test():
    check_table(build_parser(), TESTED)


def test_help_and_errors_do_not_wait_for_tensorflow():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: print('tensorflow' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.rstrip().endswith("False")
