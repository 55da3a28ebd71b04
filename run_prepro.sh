#!/bin/sh
#SBATCH --job-name=camelyon-patches
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Sets up the environment if it is not there and cuts slides into patches with masks.
#   sh run_prepro.sh                           the demo: makes slides in CAMELYON17's layout and their patches
#   sh run_prepro.sh --root /data/CAMELYON17 --save_neg
#   mpirun -np 4 sh run_prepro.sh --root ...   the slides are divided over the ranks
#   sbatch run_prepro.sh --root ...            Slurm: a whole node, and as many workers as it has cores
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
# In a Slurm job a worker for each core of the task; without tasks of srun or mpirun, of the whole node.
workers=${SLURM_CPUS_PER_TASK:-}
[ -n "${SLURM_STEP_ID:-}${OMPI_COMM_WORLD_SIZE:-}${PMI_SIZE:-}" ] || workers=${workers:-${SLURM_CPUS_ON_NODE:-}}
[ -z "$workers" ] || set -- --num_threads "$workers" "$@"
exec "$VENV/bin/python" -m CAMELYON17_PREPROCESSING.preprocess "$@"
