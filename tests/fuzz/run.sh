#!/usr/bin/env bash
# Each target under libFuzzer for SECONDS_EACH (60), or those named as arguments. The corpus grows in target/fuzz/corpus; an
# input that fails stays in target/fuzz/failed and belongs, once understood, into tests/fuzz/kept. No nightly compiler and no
# tool to install: the counters that libFuzzer reads are an LLVM pass, which stable rustc runs too. Without the address
# sanitizer, which the parsers, all safe code, do not need.
set -euo pipefail
cd "$(dirname "$0")/../.."
SECONDS_EACH=${SECONDS_EACH:-60}
out=$PWD/target/fuzz
# Set here, these replace the flags of .cargo/config.toml: the fuzzer is not static.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# The versions that the appliance is built with.
cp Cargo.lock tests/fuzz/Cargo.lock
cargo build --release --manifest-path tests/fuzz/Cargo.toml --target-dir "$out/build" --target x86_64-unknown-linux-gnu
fuzz=$out/build/x86_64-unknown-linux-gnu/release/fuzz

[ $# -gt 0 ] || set -- $(sed -n 's/^    ("\([a-z-]*\)", [a-z_]*),$/\1/p' tests/fuzz/targets.rs)
mkdir -p "$out/failed"
for target; do
	mkdir -p "$out/corpus/$target"
	RACKLINE_FUZZ=$target RACKLINE_SEEDS=$out/corpus/$target "$fuzz" -runs=1 >/dev/null 2>&1
	for kept in tests/fuzz/kept/"$target"-*; do [ ! -e "$kept" ] || cp "$kept" "$out/corpus/$target/"; done
	RACKLINE_FUZZ=$target "$fuzz" "$out/corpus/$target" -max_total_time="$SECONDS_EACH" -max_len=4096 -timeout=5 \
		-rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$out/failed/$target-" >"$out/$target.log" 2>&1 ||
		{ grep -A12 'panicked\|ERROR: libFuzzer\|SUMMARY' "$out/$target.log" >&2; echo "$target FAILED: see $out/$target.log" >&2; exit 1; }
	awk -v target="$target" '/cov: / {for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "corp:") corpus = $(i + 1) }}
		/stat::number_of_executed_units/ {runs = $2}
		END {printf "%-14s %10d runs, %5d branches, corpus %s\n", target, runs, cov, corpus}' "$out/$target.log"
done
