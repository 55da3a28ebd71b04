"""predict.py as users start it: interruptions, bad slides, wrong options, ranks."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest
from tensorflow.errors import ResourceExhaustedError

from predict import main
from prediction.model import Predictor
from tests.helpers.launch import ROOT, run_python, start_python, wait_for
from tests.helpers.predicting import FEW, digests, pixels, record, words
from tests.helpers.tiny_slides import overwrite_tile
from tests.helpers.toy_predictors import slide_with
from utils.files import OutputError, write_atomically
from utils.ranks import killed_rank


def test_a_second_run_does_nothing_and_another_model_or_option_is_refused(toys, slides, whole, capsys):
    before = digests(whole)
    assert main(words(toys / "lesion", slides, whole)) == 0
    assert "3 slides, 3 of them are finished already" in capsys.readouterr().out
    assert digests(whole) == before
    assert main(words(toys / "lesion", slides, whole, "--overlap", "0.5")) == 2
    assert "--overlap was 0.25, is 0.5" in capsys.readouterr().err
    assert main(words(toys / "red", slides, whole)) == 2
    assert "--model was" in capsys.readouterr().err
    assert digests(whole) == before


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 7))])
def test_killed_and_started_again_gives_the_same_files(seed, toys, slides, whole, tmp_path):
    command = ["predict.py", *words(toys / "lesion", slides, tmp_path)]
    process = start_python(command)
    wait_for(lambda: list(tmp_path.glob(".work/*")), process)
    time.sleep(random.Random(seed).uniform(0, 1))
    process.kill()
    process.communicate()
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_a_bad_slide_leaves_no_files_and_the_others_are_done(toys, slides, whole, tmp_path, capsys):
    some = shutil.copytree(slides, tmp_path / "some slides")
    overwrite_tile(some / "tumor_002.tif", 70, b"\xff\xd9 broken")
    (some / "tumor_003.tif").write_bytes((slides / "tumor_001.tif").read_bytes()[:200_000])
    out = tmp_path / "out"
    assert main(words(toys / "lesion", some, out)) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: tumor_002" in said
    assert "bad slide, left out: tumor_003" in said
    assert "truncated" in said
    assert "2 slides could not be used, all others are done" in said
    kept = {
        name: digest
        for name, digest in digests(whole).items()
        if "tumor_002" not in name and name != "slides.csv"
    }
    assert {name: digest for name, digest in digests(out).items() if name != "slides.csv"} == kept


def test_a_slide_that_has_changed_is_predicted_anew_and_one_of_its_name_elsewhere_is_refused(
    toys, slides, whole, tmp_path, capsys
):
    mine, others = tmp_path / "mine", tmp_path / "others"
    for folder, name in ((mine, "tumor_001"), (others, "tumor_002")):
        folder.mkdir()
        shutil.copy(slides / f"{name}.tif", folder / "case.tif")
    out = tmp_path / "out"
    assert main(words(toys / "lesion", mine, out)) == 0
    first = record(out, "case")
    assert main(words(toys / "lesion", others, out)) == 2
    assert f"holds the prediction of {mine / 'case.tif'}, but {others / 'case.tif'} has the same name" in (
        capsys.readouterr().err
    )
    assert record(out, "case") == first
    shutil.copy(others / "case.tif", mine / "case.tif")
    assert main(words(toys / "lesion", mine, out)) == 0
    assert record(out, "case")["area_mm2"] == record(whole, "tumor_002")["area_mm2"] != first["area_mm2"]
    shutil.move(mine, tmp_path / "moved")
    assert main(words(toys / "lesion", tmp_path / "moved", out)) == 0
    assert "1 slides, 1 of them are finished already" in capsys.readouterr().out


def test_another_run_is_kept_out_of_the_output(toys, slides, tmp_path, capsys):
    hold = f"from utils.lock import *; lock_folder(Path({str(tmp_path)!r}), '--output'); print('it is mine'); input()"
    with subprocess.Popen(
        [sys.executable, "-uc", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "it is mine\n"
        assert main(words(toys / "lesion", slides, tmp_path)) == 2
        assert (
            f"--output {tmp_path} belongs to a run that goes on (process {other.pid} on "
            in capsys.readouterr().err
        )
        other.kill()


def test_after_a_full_disk_nothing_is_predicted_again(toys, slides, whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as full:
        full.setattr("prediction.work.write_tiff", Mock(side_effect=OutputError("no space left")))
        assert main(words(toys / "lesion", slides / "tumor_001.tif", tmp_path)) == 1
    assert "no space left" in capsys.readouterr().err
    monkeypatch.setattr("prediction.work.predict_band", Mock(side_effect=AssertionError("predicted again")))
    assert main(words(toys / "lesion", slides / "tumor_001.tif", tmp_path)) == 0
    assert record(tmp_path, "tumor_001")["lesions"] == record(whole, "tumor_001")["lesions"]
    assert not (tmp_path / ".work").exists()


def test_what_was_never_scanned_is_glass(toys, slides, tmp_path):
    shutil.copy(slides / "tumor_001.tif", tmp_path / "tumor_001.tif")
    overwrite_tile(tmp_path / "tumor_001.tif", 5 * 16 + 8)  # its place and size are 0
    assert main(words(toys / "red", tmp_path / "tumor_001.tif", tmp_path / "out", *FEW)) == 0
    assert (pixels(tmp_path / "out", "tumor_001")[320:384, 512:576] == 255).all()


@pytest.mark.parametrize(
    "place", ["os.pwrite", "prediction.work.write_overlay", "prediction.store.write_atomically"]
)
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    place, toys, slides, whole, tmp_path, monkeypatch, capsys
):
    def full(target: object, *_: object) -> int:
        if getattr(target, "name", "") == "prediction.json":
            return write_atomically(target, *_)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        assert main(words(toys / "lesion", slides, tmp_path)) == 1
    assert "No space left on device. Make room, and the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "slides").iterdir())
    assert main(words(toys / "lesion", slides, tmp_path)) == 0
    assert digests(tmp_path) == digests(whole)


def test_a_slide_smaller_than_a_patch(toys, tmp_path):
    tumour = np.zeros((180, 150), bool)
    tumour[60:120, 50:110] = True
    slide_with(tmp_path / "small.tif", tumour)
    assert (
        main(
            words(
                toys / "lesion",
                tmp_path / "small.tif",
                tmp_path / "out",
                "--img_size",
                "256",
                "--min_lesion_mm",
                "0.01",
            )
        )
        == 0
    )
    np.testing.assert_array_equal(pixels(tmp_path / "out", "small", "prediction"), tumour)


def test_folder_file_and_pattern(toys, slides, tmp_path):
    (tmp_path / "x_mask.tif").write_bytes(b"no slide")
    command = words(toys / "lesion", slides / "tumor_*1.tif", tmp_path / "out", "--verbose", "--no_cuda")
    command[command.index("--output") : command.index("--output")] = [str(slides / "normal_001.tif")]
    assert main(command) == 0
    assert sorted(path.stem for path in (tmp_path / "out" / "slides").iterdir()) == [
        "normal_001",
        "tumor_001",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model_path", "/nowhere"], "--model_path /nowhere"),
        (["--model_path", "docs"], "holds no model"),
        (["--slide_path", "/nowhere/*.tif"], "no slides are there"),
        (["--overlap", "1"], "--overlap"),
        (["--mixed_precision", "bfloat16"], "as it was exported"),
        (["--min_lesion_mm", "0"], "--min_lesion_mm"),
        (["--output", "README.md"], "is a file"),
    ],
)
def test_wrong_options_end_with_2(options, said, toys, slides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main([*words(toys / "lesion", slides, tmp_path), *options])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_two_slides_of_the_same_name_end_with_2(toys, slides, tmp_path, capsys):
    shutil.copy(slides / "tumor_001.tif", tmp_path)
    command = words(toys / "lesion", slides, tmp_path / "out")
    command.insert(4, str(tmp_path))
    with pytest.raises(SystemExit):
        main(command)
    assert "have the same name" in capsys.readouterr().err


def test_help_names_every_option_and_its_default():
    done = run_python(["predict.py", "--help"])
    assert done.returncode == 0
    for name in ("--tta", "--no-tissue_only", "--resolution", "--min_lesion_mm", "(default: 0.25)"):
        assert name in done.stdout
    assert "default: None" not in done.stdout


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 9 GiB"), ResourceExhaustedError(None, None, "OOM")]
)
def test_out_of_memory_says_what_to_do(error, toys, slides, tmp_path, monkeypatch):
    def predict(*_: object) -> None:
        raise error

    said = []
    monkeypatch.setattr(Predictor, "__init__", predict)
    monkeypatch.setattr(killed_rank, "end_at_once", said.append)
    main(words(toys / "lesion", slides, tmp_path))
    assert str(error) in said[0]
    assert "A smaller --batch_size gives the same result, so the same command goes on with it" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.mpi
@pytest.mark.parametrize("pattern", ["*.tif", "tumor_002.tif"])
def test_two_ranks_write_the_same_files(pattern, toys, slides, whole, tmp_path):
    done = run_python(["predict.py", *words(toys / "lesion", slides / pattern, tmp_path)], ranks=2)
    assert done.returncode == 0, done.stderr
    expected = digests(whole)
    if pattern != "*.tif":
        expected = {name: digest for name, digest in expected.items() if "tumor_002" in name}
    found = digests(tmp_path)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.mpi
def test_two_ranks_leave_a_slide_that_is_bad_for_one_of_them(toys, slides, tmp_path):
    shutil.copy(slides / "tumor_002.tif", tmp_path / "bad.tif")
    overwrite_tile(tmp_path / "bad.tif", 20, b"\xff\xd9 broken")
    done = run_python(
        ["predict.py", *words(toys / "lesion", tmp_path / "bad.tif", tmp_path / "out")], ranks=2
    )
    assert done.returncode == 1
    assert "bad slide, left out: bad" in done.stderr
    assert not list((tmp_path / "out").glob("bad*"))


@pytest.mark.slow
def test_memory_for_a_slide_of_100_000_pixels_stays_below_4_gb(toys, tmp_path):
    from tests.helpers.large_slide import write_sparse

    write_sparse(tmp_path / "large.tif", 100_000)
    command = [
        "-m",
        "tests.helpers.large_slide",
        *words(toys / "lesion", tmp_path / "large.tif", tmp_path / "out", "--img_size", "1024"),
    ]
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "out", "large")["lesions"] > 0
    assert float(done.stdout.split()[-1]) < 4


def test_the_script_passes_options_and_exit_code_on(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "run_predict.sh"), "--model_path", "no such", "--slide_path", ".", "--output", "x"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "--model_path no such: there is no such folder" in done.stderr
