#!/bin/sh
# Sets the suite up in the image that is being built, in the folder above this one. For Dockerfile and apptainer.def, on
# Debian or Ubuntu; MPI and DEVICE are those of utils/env.sh.
set -eu
umask 022
cd "$(dirname "$0")/.."
# Whoever runs the image reads it, also where the clone was made with a umask of 077.
chmod -R a+rX .
# The cache lies in the image, for /tmp and /var/tmp are the host's while Apptainer builds.
export DEBIAN_FRONTEND=noninteractive MPI="${MPI:-openmpi}" DEVICE="${DEVICE:-cpu}" XDG_CACHE_HOME=/opt/build-cache
apt-get update
# openssh-client: with it, mpirun inside of the image starts ranks on other hosts. The compiler is for Horovod alone.
apt-get install -y --no-install-recommends ca-certificates openssh-client python3 python3-venv
apt-get install -y --no-install-recommends g++ make python3-dev
(
    . utils/env.sh
    ln -sfn "$VENV" /opt/venv
    # What only the tests and compiling take; OME-Zarr takes TensorStore.
    grep -v '^tensorstore=' tests/requirements.txt | env_pip uninstall -q -y -r /dev/stdin cmake libclang
    rm -r "$VENV"/lib/python3*/site-packages/tensorflow/include
)
apt-get purge -y --auto-remove g++ make python3-dev
apt-get clean
TF_USE_LEGACY_KERAS=1 /opt/venv/bin/python -m utils.doctor
rm -rf /var/lib/apt/lists/* "$XDG_CACHE_HOME" /root/.cache
