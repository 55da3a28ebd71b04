#!/bin/sh
#SBATCH --job-name=folds
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Cross-validation: trains one model per fold, predicts the slides that it has not seen, and puts all into one table.
#   sh run_folds.sh --folds 5 --log_dir logs/cv --slide_path slides --label_path masks ...    one fold after the other
#   AT_ONCE=2 NP=4 sh run_folds.sh --folds 5 ...                         two at a time, each on two of the four ranks
#   AT_ONCE=5 sbatch -N 5 --ntasks-per-node=4 run_folds.sh --folds 5 ... five at a time, each on a node of the job
#   sbatch --array=1-5 run_folds.sh --folds 5 --log_dir logs/cv ...      one job per fold
# AT_ONCE is the number of folds that are trained at a time (default 1): the ranks are divided into as many equal groups, and
# a group takes the next fold when it is free. With several, each writes to its file in logs/cv/output. All other options go
# to train.py; NP, RANK_HOSTS, MPI, DEVICE, REQUEUE and others as for run_train.sh. PREDICT holds options for predict.py.
# Stopped at any moment, the same command goes on, also with another AT_ONCE. In an array the last job makes the table.
set -eu
cd "$(dirname "$0")"
[ -f train.py ] || cd "${SLURM_SUBMIT_DIR:?run_folds.sh was copied away from its folder}" # sbatch copies it
. utils/launch.sh
if [ "${AT_ONCE:-1}" != 1 ] && launcher_has_hosts; then
    echo "run_folds.sh: with AT_ONCE name the hosts in RANK_HOSTS=node1:2,node2:2 instead of MPIRUN_ARGS or a file" >&2
    exit 2
fi
load_modules
. utils/env.sh # once for all folds, which find it done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV/bin/python" -m training.folds --at_once "${AT_ONCE:-1}" --ranks "${NP:-$(ranks_of_job 2)}" \
    --hosts "$(hosts_of_job)" "$@"
