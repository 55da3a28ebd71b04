#!/bin/sh
# Sets the suite up in the image that is being built, in the folder above this one. For Dockerfile and apptainer.def, on
# Debian or Ubuntu; MPI and DEVICE are those of utils/env.sh.
set -eu
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive MPI="${MPI:-openmpi}" DEVICE="${DEVICE:-cpu}" XDG_CACHE_HOME=/var/tmp/build-cache
apt-get update
# openssh-client: with it, mpirun inside of the image starts ranks on other hosts. The compiler is for Horovod alone.
apt-get install -y --no-install-recommends ca-certificates openssh-client python3 python3-venv
apt-get install -y --no-install-recommends g++ make python3-dev
(
    . utils/env.sh
    ln -sfn "$VENV" /opt/venv
    "$VENV/bin/python" -m utils.doctor
)
apt-get purge -y --auto-remove g++ make python3-dev
apt-get clean
rm -rf /var/lib/apt/lists/* "$XDG_CACHE_HOME" /root/.cache
