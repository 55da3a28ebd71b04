# shellcheck shell=sh
# Starts a program on NP ranks. Sourced by the run scripts before utils/env.sh, whose variables `launch` reads.
#
#   NP            number of ranks (default: those of the Slurm, PBS or LSF job, else the script's own default)
#   RANK_HOSTS    the hosts of the ranks, "HOST:RANKS,HOST:RANKS" (default: those of the job, else this one)
#   HOST_SHARE    "2/4": each host's cores and GPUs are shared by four such runs, of which this is the second
#   MPIRUN_ARGS   more words for mpirun or mpiexec.hydra
#   MODULES       environment modules to load inside of a job, before the environment is set up

# Inside of a job the login shell's modules may be gone.
load_modules() {
    if [ -n "${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}" ] && [ -n "${MODULES:-}" ] && command -v module >/dev/null 2>&1; then
        # shellcheck disable=SC2086 # several names
        module load $MODULES
    fi
}

# Lists RANK_HOSTS, or the hosts of a PBS or LSF job as "HOST:RANKS,HOST:RANKS"; nothing elsewhere, for the launchers ask
# Slurm themselves.
hosts_of_job() {
    if [ -n "${RANK_HOSTS:-}" ]; then
        echo "$RANK_HOSTS"
        return
    fi
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        :
    elif [ -f "${PBS_NODEFILE:-}" ]; then
        cat "$PBS_NODEFILE" # a line for each rank
    elif [ -f "${LSB_DJOB_HOSTFILE:-}" ]; then
        cat "$LSB_DJOB_HOSTFILE"
    elif [ -n "${LSB_MCPU_HOSTS:-}" ]; then # "HOST RANKS HOST RANKS"
        echo "$LSB_MCPU_HOSTS" | awk '{ for (i = 1; i < NF; i += 2) for (n = 0; n < $(i + 1); n++) print $i }'
    fi | awk 'NF { if (!ranks[$1]++) host[++hosts] = $1 }
        END { for (i = 1; i <= hosts; i++) printf "%s%s:%d", (i > 1 ? "," : ""), host[i], ranks[host[i]] }'
}

# ranks_of_job NUMBER: the ranks that the job was given; NUMBER outside of a job.
ranks_of_job() {
    ranks=$(hosts_of_job | tr , '\n' | awk -F : 'NF { sum += NF > 1 ? $2 : 1 } END { print sum ? sum : "" }')
    echo "${ranks:-${SLURM_NTASKS:-$1}}"
}

# Whether the launcher is told of hosts in its own way.
launcher_has_hosts() {
    case " ${MPIRUN_ARGS:-}" in *' -'*host* | *' -f '* | *' -'*machine* | *' -'*config*) return 0 ;; esac
    [ -n "${HYDRA_HOST_FILE:-}${I_MPI_HYDRA_HOST_FILE:-}" ]
}

# Whether all ranks are on this host, for sure.
is_on_one_host() {
    ! launcher_has_hosts && [ -z "${RANK_HOSTS:-}" ] || return 1
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        [ "${SLURM_JOB_NUM_NODES:-0}" = 1 ]
    else
        case $(hosts_of_job) in *,*) return 1 ;; esac
    fi
}

# launch PROGRAM OPTIONS...: becomes the launcher (by exec), so that signals to this process reach it. LAUNCH_PREFIX is a
# word before it. With LAUNCH_SHIELDED a SIGTERM does not reach Open MPI's launcher and its daemons: they would kill the
# ranks a second later, but a batch system sends it to the ranks as well, which then write a checkpoint.
launch() {
    set -- "$VENV/bin/python" -u "$@"
    [ -z "${HOST_SHARE:-}" ] || set -- "$VENV/bin/python" -m utils.ranks.host_share "$HOST_SHARE" "$@"
    launch_hosts=$(hosts_of_job)
    # With `sbatch --export=NONE` Slurm would start the daemons on the other hosts without any environment.
    unset SLURM_EXPORT_ENV
    # And without this the daemons of one launcher would wait until those of another one, beside it in the job, have ended.
    export SLURM_OVERLAP=1
    # shellcheck disable=SC2086 # MPIRUN_ARGS are several words
    if [ "$MPI" = intel ] || [ "$MPI" = mpich ]; then
        # Intel MPI's own launcher where its module is loaded (its libmpi.so.12 is first on LD_LIBRARY_PATH then).
        launch_hydra=$VENV/bin/mpiexec.hydra
        [ ! -x "${I_MPI_ROOT:-}/bin/mpiexec.hydra" ] || launch_hydra=$I_MPI_ROOT/bin/mpiexec.hydra
        # On one host Intel MPI needs no fabric, and its default one may not be there.
        ! is_on_one_host || export FI_PROVIDER="${FI_PROVIDER:-tcp}"
        launch_machinefile
        set -- "$launch_hydra" -np "$NP" ${launch_hosts:+-machinefile /dev/fd/3} ${MPIRUN_ARGS:-} "$@"
    elif [ "$MPI" = system ] && mpirun --version 2>&1 | grep -q -i -e hydra -e 'intel(r) mpi'; then
        # MPICH's relatives pass the environment on, and refuse Open MPI's words.
        launch_machinefile
        set -- mpirun -np "$NP" ${launch_hosts:+-machinefile /dev/fd/3} ${MPIRUN_ARGS:-} "$@"
    else
        launch_openmpi "$@"
        return
    fi
    launch_now "$@"
}

# Opens a list of the job's hosts for mpiexec.hydra, as file 3. Of a list in its command line Intel MPI's would not read the
# numbers of ranks, and fill the cores of one host after the other. It takes no pipe, so this is a file without a name.
launch_machinefile() {
    [ -n "$launch_hosts" ] || return 0
    echo "hosts: $launch_hosts"
    launch_file=$(mktemp)
    echo "$launch_hosts" | tr , '\n' >"$launch_file"
    exec 3<"$launch_file"
    rm "$launch_file"
}

launch_openmpi() {
    # By its absolute path it finds its daemon on the other hosts, whatever their PATH is.
    launch_mpirun=$VENV/bin/mpirun
    [ "$MPI" != system ] || launch_mpirun=$(command -v mpirun)
    # As root (a container) Open MPI must be told twice; more ranks than cores need --oversubscribe.
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    # A host that vanishes is noticed after 3 to 4 minutes instead of 3 to 8: asked every minute, given up after 3 more. Rank 0
    # names it after a minute, and needs time for a checkpoint.
    is_on_one_host || export OMPI_MCA_oob_tcp_keepalive_time="${OMPI_MCA_oob_tcp_keepalive_time:-60}"
    for launch_name in TF_ENABLE_ONEDNN_OPTS CACHE_DIR CAMELYON_ROOT XDG_CACHE_HOME OMP_NUM_THREADS TF_USE_LEGACY_KERAS \
        PYTHONPATH PATH LD_LIBRARY_PATH; do
        eval "[ -z \"\${$launch_name+is set}\" ]" || set -- -x "$launch_name" "$@"
    done
    # The job's own way to start processes on its other hosts.
    for launch_agent in pbs_tmrsh blaunch; do
        [ -z "$launch_hosts" ] || ! command -v $launch_agent >/dev/null 2>&1 || set -- -mca plm_rsh_agent $launch_agent "$@"
    done
    # shellcheck disable=SC2086 # MPIRUN_ARGS are several words
    set -- -np "$NP" --bind-to none --oversubscribe ${launch_hosts:+-host "$launch_hosts"} ${MPIRUN_ARGS:-} "$@"
    if [ -n "${LAUNCH_SHIELDED:-}" ]; then
        launch_shield="$VENV/bin/python $PWD/utils/ranks/shielded.py"
        # Open MPI takes a command apart at its spaces; version 5 has another daemon.
        case $launch_shield in
        *' '*' '*) ;;
        *) [ ! -x "${launch_mpirun%/*}/orted" ] || set -- -mca orte_launch_agent "$launch_shield ${launch_mpirun%/*}/orted" "$@" ;;
        esac
        set -- "$VENV/bin/python" utils/ranks/shielded.py "$launch_mpirun" "$@"
    else
        set -- "$launch_mpirun" "$@"
    fi
    launch_now "$@"
}

launch_now() {
    echo "+ $*"
    exec ${LAUNCH_PREFIX:-} "$@"
}

# requeue_job STATUS: puts a job of Slurm back into the queue with REQUEUE, if what has ended so goes on where it was.
requeue_job() {
    [ -n "${REQUEUE:-}" ] && [ -n "${SLURM_JOB_ID:-}" ] || return 0
    case $1 in
    75) ;;
    # A rank hung, or mpirun lost a host: not for ever, if that happens again and again.
    76 | 205) [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ] || return 0 ;;
    *) return 0 ;;
    esac
    echo "job $SLURM_JOB_ID goes back into the queue, to go on from its last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
}
