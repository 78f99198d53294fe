#!/usr/bin/env bash
# CLIENTS machines (5000) are switched on within WITHIN seconds (10) and boot from one appliance, with real packets: DHCP as
# the ROM, the loader by TFTP (UEFI percent 1 MiB, the others 100 KiB; blksize 1468), DHCP as iPXE, the script, and the
# kernel's first bytes by HTTP. Prints the times of each step, failures, CPU time and the most memory of the server.
#
# Wanted: all of them within 60 s, none fails, server under 500 MB. There is no peer: no other server does all of it. Server and
# machines have one core each; the machines' core is as busy as the server's.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lib/boot.sh
RUNS=${RUNS:-3} CLIENTS=${CLIENTS:-5000} WITHIN=${WITHIN:-10} UEFI=${UEFI:-50}
BOOT_SERVER=$(built boot-server) LOAD=$(built boot-load)
[ -x "$BOOT_SERVER" ] && [ -x "$LOAD" ] || { echo "not built: cargo build --release --benches" >&2; exit 1; }

net_up
# The machines' addresses are behind c0's, so that the neighbour table (1024 by default) is not what is measured; and every one
# of them is the namespace's own.
ip -n $NS-s route add 10.20.0.0/14 via 10.16.0.2
ip -n $NS-s route add 10.24.0.0/13 via 10.16.0.2
ip -n $NS-c route add local 10.20.0.0/14 dev lo
ip -n $NS-c route add local 10.24.0.0/13 dev lo
ip netns exec $NS-c sysctl -qw net.ipv4.ip_local_port_range="1024 65535"
# Frames to the machines' own MAC addresses.
ip -n $NS-c link set c0 promisc on
head -c $((100 << 10)) /dev/urandom >"$DIR/undionly" && head -c $((1 << 20)) /dev/urandom >"$DIR/efi"
head -c $((8 << 20)) /dev/urandom >"$DIR/vmlinuz"
about_machine
failed=0
for run in $(seq "$RUNS"); do
	boot_server "undionly.kpxe=$DIR/undionly" "snponly.efi=$DIR/efi" "vmlinuz=$DIR/vmlinuz"
	for _ in $(seq 100); do grep -q ready "$DIR/server.log" && break; sleep 0.1; done
	before=$(cpu_ms)
	client "$LOAD" c0 10.16.0.1 "$CLIENTS" "$WITHIN" "$UEFI" >"$DIR/run.$run"
	cat "$DIR/run.$run"
	rss=$(awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$SERVER/status")
	echo "server: CPU $(calc "($(cpu_ms) - $before) / 1000" 1) s, at most $rss MB"
	echo "$rss" >>"$DIR/rss" && awk '/^total/ {print $2}' "$DIR/run.$run" >>"$DIR/total"
	failed=$((failed + $(awk '/^total/ {print $NF}' "$DIR/run.$run")))
	stop
	echo "answered: $(tail -1 "$DIR/server.log")"
done
echo "median of $RUNS: $CLIENTS machines in $(median <"$DIR/total") s (wanted 60), $failed of $((RUNS * CLIENTS)) failed (wanted 0)," \
	"server at most $(sort -g "$DIR/rss" | tail -1) MB (wanted 500)"
