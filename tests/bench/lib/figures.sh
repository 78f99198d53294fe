# For benchmarks, to be sourced: medians and arithmetic, and where cargo puts a benchmark's program.

median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }

calc() { awk "BEGIN {printf \"%.${2:-2}f\", $1}"; }
is() { awk "BEGIN {exit !($1)}"; }

# Builds a benchmark target and prints where it is.
built() {
	cargo build --release --bench "$1" --message-format=json 2>/dev/null |
		sed -n "s/.*\"executable\":\"\([^\"]*${1//-/_}[^\"]*\)\".*/\1/p" | tail -1
}
