#!/usr/bin/env bash
# TFTP against tftpd-hpa, dnsmasq and atftpd of Debian, in turn: machines that fetch a file again and again, lock-step and
# with windows of 16 blocks. Prints MB/s, medians of RUNS, and the ratio to the best of the others. Wanted: at least 1.5, and 3
# with windows.
#
# Each server has one core, and the machines the other. The link is a veth pair with checksum offload, as network cards have it,
# and without UDP segmentation offload, which many have: windows are cut into packets by the server's kernel.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lib/boot.sh
RUNS=${RUNS:-5} SECONDS_EACH=${SECONDS_EACH:-1.2} SERVERS=${SERVERS:-rackline hpa dnsmasq atftpd} BLOCK=${BLOCK:-1468}
# file:machines:window
SPECS=${SPECS:-1m:1:1 1m:50:1 1m:200:1 64m:1:1 64m:50:1 64m:200:1 1m:1:16 1m:50:16 1m:200:16 64m:1:16 64m:50:16 64m:200:16}
BOOT_SERVER=$(built boot-server) LOAD=$(built tftp-load)
for program in "$BOOT_SERVER" "$LOAD"; do
	[ -x "$program" ] || { echo "not built: cargo build --release --bench boot-server --bench tftp-load" >&2; exit 1; }
done

# Unpacked, not installed: the packages of two of them exclude each other, and all would start a service.
peers() {
	PEERS=$PWD/target/bench-peers
	[ -x "$PEERS/usr/sbin/atftpd" ] && return
	mkdir -p "$PEERS"
	(cd "$PEERS" && apt-get download -qq tftpd-hpa atftpd && for deb in *.deb; do dpkg-deb -x "$deb" .; done) >&2
}

begin() {
	case $1 in
	rackline) boot_server 1m="$DIR/files/1m" 64m="$DIR/files/64m" ;;
	hpa) start "$PEERS/usr/sbin/in.tftpd" -L --user root -a 10.16.0.1:69 -s "$DIR/files" ;;
	dnsmasq)
		start dnsmasq -k --conf-file=/dev/null --port=0 --user=root --pid-file= --enable-tftp --tftp-root="$DIR/files" \
			--tftp-max=1000 --listen-address=10.16.0.1 --bind-interfaces
		;;
	atftpd)
		start "$PEERS/usr/sbin/atftpd" --daemon --no-fork --bind-address 10.16.0.1 --port 69 --maxthread 1000 --user root \
			--group root --no-multicast --logfile /dev/null "$DIR/files"
		;;
	esac
	for _ in $(seq 50); do
		client curl -s --max-time 5 -o "$DIR/got" tftp://10.16.0.1/1m && cmp "$DIR/got" "$DIR/files/1m" && return
		sleep 0.1
	done
	echo "$1 does not send the file" >&2 && cat "$DIR/server.log" >&2 && exit 1
}

# With the processes that a server makes for each transfer.
end() {
	stop
	ip netns pids $NS-s | xargs -r kill 2>/dev/null || true
}

peers
net_up
mkdir "$DIR/files"
head -c 1048576 /dev/urandom >"$DIR/files/1m" && head -c 67108864 /dev/urandom >"$DIR/files/64m"
chmod a+rx "$DIR" && chmod -R a+rX "$DIR/files"
ip netns exec $NS-s ethtool -K s0 tx on tx-udp-segmentation off >/dev/null
mac=$(ip netns exec $NS-s cat /sys/class/net/s0/address)
# The machines answer no ARP. Theirs are the addresses that tftp-load says.
for n in $(seq 0 255); do echo "neigh add 10.17.0.$n lladdr $(printf '02:00:0a:11:00:%02x' "$n") dev s0 nud permanent"; done |
	ip -n $NS-s -batch -
about_machine

for run in $(seq "$RUNS"); do
	for server in $SERVERS; do
		begin "$server"
		for spec in $SPECS; do
			IFS=: read -r file machines window <<<"$spec"
			line=$(client "$LOAD" c0 10.16.0.1 "$mac" "$file" "$machines" "$BLOCK" "$window" "$SECONDS_EACH" 2>&1) || true
			echo "run $run $server $spec $line" >&2
			sed -n 's/^MB.s=\([0-9.]*\).*/\1/p' <<<"$line" >>"$DIR/$spec.$server"
		done
		end
	done
done

for spec in $SPECS; do
	IFS=: read -r file machines window <<<"$spec"
	printf '%-3s  %3d at once, window %2d: ' "$file" "$machines" "$window"
	best=0
	for server in $SERVERS; do
		rate=$(median <"$DIR/$spec.$server")
		printf ' %s %.0f' "$server" "$rate"
		[ "$server" = rackline ] && ours=$rate || { is "$rate > $best" && best=$rate; } || true
	done
	echo " MB/s, ratio $(calc "$ours / ($best + 0.001)") (wanted $([ "$window" = 1 ] && echo 1.5 || echo 3))"
done
