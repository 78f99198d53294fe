#!/usr/bin/env bash
# A machine beside its twins: what judging one costs with 200 and with 20,000 twins, and beside sorting them each time.
#
#   tests/bench/cohort.sh          prints microseconds a machine (four values each) and the ratio to sorting; below 1 is better
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo bench -q --bench cohort
