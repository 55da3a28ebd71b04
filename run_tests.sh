#!/bin/sh
# Sets up the environment, then ruff, mypy, codespell and pytest. Arguments go to pytest:
#   sh run_tests.sh -m slow
set -eu
cd "$(dirname "$0")"
. utils/env.sh
ruff check .
ruff format --check .
mypy
codespell
exec "$VENV/bin/python" -m pytest "$@"
