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
#   sbatch -N 4 run_train.sh --slide_path .. ranks and nodes from the allocation
# NP: ranks (2, or the allocation's tasks). MPIRUN_ARGS: more words for the launcher. MPI=intel: mpiexec.hydra.
# REQUEUE=1: a job that Slurm's signal has stopped goes back into the queue (name a --log_dir).
# MPI, DEVICE, PYTHON: see utils/env.sh.
set -eu
cd "$(dirname "$0")"
[ -f train.py ] || cd "${SLURM_SUBMIT_DIR:?run_train.sh was copied away from its folder}" # sbatch copies it
if [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${MODULES:-}" ] && command -v module >/dev/null 2>&1; then
    module load $MODULES
fi
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

NP=${NP:-${SLURM_NTASKS:-2}}
if [ "$MPI" = intel ] || [ "$MPI" = mpich ]; then
    # Intel MPI's own where its module is loaded (its libmpi.so.12 is first on LD_LIBRARY_PATH then).
    HYDRA=$VENV/bin/mpiexec.hydra
    [ ! -x "${I_MPI_ROOT:-}/bin/mpiexec.hydra" ] || HYDRA=$I_MPI_ROOT/bin/mpiexec.hydra
    [ "$(uname -n)" != "${SLURM_JOB_NODELIST:-$(uname -n)}" ] || export FI_PROVIDER="${FI_PROVIDER:-tcp}"
    set -- "$HYDRA" -np "$NP" ${MPIRUN_ARGS:-} "$VENV/bin/python" -u train.py "$@"
else
    # As root (a container) Open MPI wants to be told twice; more ranks than cores want --oversubscribe.
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    set -- mpirun -np "$NP" --bind-to none --oversubscribe ${MPIRUN_ARGS:-} \
        -x LD_LIBRARY_PATH -x PATH -x TF_USE_LEGACY_KERAS "$VENV/bin/python" -u train.py "$@"
fi
echo "+ $*"
[ -n "${REQUEUE:-}" ] || exec "$@"

# Slurm sends SIGUSR1 to this script when the time is nearly up: on to the launcher, which sends it to the ranks.
"$@" &
launcher=$!
trap 'kill -USR1 $launcher' USR1
trap 'kill -TERM $launcher' TERM
status=0
wait $launcher || status=$?
while kill -0 $launcher 2>/dev/null; do # the wait was ended by a signal
    status=0
    wait $launcher || status=$?
done
if [ $status -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "stopped with a checkpoint: job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
