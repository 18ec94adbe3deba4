#!/usr/bin/env bash
# Make the test environment (once) and run the tests: no GPU, no model hub.
#
#   bash tests/run.sh                   all tests, about 7 minutes on 2 cores
#   bash tests/run.sh -k rewards        with pytest's arguments
#   bash tests/run.sh gpu               the GPU smoke test, on an NVIDIA GPU, in run.sh's environment
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" test "$@"
