#!/bin/sh
#SBATCH --job-name=camelyon-patches
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Sets up the environment if it is not there and cuts slides into patches with masks.
#   sh run_prepro.sh                           the demo: makes slides in CAMELYON17's layout and their patches
#   sh run_prepro.sh --root /data/CAMELYON17 --save_neg
#   mpirun -np 4 sh run_prepro.sh --root ...   the slides are divided over the ranks
#   sbatch run_prepro.sh --root ...            Slurm: as many workers as the task has cores
# MPI, DEVICE, PYTHON: see utils/env.sh. Stopped at any moment, the same command goes on.
set -eu
from=$PWD
cd "$(dirname "$0")"
[ -f train.py ] || cd "${SLURM_SUBMIT_DIR:?run_prepro.sh was copied away from its folder}" # sbatch copies it
top=$PWD
. utils/launch.sh
load_modules
. utils/env.sh

# Paths are as the user typed them.
cd "$from"
export PYTHONPATH="$top${PYTHONPATH:+:$PYTHONPATH}"
if [ $# -eq 0 ]; then
    cd "$top"
    "$VENV/bin/python" -m utils.demo_slides --layout camelyon17 --output data/demo17
    set -- --root data/demo17 --patch_size 256 --save_neg --save_png
fi
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || set -- --num_threads "$SLURM_CPUS_PER_TASK" "$@"
exec "$VENV/bin/python" -m CAMELYON17_PREPROCESSING.preprocess "$@"
