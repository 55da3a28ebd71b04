#!/bin/sh
exec sh "$(dirname "$0")/../run_prepro.sh" "$@"
