#!/bin/sh
#SBATCH --job-name=predict-slides
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=12:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Sets up the environment if it is not there and predicts whole slides.
#   sh run_predict.sh                  the demo: the newest demo model of run_train.sh on the demo's validation slides
#   sh run_predict.sh --model_path logs/run --slide_path slides --output predictions
#   NP=4 sh run_predict.sh ...         ranks (1, or the allocation's tasks): each takes slides, or parts of them
#   sbatch -N 4 run_predict.sh ...     Slurm: ranks and nodes from the allocation
# NP, MPIRUN_ARGS, MODULES: see utils/launch.sh. MPI=intel: mpiexec.hydra. MPI, DEVICE, PYTHON: see utils/env.sh.
# Stopped at any moment, the same command goes on.
set -eu
from=$PWD
cd "$(dirname "$0")"
[ -f predict.py ] || cd "${SLURM_SUBMIT_DIR:?run_predict.sh was copied away from its folder}" # sbatch copies it
top=$PWD
if [ $# -eq 0 ]; then
    # Their names end in the time: the last one is the newest.
    for run in logs/demo-*/; do [ ! -f "${run}model/saved_model.pb" ] || model=${run%/}; done
    if [ -z "${model:-}" ]; then
        echo "run_predict.sh: no demo model in $top/logs: train one first with sh run_train.sh, or name a --model_path" >&2
        exit 2
    fi
fi
. utils/launch.sh
load_modules
. utils/env.sh

# Paths are as the user typed them.
cd "$from"
export PYTHONPATH="$top${PYTHONPATH:+:$PYTHONPATH}"
if [ $# -eq 0 ]; then
    cd "$top"
    "$VENV/bin/python" -m utils.demo_slides --output data/demo
    set -- --model_path "$model" --slide_path data/demo/validation/slides --output "predictions/${model##*/}"
fi

NP=${NP:-$(ranks_of_job 1)}
if [ "$NP" -gt 1 ] || [ -n "${RANK_HOSTS:-}${HOST_SHARE:-}" ]; then launch "$top/predict.py" "$@"; fi
set -- "$VENV/bin/python" -u "$top/predict.py" "$@" # one process needs no launcher
echo "+ $*"
exec "$@"
