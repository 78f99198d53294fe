# For the benchmarks of network boot, to be sourced: a pair of network namespaces, a scratch folder, the bench server.
#
# Server and load generator have one core each, so that neither takes time from the other and a figure is that of one core.

# Before other work on this machine, all of them alike: a session of its own is a scheduling group of its own (sched(7)).
[ -n "${RACKLINE_BENCH:-}" ] || exec env RACKLINE_BENCH=1 setsid -w "$0" "$@"
{ echo -15 >/proc/$$/autogroup; } 2>/dev/null || true

. "$(dirname "${BASH_SOURCE[0]}")/figures.sh"

NS=rackline-bench-$$
SERVER_CORE=${SERVER_CORE:-0} CLIENT_CORE=${CLIENT_CORE:-1}
# On a disk, not in memory: what is measured is how fast leases become durable.
DIR=$(mktemp -d -p "${BENCH_DIR:-/var/tmp}" rackline-bench.XXXXXX)
SERVER=

# A load generator with the default receive buffer, some 160 packets, loses answers that come in a burst, and the server is
# blamed for it. The default is the whole machine's, so the servers have the larger one too.
RMEM=$(sysctl -n net.core.rmem_default)

# The server on s0 with 10.16.0.1/12, clients on c0 with 10.16.0.2/12.
net_up() {
	trap 'stop; net_down; sysctl -qw net.core.rmem_default=$RMEM; rm -rf "$DIR"' EXIT
	sysctl -qw net.core.rmem_default=$((4 << 20))
	ip netns add $NS-s && ip netns add $NS-c
	ip link add s0 netns $NS-s type veth peer name c0 netns $NS-c
	ip -n $NS-s addr add 10.16.0.1/12 dev s0 && ip -n $NS-c addr add 10.16.0.2/12 dev c0
	for link in s:lo s:s0 c:lo c:c0; do ip -n "$NS-${link%:*}" link set "${link#*:}" up; done
	# Programs that read frames themselves want whole checksums.
	for link in s:s0 c:c0; do ip netns exec "$NS-${link%:*}" ethtool -K "${link#*:}" tx off >/dev/null; done
}

net_down() { for side in s c; do ip netns del $NS-$side 2>/dev/null || true; done; }

# Among the clients.
client() { ip netns exec $NS-c taskset -c "$CLIENT_CORE" "$@"; }

# Starts a server in its namespace; $SERVER is its process, $DIR/server.log what it says.
start() {
	ip netns exec $NS-s taskset -c "$SERVER_CORE" "$@" >"$DIR/server.log" 2>&1 &
	SERVER=$!
}

stop() {
	[ -z "$SERVER" ] || { kill "$SERVER" 2>/dev/null && wait "$SERVER" 2>/dev/null || true; }
	SERVER=
}

# CPU milliseconds of the server so far: utime and stime of proc_pid_stat(5).
cpu_ms() { awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); print ($12 + $13) * 1000 / hz}' "/proc/$SERVER/stat"; }

# The network boot services on s0, with the pool that the peers have too. Addresses are not probed before they are offered,
# which Kea cannot do and dnsmasq is told not to; and strangers are not limited, since all clients here are.
boot_server() {
	rm -rf "$DIR/state" && mkdir "$DIR/state"
	cat >"$DIR/boot.toml" <<-EOF
		url = "http://10.16.0.1"
		interfaces = [{ name = "s0", address = "10.16.0.1" }]
		router_advertisements = false
		unknown_lease_seconds = 86400
		unknown_per_second = 1000000
		probe_ms = 0
		[[subnets]]
		network = "10.16.0.0/12"
		pools = ["10.20.0.0-10.31.255.254"]
		router = "10.16.0.1"
		dns = ["10.16.0.1"]
		lease_seconds = 86400
	EOF
	start "$BOOT_SERVER" "$DIR/boot.toml" "$DIR/state" "$@"
}

# How long this disk takes to make 4 KiB durable, in milliseconds: the floor of any answer that waits for it.
sync_ms() { LC_ALL=C dd if=/dev/zero of="$DIR/sync" bs=4k count=200 oflag=dsync 2>&1 | awk '/copied/ {print $(NF - 3) * 1000 / 200}'; }

about_machine() {
	echo "# load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) cores, kernel $(uname -r); server on core $SERVER_CORE, clients on" \
		"core $CLIENT_CORE; 4 KiB durable in $(calc "$(sync_ms)") ms"
}
