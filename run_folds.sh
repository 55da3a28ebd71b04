#!/bin/sh
#SBATCH --job-name=folds
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
# Cross-validation: trains one model per fold, predicts the slides that it has not seen, and puts all into one table.
#   sh run_folds.sh --folds 5 --log_dir logs/cv --slide_path slides --label_path masks ...    one fold after the other
#   sbatch --array=1-5 run_folds.sh --folds 5 --log_dir logs/cv ...                           one job per fold
# All other options go to train.py; NP, MPI, DEVICE, REQUEUE and others as for run_train.sh. PREDICT holds options for
# predict.py. Stopped at any moment, the same command goes on. In an array the last job makes the table.
set -eu
cd "$(dirname "$0")"
[ -f train.py ] || cd "${SLURM_SUBMIT_DIR:?run_folds.sh was copied away from its folder}" # sbatch copies it

fail() {
    echo "run_folds.sh: $1" >&2
    exit 2
}
folds="" log_dir="" name=""
for word in "$@"; do
    case $word in
    --folds=*) folds=${word#*=} ;;
    --log_dir=*) log_dir=${word#*=} ;;
    --fold | --fold=*) fail "--fold is given by this script: leave it out (run_train.sh takes it)" ;;
    --debug) fail "--debug is for one fold: sh run_train.sh --debug --folds N --fold 1 ..." ;;
    esac
    case $name in
    --folds) folds=$word ;;
    --log_dir) log_dir=$word ;;
    esac
    name=$word
done
[ -n "$folds" ] || fail "--folds is missing, the number of folds"
[ -n "$log_dir" ] || fail "--log_dir is missing, the folder for all folds"
[ "$folds" -ge 2 ] 2>/dev/null || fail "--folds $folds is no number from 2 on"
first=1 last=$folds
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    first=$SLURM_ARRAY_TASK_ID last=$SLURM_ARRAY_TASK_ID
    [ "$first" -ge 1 ] && [ "$first" -le "$folds" ] || fail "job $first of the array, but --folds $folds: --array=1-$folds"
fi

# Runs a script whose signals are those of this one: Slurm sends SIGUSR1 to this script only.
child="" interrupted=0 signalled=0 stopped=0
forward() {
    signalled=1
    [ -z "$child" ] || kill "-$1" "$child" 2>/dev/null || :
}
trap 'interrupted=1; forward USR1' INT
trap 'stopped=1; forward USR1' USR1
trap 'forward TERM' TERM HUP
run() {
    sh "$@" &
    child=$!
    while
        signalled=0 status=0
        wait "$child" || status=$?
        [ $signalled -eq 1 ] && [ $status -gt 128 ] # a signal ends the wait, not the child
    do :; done
    child=""
    [ $interrupted -eq 0 ] || exit 130
    return $status
}

fold=$first
while [ "$fold" -le "$last" ]; do
    folder=$log_dir/fold_$fold
    echo "run_folds.sh: fold $fold of $folds"
    run run_train.sh "$@" --fold "$fold" --log_dir "$folder" || exit $?
    status=0 # bad slides, exit code 1, are named and do not end the others
    # shellcheck disable=SC2086 # PREDICT are several words
    run run_predict.sh --model_path "$folder" --slide_path "$folder/splits.json" --output "$folder/predictions" \
        ${PREDICT:-} || status=$?
    if [ $status -gt 1 ] && [ $stopped -eq 1 ]; then # by Slurm; a prediction goes on where it was
        [ -z "${REQUEUE:-}" ] || [ -z "${SLURM_JOB_ID:-}" ] || scontrol requeue "$SLURM_JOB_ID"
        exit 75
    fi
    [ $status -le 1 ] || exit $status
    fold=$((fold + 1))
done
. utils/env.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    exec "$VENV/bin/python" -m evaluation.folds --log_dir "$log_dir" --if_finished
fi
exec "$VENV/bin/python" -m evaluation.folds --log_dir "$log_dir"
