"""Becomes a program to which SIGTERM does not come: python shielded.py PROGRAM OPTIONS

Open MPI's mpirun and its daemons answer SIGTERM by killing their ranks after a second, which is too short for a
checkpoint. The ranks themselves get SIGTERM all the same, for Open MPI lets all signals through to them.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(sys.argv[1], sys.argv[1:])
