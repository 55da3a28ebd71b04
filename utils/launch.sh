# shellcheck shell=sh
# Starts a program on NP ranks. Sourced by the run scripts before utils/env.sh, whose variables `launch` reads.
#
#   NP            number of ranks (default: the Slurm allocation's tasks, else the script's own default)
#   MPIRUN_ARGS   more words for mpirun or mpiexec.hydra
#   MODULES       environment modules to load inside of a Slurm job, before the environment is set up

# Inside of a job the login shell's modules may be gone.
load_modules() {
    if [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${MODULES:-}" ] && command -v module >/dev/null 2>&1; then
        # shellcheck disable=SC2086 # several names
        module load $MODULES
    fi
}

# launch PROGRAM OPTIONS...: becomes the launcher (by exec), so that signals to this process reach it. LAUNCH_PREFIX is a
# word before it.
launch() {
    set -- "$VENV/bin/python" -u "$@"
    # shellcheck disable=SC2086 # MPIRUN_ARGS are several words
    if [ "$MPI" = intel ] || [ "$MPI" = mpich ]; then
        # Intel MPI's own launcher where its module is loaded (its libmpi.so.12 is first on LD_LIBRARY_PATH then).
        launch_hydra=$VENV/bin/mpiexec.hydra
        [ ! -x "${I_MPI_ROOT:-}/bin/mpiexec.hydra" ] || launch_hydra=$I_MPI_ROOT/bin/mpiexec.hydra
        # On one node Intel MPI needs no fabric, and its default one may not be there.
        [ "$(uname -n)" != "${SLURM_JOB_NODELIST:-$(uname -n)}" ] || export FI_PROVIDER="${FI_PROVIDER:-tcp}"
        set -- "$launch_hydra" -np "$NP" ${MPIRUN_ARGS:-} "$@"
    elif [ "$MPI" = system ] && mpirun --version 2>&1 | grep -q -i -e hydra -e 'intel(r) mpi'; then
        # MPICH's relatives pass the environment on, and refuse Open MPI's words.
        set -- mpirun -np "$NP" ${MPIRUN_ARGS:-} "$@"
    else
        # As root (a container) Open MPI must be told twice; more ranks than cores need --oversubscribe.
        [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        set -- mpirun -np "$NP" --bind-to none --oversubscribe ${MPIRUN_ARGS:-} \
            -x LD_LIBRARY_PATH -x PATH -x PYTHONPATH -x TF_USE_LEGACY_KERAS "$@"
    fi
    echo "+ $*"
    exec ${LAUNCH_PREFIX:-} "$@"
}
