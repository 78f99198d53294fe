#!/usr/bin/env bash
# One image to many machines: our swarm against aria2, libtorrent, transmission, rqbit, udpcast and nginx (unicast), in the same
# hall of network namespaces with shaped links (lib/swarm/hall.py). What counts is when the last machine has the whole file, over
# the ideal: size / link rate. `chain` is a plain pipe from machine to machine that checks nothing and survives nothing: what is
# possible. Every file is checked by its SHA-256. Wanted:
#
#   speed    32 machines at 50 and at 200 Mbit/s, the server's link the same: <= 1.15, and ahead of everybody
#   racks    two and four racks, trunks as fast as one machine's link: <= 1.4, <= 1.2 copies over each trunk, server <= 2 copies
#   growth   from 2 to 32 machines: less than 15 % more
#   faults   the server killed at 30 %, a third of the machines without power at 50 %, a trunk down for 20 s, a slow machine, one
#            that sends garbage: all that live come to an end; how much later than in `sound`
#
# usage: swarm.sh [BINARY] [SCENARIO...] [--runs N] [--who NAMES] [--json FILE] [--svg FILE] ...; see --help. Without a
# scenario: all of them, which takes more than an hour; with --add FILE only, the table of what was measured before.
set -euo pipefail
cd "$(dirname "$0")/../.."

PEERS=$PWD/target/bench-peers LIBTORRENT=2.1.1 RQBIT=9.1.0
[ ! -x "${1:-}" ] || shift # `make bench` gives every script the binary

[ -x "$PEERS/venv/bin/python3" ] || /usr/bin/python3 -m venv "$PEERS/venv"
"$PEERS/venv/bin/python3" -c 'import libtorrent' 2>/dev/null || "$PEERS/venv/bin/pip" install -q "libtorrent==$LIBTORRENT" >&2
[ -x "$PEERS/bin/rqbit" ] || {
	echo "building rqbit $RQBIT (once; some minutes)" >&2
	cargo install --quiet "rqbit@$RQBIT" --locked --no-default-features --features rust-tls --root "$PEERS" \
		--target-dir target/bench-peers/build --target "$(rustc -vV | sed -n 's/^host: //p')" >&2
}
node=$(cargo bench --bench swarm-node --no-run --message-format=json 2>/dev/null |
	grep -o '"executable":"[^"]*/swarm_node-[^"]*"' | tail -1 | cut -d'"' -f4)
[ -x "$node" ] || { echo "swarm-node was not built: cargo bench --bench swarm-node --no-run" >&2; exit 1; }
exec /usr/bin/python3 tests/bench/lib/swarm --peers "$PEERS" --node "$node" "$@"
