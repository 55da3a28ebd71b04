# shellcheck shell=sh
# How Horovod is compiled. Sourced by utils/env.sh, which keeps the wheel by the digest of this file: whoever
# changes the recipe gets another wheel, and clones with the old one keep theirs.

# Horovod 0.28.1 compiles unedited against TensorFlow 2.21, but for the XLA headers that moved. Only xla_mpi_ops.cc
# includes them, for operations that are opt-in (HOROVOD_ENABLE_XLA_OPS) and not used here. So this folder comes
# before TensorFlow's: its headers are empty, and the first one turns that file's own code off. With GPUs mpi_ops.cc
# calls AsGpuStreamValue, which TensorFlow 2.21 does not have any more: it would compile, and not load.
horovod_headers() {
    horovod_to=$1/tensorflow/compiler
    mkdir -p "$horovod_to/tf2xla" "$horovod_to/xla/client" "$horovod_to/xla/service" \
        "$horovod_to/xla/stream_executor" || return 1
    cat >"$horovod_to/xla/stream_executor/stream.h" <<'END'
#pragma once
#include_next "tensorflow/compiler/xla/stream_executor/stream.h"
#if HAVE_GPU
namespace stream_executor {
namespace gpu {
inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
} // namespace gpu
} // namespace stream_executor
#endif
END
    printf '#undef HAVE_GPU\n#define HAVE_GPU 0\n' >"$horovod_to/tf2xla/xla_op_kernel.h"
    for horovod_header in tf2xla/xla_op_registry.h xla/client/xla_builder.h xla/service/custom_call_target_registry.h \
        xla/service/hlo.pb.h xla/shape.h xla/xla_data.pb.h; do
        : >"$horovod_to/$horovod_header"
    done
}

# Libraries are looked for relative to Horovod's own, so that the wheel serves every clone: MPI in the
# environment's lib, TensorFlow and NCCL beside Horovod. Only a system's MPI has an absolute place.
horovod_toolchain() {
    horovod_rpath=
    for horovod_place in ../../../.. ../../tensorflow ../../nvidia/nccl/lib; do
        horovod_rpath="$horovod_rpath;\$ORIGIN/$horovod_place"
    done
    if [ -z "$MPI_WHEEL" ]; then
        for horovod_word in $(mpicxx -show); do
            case $horovod_word in -L*) horovod_rpath="$horovod_rpath;${horovod_word#-L}" ;; esac
        done
    fi
    printf 'set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH [=[%s]=])\n' "${horovod_rpath#;}" >"$1"
}

# NCCL is that of TensorFlow's wheels. They have no libnccl.so, which linking takes; so the folder gets one. CUDA's
# place is asked of nvcc, because what is on PATH may be a script that calls it. PyPI's CUDA lacks libcudart.so, which
# CMake looks for, and has lib, while nvcc looks into lib64.
horovod_nccl() {
    horovod_from=$("$VENV/bin/python" -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])') || return 1
    mkdir -p "$1/lib" && ln -s "$horovod_from/include" "$1/include" || return 1
    ln -s "$horovod_from/lib/libnccl.so.2" "$1/lib/libnccl.so" || return 1
    horovod_cuda=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
    [ -n "$horovod_cuda" ] || return 1
    for horovod_cudart in "$horovod_cuda"/lib/libcudart.so.*; do
        [ ! -f "$horovod_cudart" ] || ln -sf "$horovod_cudart" "$1/lib/libcudart.so"
    done
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME="$1" HOROVOD_CUDA_HOME="$horovod_cuda"
    export LIBRARY_PATH="$horovod_cuda/lib${LIBRARY_PATH:+:$LIBRARY_PATH}" CMAKE_LIBRARY_PATH="$1/lib"
}

# horovod_build FOLDER [nccl]: compiles against the TensorFlow and the mpicxx of the environment, and puts the wheel
# into FOLDER. In a process of its own: it exports variables.
horovod_build() (
    horovod_headers "$1/include" && horovod_toolchain "$1/toolchain.cmake" || return 1
    [ -z "${2:-}" ] || horovod_nccl "$1/nccl" || return 1
    # cstdint: gloo's types.h lacks it, which GCC 15 minds.
    export CMAKE_TOOLCHAIN_FILE="$1/toolchain.cmake" CXXFLAGS="-include cstdint -I\"$1/include\""
    export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 MAKEFLAGS="-j$(getconf _NPROCESSORS_ONLN)"
    "$VENV/bin/python" -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps --no-cache-dir \
        --no-binary horovod -w "$1" "horovod==$(env_pin horovod)" || return 1
    rm -r "$1/include" "$1/toolchain.cmake" "$1/nccl" 2>/dev/null || :
)
