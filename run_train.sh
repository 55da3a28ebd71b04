#!/bin/sh
#SBATCH --job-name=extended-fov
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Sets up the environment if it is not there and trains with mpirun or mpiexec.hydra.
#   sh run_train.sh                          the demo: makes its slides, trains, validates, exports
#   NP=4 sh run_train.sh --slide_path ...    anything else goes to train.py
#   sh run_train.sh --tensorboard [DIR]      TensorBoard of the runs in logs, or in DIR
#   sbatch -N 4 run_train.sh --slide_path .. takes ranks and hosts from the job; qsub and bsub: see docs/clusters.md
# NP is the number of ranks (default: those of the job, else 2); MPIRUN_ARGS, MODULES: see utils/launch.sh.
# MPI=intel starts the ranks with mpiexec.hydra; MPI, DEVICE, PYTHON: see utils/env.sh.
# REQUEUE=1 puts a job that Slurm's signal has stopped, or that lost a rank or a host, back into the queue (name a --log_dir).
set -eu
cd "$(dirname "$0")"
[ -f train.py ] || cd "${SLURM_SUBMIT_DIR:?run_train.sh was copied away from its folder}" # sbatch copies it
. utils/launch.sh
load_modules
. utils/env.sh

if [ "${1:-}" = --tensorboard ]; then
    export TF_CPP_MIN_LOG_LEVEL=2 # TensorFlow's own messages
    exec "$VENV/bin/python" -m tensorboard.main --logdir "${2:-logs}"
fi
if [ $# -eq 0 ]; then
    "$VENV/bin/python" -m utils.demo_slides --output data/demo
    stamp=$(date +%Y%m%d-%H%M%S)
    set -- --slide_path data/demo/training/slides --label_path data/demo/training/masks \
        --valid_slide_path data/demo/validation/slides --valid_label_path data/demo/validation/masks \
        --data_sampler surf --img_size 256 --batch_size 4 --num_steps 640 --freeze_bn 0.25 \
        --log_every 80 --validate_every 640 --validation_patches 160 --log_dir "logs/demo-$stamp"
fi

NP=${NP:-$(ranks_of_job 2)}
export NP PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# The launcher has a session of its own, so that Ctrl-C comes to this script only: Open MPI's kills its ranks a second
# after it, and after SIGTERM. What ends the run goes to the launcher as SIGUSR1 instead, which it sends to the ranks.
LAUNCH_SHIELDED=yes LAUNCH_PREFIX=$(command -v setsid || true)
launch train.py "$@" &
launcher=$! interrupts=0 stops=0 signalled=0 ended=
interrupt() {
    signalled=1 interrupts=$((interrupts + 1))
    if [ $interrupts -gt 1 ]; then
        kill -INT $launcher || true # for Open MPI, whose SIGTERM is blocked
        kill -TERM $launcher || true
    else
        echo "Ctrl-C: the run stops with a checkpoint after this step or validation; Ctrl-C again ends it at once"
        kill -USR1 $launcher || true # it may have ended
    fi
}
stop() {
    signalled=1 stops=$((stops + 1))
    [ $stops -gt 1 ] || echo "the run stops with a checkpoint after this step or validation"
    kill -USR1 $launcher || true
}
trap interrupt INT
trap stop USR1
trap 'ended=yes && stop' TERM HUP # scancel: the job is not to come back
# A SIGTERM for the launcher itself waits there (bit 15 of what is pending), for it is blocked.
while sleep 1 && kill -0 $launcher; do
    case $(sed -n 's/^ShdPnd:[^0-9a-f]*//p' /proc/$launcher/status) in *[4-7c-f]???) kill -USR1 $launcher && break ;; esac
done >/dev/null 2>&1 &
watch=$!
while
    signalled=0 status=0
    wait $launcher || status=$?
    [ $signalled -eq 1 ] && [ $status -gt 128 ] # a signal ends the wait, not the launcher
do :; done
kill $watch 2>/dev/null || true
[ $interrupts -eq 0 ] || exit 130
[ -n "$ended" ] || requeue_job $status
exit $status
