"""run_folds.sh with stand-ins for the scripts that it starts: which folds it runs where, how it ends and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.interrupting import interruptible

ROOT = Path(__file__).resolve().parents[1]
# TRAIN and PREDICTS are commands of a test, which may ask for the number of the fold.
STANDS_IN = r"""#!/bin/sh
for number in USR1 INT TERM; do trap "echo '{name} got $number' >>\"\$NOTES\"; exit $STOPPED" $number; done
fold=$(echo "$*" | sed 's/.*fold_\([0-9]*\).*/\1/')
echo "{name} $*" >>"$NOTES"
where="NP=${{NP:-}} RANK_HOSTS=${{RANK_HOSTS:-}} HOST_SHARE=${{HOST_SHARE:-}} REQUEUE=${{REQUEUE:-}}"
echo "{name} $fold: $where" >>"$NOTES.where"
echo "output of {name} $fold"
eval "${{{variable}:-}}"
"""
SCONTROL = """#!/bin/sh
[ "$2" = hostnames ] && printf 'node1\\nnode2\\n' || echo "scontrol $*" >>"$NOTES"
"""
TABLE = """
import os, sys
with open(os.environ["NOTES"], "a") as notes:
    print("table", *sys.argv[1:], file=notes)
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
}
WAITS = "sleep 30 >/dev/null 2>&1 & wait"
WORDS = ["--folds", "3", "--log_dir", "cv"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    for name in ("utils", "evaluation", "bin"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "run_folds.sh", folder)
    (folder / "training").symlink_to(ROOT / "training")
    for path in (ROOT / "utils").iterdir():
        (folder / "utils" / path.name).symlink_to(path)
    (folder / "train.py").touch()
    (folder / "evaluation/folds.py").write_text(TABLE)
    programs = {
        "run_train.sh": STANDS_IN.format(name="run_train", variable="TRAIN"),
        "run_predict.sh": STANDS_IN.format(name="run_predict", variable="PREDICTS"),
        "bin/python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "bin/scontrol": SCONTROL,
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "utils/env.sh").unlink()
    (folder / "utils/env.sh").write_text(f'VENV="{folder}"\necho set-up >>"$NOTES.set-up"\n')
    (folder / "hosts").write_text("a\na\nb\nb\n")
    return folder


@pytest.fixture
def two_hosts(clone: Path) -> dict[str, str]:
    """The variables of a job of PBS on two hosts, with two ranks on each."""
    return {"PBS_NODEFILE": str(clone / "hosts"), "AT_ONCE": "2"}


def start(
    clone: Path, *words: str, start_new_session: bool = False, **environment: str
) -> subprocess.Popen[str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    env = {**others, "PATH": path, "NOTES": str(clone / "notes"), "STOPPED": "75", **environment}
    pipe = subprocess.PIPE
    command = ["sh", str(clone / "run_folds.sh"), *words]
    with interruptible():
        return subprocess.Popen(
            command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=start_new_session
        )


def run(clone: Path, *words: str, **environment: str) -> tuple[int, list[str], str, str]:
    """Return the exit code, the notes of the stand-ins, and what is on the terminal: output and errors."""
    (clone / "notes").unlink(missing_ok=True)
    out, errors = (process := start(clone, *words, **environment)).communicate(timeout=60)
    return process.returncode, notes_of(clone), out, errors


def notes_of(clone: Path, more: str = "") -> list[str]:
    path = clone / f"notes{more}"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_fold_after_the_other_and_then_the_table(clone):
    words = ["--folds", "2", "--log_dir", "cv", "--slide_path", "my slides", "--seed=1"]
    code, notes, out, _ = run(clone, *words, PREDICT="--tta --batch_size 2")
    assert code == 0
    predict = "run_predict --model_path {0} --slide_path {0}/splits.json --output {0}/predictions"
    assert notes == [
        "run_train --slide_path my slides --seed=1 --folds 2 --fold 1 --log_dir cv/fold_1",
        f"{predict.format('cv/fold_1')} --tta --batch_size 2",
        "run_train --slide_path my slides --seed=1 --folds 2 --fold 2 --log_dir cv/fold_2",
        f"{predict.format('cv/fold_2')} --tta --batch_size 2",
        "table --log_dir cv",
    ]
    # All is as the scripts find it by themselves, and on the terminal.
    assert {line.partition(":")[2] for line in notes_of(clone, ".where")} == {
        " NP= RANK_HOSTS= HOST_SHARE= REQUEUE="
    }
    assert "output of run_train 2" in out
    assert notes_of(clone, ".set-up") == ["set-up"]


def test_several_at_a_time_are_divided_over_the_hosts(clone, two_hosts):
    """Each waits for the other one."""
    code, notes, out, _ = run(
        clone,
        *WORDS[2:],
        "--folds=2",
        **two_hosts,
        TRAIN="touch at$fold; until [ -e at1 ] && [ -e at2 ]; do sleep 0.02; done",
    )
    assert (code, notes[-1]) == (0, "table --log_dir cv")
    for fold, host in ((1, "a"), (2, "b")):
        for script in ("run_train", "run_predict"):
            where = f"{script} {fold}: NP=2 RANK_HOSTS={host}:2 HOST_SHARE= REQUEUE="
            assert where in notes_of(clone, ".where")
        assert (clone / f"cv/output/fold_{fold}.log").read_text() == (
            f"output of run_train {fold}\noutput of run_predict {fold}\n"
        )
        assert f"fold {fold} of 2: 2 ranks on {host}, output in cv/output/fold_{fold}.log" in out
    assert "output of" not in out
    assert len(out.splitlines()) == 6  # begins, is trained, is finished


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
def test_several_on_this_machine_share_it(clone):
    assert run(clone, *WORDS, AT_ONCE="2", NP="4")[0] == 0
    found = notes_of(clone, ".where")
    for fold in (1, 2):
        assert f"run_train {fold}: NP=2 RANK_HOSTS= HOST_SHARE={fold}/2 REQUEUE=" in found


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (SLURM, {"RANK_HOSTS=node1:2 HOST_SHARE=", "RANK_HOSTS=node2:2 HOST_SHARE="}),
        ({"LSB_MCPU_HOSTS": "a 2 b 2"}, {"RANK_HOSTS=a:2 HOST_SHARE=", "RANK_HOSTS=b:2 HOST_SHARE="}),
        ({"RANK_HOSTS": "c:1,d:1", "NP": "4"}, {"RANK_HOSTS=c:1 HOST_SHARE=", "RANK_HOSTS=d:1 HOST_SHARE="}),
    ],
)
def test_the_hosts_are_those_of_any_batch_system(clone, job, expected):
    assert run(clone, *WORDS, AT_ONCE="2", **job)[0] == 0
    found = {line.partition("NP=2 ")[2].removesuffix(" REQUEUE=") for line in notes_of(clone, ".where")}
    assert found == expected


def test_a_group_that_is_free_takes_the_next_fold(clone, two_hosts):
    """Fold 1 lasts until fold 4 has been trained."""
    code, _, _, _ = run(
        clone, "--folds", "5", "--log_dir", "cv", **two_hosts,
        TRAIN='[ $fold != 1 ] || until [ -e done4 ]; do sleep 0.02; done; touch done$fold',
    )  # fmt: skip
    assert code == 0
    host = {line.split()[1]: line.split("RANK_HOSTS=")[1][0] for line in notes_of(clone, ".where")}
    assert {fold: host[f"{fold}:"] for fold in range(1, 5)} == {1: "a", 2: "b", 3: "b", 4: "b"}


def test_a_job_of_an_array_takes_its_fold_and_the_table_may_wait(clone):
    code, notes, _, _ = run(clone, "--folds=3", "--log_dir=cv", SLURM_ARRAY_TASK_ID="2")
    assert code == 0
    assert [line.split()[0] for line in notes] == ["run_train", "run_predict", "table"]
    assert "--fold 2 --log_dir cv/fold_2" in notes[0]
    assert notes[2] == "table --log_dir cv --if_finished"


def test_an_error_ends_it_but_bad_slides_do_not(clone):
    code, notes, _, errors = run(clone, *WORDS, TRAIN="exit 3")
    assert (code, len(notes)) == (3, 1)
    assert errors == "run_folds.sh: fold 1 failed with exit code 3\n"
    code, notes, _, _ = run(clone, *WORDS, PREDICTS="exit 1")
    assert (code, len(notes)) == (0, 7)
    assert run(clone, *WORDS, PREDICTS="exit 2")[0] == 2
    assert run(clone, *WORDS, TRAIN="kill -KILL $$")[0] == 137


def test_a_fold_that_fails_leaves_the_one_beside_it_alone_and_no_other_begins(clone, two_hosts):
    code, notes, out, errors = run(
        clone, *WORDS, **two_hosts,
        TRAIN="[ $fold = 1 ] || { echo a reason; touch failed; exit 3; }; "
        "until [ -e failed ]; do sleep 0.02; done; sleep 1",
    )  # fmt: skip
    assert code == 3
    assert sorted(line.split(" --")[0] for line in notes) == ["run_predict", "run_train", "run_train"]
    assert "fold 1 is finished" in out
    assert "fold 2 failed with exit code 3, the end of cv/output/fold_2.log:\n" in errors
    assert "    a reason\nrun_folds.sh: fold 1 will be finished, no other one is started" in errors
    code, notes, _, _ = run(clone, *WORDS, **two_hosts)
    assert (code, notes[-1]) == (0, "table --log_dir cv")


def test_a_fold_that_stops_by_its_time_limit_ends_all_with_its_code(clone, two_hosts):
    code, notes, out, errors = run(clone, *WORDS, **two_hosts, TRAIN="exit 75")
    assert (code, len(notes), errors) == (75, 2, "")
    assert "fold 2 has stopped after 0:00:00, the same command goes on" in out


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGUSR1, "USR1", 75), (signal.SIGTERM, "TERM", 75), (signal.SIGINT, "INT", 130)],
)
@pytest.mark.parametrize("at_once", ["1", "2"])
@pytest.mark.parametrize("script", ["run_train", "run_predict"])
def test_signals_reach_all_runs_and_no_other_begins(clone, two_hosts, number, name, code, at_once, script):
    variables = {
        **two_hosts,
        "AT_ONCE": at_once,
        {"run_train": "TRAIN", "run_predict": "PREDICTS"}[script]: WAITS,
    }
    process = start(clone, *WORDS, **variables, STOPPED=str(code))
    wait_until(lambda: sum(line.startswith(script) for line in notes_of(clone)) == int(at_once))
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "")
    assert notes_of(clone)[-int(at_once) :] == [f"{script} got {name}"] * int(at_once)


def test_ctrl_c_reaches_a_run_as_often_as_it_is_pressed(clone, two_hosts):
    """The second one ends run_train.sh at once. A terminal sends it to all processes in the foreground."""
    trap = 'trap \'echo "INT $fold" >>"$NOTES"; n=$n+; [ $n != ++ ] || exit 130\' INT; n=; while :; do sleep 0.05; done'
    process = start(clone, *WORDS, **two_hosts, TRAIN=trap, start_new_session=True)
    for pressed in range(3):
        wait_until(lambda pressed=pressed: len(notes_of(clone)) == 2 * (pressed + 1))
        time.sleep(0.2)
        if pressed < 2:
            os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert sorted(notes_of(clone)[2:]) == ["INT 1", "INT 1", "INT 2", "INT 2"]
    assert (
        "SIGINT: the folds that run stop with a checkpoint after their steps; Ctrl-C again ends them at once"
        in out
    )


@pytest.mark.parametrize(
    ("number", "script", "again"),
    [
        (signal.SIGUSR1, "run_train", True),
        (signal.SIGUSR1, "run_predict", True),
        (signal.SIGTERM, "run_train", False),
    ],
)
def test_a_job_goes_back_into_the_queue_once_when_all_have_stopped(clone, number, script, again):
    variable = {"run_train": "TRAIN", "run_predict": "PREDICTS"}[script]
    process = start(clone, *WORDS, AT_ONCE="2", REQUEUE="1", **SLURM, **{variable: WAITS})
    wait_until(lambda: sum(line.startswith(script) for line in notes_of(clone)) == 2)
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert [line for line in notes_of(clone) if "scontrol" in line] == ["scontrol requeue 7"] * again
    assert all(line.endswith("REQUEUE=") for line in notes_of(clone, ".where"))


def test_a_job_whose_rank_hung_goes_back_into_the_queue(clone):
    assert run(clone, *WORDS, REQUEUE="1", **SLURM, TRAIN="exit 76")[1][-1] == "scontrol requeue 7"
    assert "scontrol" not in run(clone, *WORDS, REQUEUE="1", **SLURM, TRAIN="exit 1")[1][-1]
    assert "scontrol" not in run(clone, *WORDS, **SLURM, TRAIN="exit 76")[1][-1]


def test_what_ignores_a_signal_goes_on_ignoring_it(clone):
    """As with nohup."""
    (clone / "nohup.sh").write_text(f"trap '' HUP\nexec sh '{clone}/run_folds.sh' \"$@\"\n")
    env = {**os.environ, "NOTES": str(clone / "notes"), "STOPPED": "75", "TRAIN": "sleep 0.5"}
    process = subprocess.Popen(["sh", str(clone / "nohup.sh"), *WORDS], env=env, stdout=subprocess.DEVNULL)
    wait_until(lambda: bool(notes_of(clone)))
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--log_dir", "cv"], {}, "the following arguments are required: --folds"),
        (["--folds", "3"], {}, "the following arguments are required: --log_dir"),
        (["--folds", "1", "--log_dir", "cv"], {}, "argument --folds: 1 is less than 2"),
        ([*WORDS, "--fold", "1"], {}, "--fold is given by this script"),
        ([*WORDS, "--debug"], {}, "--debug is for one fold"),
        (WORDS, {"SLURM_ARRAY_TASK_ID": "4"}, "job 4 of the array, but --folds 3: --array=1-3"),
        (WORDS, {"AT_ONCE": "x"}, "AT_ONCE=x is no number from 1 on"),
        (WORDS, {"AT_ONCE": "4", "NP": "4"}, "AT_ONCE=4 is more than --folds 3"),
        (WORDS, {"AT_ONCE": "2", "SLURM_ARRAY_TASK_ID": "1"}, "each job of an array has one fold"),
        (WORDS, {"AT_ONCE": "2", "HOST_SHARE": "1/2"}, "AT_ONCE gives each fold its HOST_SHARE"),
        (WORDS, {"AT_ONCE": "3", "NP": "4"}, "4 ranks cannot be divided into 3 equal groups. AT_ONCE can be 1 or 2"),
        (WORDS, {"AT_ONCE": "3", **SLURM}, "4 ranks cannot be divided into 3 equal groups. AT_ONCE can be 1 or 2"),
        (WORDS, {"AT_ONCE": "2", "MPIRUN_ARGS": "-host a:2,b:2"}, "with AT_ONCE name the hosts in RANK_HOSTS="),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_starts(clone, words, variables, said):
    code, notes, _, errors = run(clone, *words, **variables)
    assert (code, notes) == (2, [])
    assert said in errors
    assert not (clone / "cv").exists()


def test_more_folds_at_a_time_than_cores_are_refused(clone):
    cores = len(os.sched_getaffinity(0))
    words = ["--folds", str(cores + 1), "--log_dir", "cv"]
    code, notes, _, errors = run(clone, *words, AT_ONCE=str(cores + 1), NP=str(cores + 1))
    assert (code, notes) == (2, [])
    assert f"which has {cores} cores for them" in errors
