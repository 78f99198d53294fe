#!/usr/bin/env bash
# The agent's image write against a plain `dd` of as many bytes, in the same guest, on the same blank disk, right before it.
# Prints MB/s of both and the ratio for each machine. The image is fetched, verified, decompressed and written; dd writes zeros.
set -euo pipefail
"${1:?the rackline binary}" lab up --once --name bench-write --machines "${MACHINES:-1}" --firmware bios --dd all | grep 'ratio'
