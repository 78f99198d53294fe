#!/usr/bin/env bash
# DHCP against Kea (memfile; one thread, and several) and dnsmasq, all by the same perfdhcp over a veth pair, in turn. Prints
# the medians of RUNS rounds:
#
#   rate   leases a second (DISCOVER to ACK) with less than 1 % lost; found by doubling and halving
#   cpu    server CPU time for 1,000 leases in ms, everybody at half the better Kea's rate
#   p99    ms from REQUEST to ACK, and from DISCOVER to OFFER, each at half of its own rate
#
# Wanted: rate at least 1.5 of the better Kea's, CPU at most half of it, p99 under 5 ms. Ours grants a lease when it is on the
# disk; Kea and dnsmasq write their file and let the kernel sync it some time. Every trial starts with an empty lease store:
# dnsmasq writes its whole file for every lease. Clients come through a relay (perfdhcp sets giaddr) and are new ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lib/boot.sh
RUNS=${RUNS:-5} SECONDS_EACH=${SECONDS_EACH:-3} SERVERS=${SERVERS:-rackline kea-one kea-many dnsmasq}
KEA=$(grep -o 'kea-[a-z]*' <<<"$SERVERS")
BOOT_SERVER=$(built boot-server)
[ -x "$BOOT_SERVER" ] || { echo "boot-server was not built: cargo build --release --bench boot-server" >&2; exit 1; }

kea() {
	cat >"$DIR/kea.json" <<-EOF
		{"Dhcp4": {
		 "interfaces-config": {"interfaces": ["s0"], "dhcp-socket-type": "udp"},
		 "lease-database": {"type": "memfile", "persist": true, "name": "$DIR/kea-leases.csv", "lfc-interval": 3600},
		 "multi-threading": {"enable-multi-threading": $1, "thread-pool-size": 2, "packet-queue-size": 64},
		 "valid-lifetime": 86400, "renew-timer": 43200, "rebind-timer": 75600,
		 "option-data": [{"name": "routers", "data": "10.16.0.1"}, {"name": "domain-name-servers", "data": "10.16.0.1"}],
		 "subnet4": [{"id": 1, "subnet": "10.16.0.0/12", "pools": [{"pool": "10.20.0.0-10.31.255.254"}]}],
		 "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "$DIR/kea.log"}]}]}}
	EOF
	rm -f "$DIR"/kea-leases.csv*
	start env KEA_LOCKFILE_DIR=none KEA_PIDFILE_DIR="$DIR" kea-dhcp4 -c "$DIR/kea.json"
}

begin() {
	case $1 in
	rackline) boot_server ;;
	kea-one) kea false ;;
	kea-many) kea true ;;
	dnsmasq)
		rm -f "$DIR/dnsmasq.leases"
		start dnsmasq -k --conf-file=/dev/null --port=0 --interface=s0 --bind-interfaces --no-ping --quiet-dhcp --user=root \
			--dhcp-authoritative --dhcp-range=10.20.0.0,10.31.255.254,255.240.0.0,24h --dhcp-lease-max=1000000 \
			--dhcp-option=3,10.16.0.1 --dhcp-option=6,10.16.0.1 --dhcp-leasefile="$DIR/dnsmasq.leases" --pid-file=
		;;
	esac
	for _ in $(seq 100); do
		sleep 0.1
		client perfdhcp -4 -l c0 -n 2 -r 50 -W 200000 -R 10 -b mac=00:0d:00:00:00:01 10.16.0.1 >"$DIR/perfdhcp" 2>&1 || true
		grep -q '^received packets: [1-9]' "$DIR/perfdhcp" && return
	done
	echo "$1 does not answer" >&2 && cat "$DIR/server.log" >&2 && exit 1
}

# One server at one rate: LOST in percent, CPU in ms for 1,000 leases, P99 of OFFER and of ACK in ms.
trial() {
	begin "$1"
	local before after
	before=$(cpu_ms)
	client perfdhcp -4 -l c0 -g single -r "$2" -p "$SECONDS_EACH" -W 1000000 -R 1000000 -b mac=00:0c:01:00:00:00 -x t \
		10.16.0.1 >"$DIR/perfdhcp" 2>&1 || true
	after=$(cpu_ms)
	stop
	read -r LOST CPU P99_OFFER P99_ACK SENT <<<"$(awk -v ms="$(calc "$after - $before")" '
		/^\*\*\*Statistics for: / {part = $3}
		/^\*\*\*Timestamps/ {part = "T" ++times}
		part == "DISCOVER-OFFER***" && /^sent packets/ {sent = $3}
		part == "REQUEST-ACK***" && /^received packets/ {got = $3}
		/^sent \/ received/ {split($4, a, "."); split($6, b, "."); n[part]++
			took[part, n[part]] = (b[1] - a[1]) * 1000 + (b[2] - a[2]) / 1000}
		function p99(part,    i, j, k, v) {
			# Insertion into the upper one percent only.
			k = int(n[part] / 100) + 1
			for (i = 1; i <= n[part]; i++) { v = took[part, i]
				for (j = k; j >= 1 && v > top[j]; j--) { if (j < k) top[j + 1] = top[j]; top[j] = v } }
			v = n[part] ? top[k] : -1; for (j = 1; j <= k; j++) top[j] = 0
			return v }
		END {print sent ? 100 * (sent - got) / sent : 100, got ? ms / got * 1000 : -1, p99("T1"), p99("T2"), sent + 0}' "$DIR/perfdhcp")"
	echo "  $1 rate=$2 sent=$SENT lost=$LOST% cpu=$CPU p99=$P99_OFFER/$P99_ACK" >&2
}

# Whether the server carries the rate. One failure may be the machine's: a second trial decides.
carries() { trial "$1" "$2"; kept_up "$2" && return; trial "$1" "$2"; kept_up "$2"; }

# A rate that perfdhcp did not reach is not one that the server carried; where nothing was lost, perfdhcp is the limit.
kept_up() {
	is "$LOST < 1" || return
	is "$SENT > 0.97 * $1 * $SECONDS_EACH" && return
	LIMITED+=" $1"
	return 1
}

# The highest rate carried, within some 6 %, looked for from $2.
search() {
	local low=0 high=0 rate=$2 middle
	while [ $high = 0 ] || [ $low = 0 ]; do
		if carries "$1" "$rate"; then low=$rate; [ $high = 0 ] && rate=$((rate * 2)); else high=$rate; rate=$((rate / 2)); fi
		[ "$rate" -ge 25 ] && [ "$rate" -le 64000 ] || break
		[ $low != 0 ] && [ $high != 0 ] && break
	done
	while [ $low -gt 0 ] && [ $((high - low)) -gt $((low / 16)) ]; do
		middle=$(((low + high) / 2))
		if carries "$1" $middle; then low=$middle; else high=$middle; fi
	done
	RATE=$low
}

LIMITED=
net_up
about_machine
declare -A guess=([rackline]=4000 [kea-one]=4000 [kea-many]=4000 [dnsmasq]=500)
for run in $(seq "$RUNS"); do
	for server in $SERVERS; do
		search "$server" "${guess[$server]}"
		[ "$RATE" -gt 0 ] && guess[$server]=$RATE
		echo "$RATE" >>"$DIR/rate.$server"
		trial "$server" $((RATE / 2 + 1))
		echo "$P99_ACK" >>"$DIR/p99ack.$server" && echo "$P99_OFFER" >>"$DIR/p99offer.$server"
		echo "run $run $server rate=$RATE p99_offer=$P99_OFFER p99_ack=$P99_ACK" >&2
	done
	# CPU at one rate for all, since sharing costs among leases depends on it.
	kea_rate=$(cat "$DIR"/rate.kea-* | sort -g | tail -1)
	for server in ${SERVERS/dnsmasq/}; do trial "$server" $((kea_rate / 2)); echo "$CPU" >>"$DIR/cpu.$server"; done
done

of() { median <"$DIR/$1.$2"; }
for server in $SERVERS; do
	cpu=-
	[ ! -e "$DIR/cpu.$server" ] || cpu=$(calc "$(of cpu "$server")" 0)
	printf '%-9s rate %6d/s  cpu %4s ms/1000 leases  p99 OFFER %7.2f ms  ACK %7.2f ms\n' "$server" "$(of rate "$server")" \
		"$cpu" "$(of p99offer "$server")" "$(of p99ack "$server")"
done
for server in ${SERVERS/rackline/}; do
	echo "rate: $(calc "$(of rate rackline) / $(of rate "$server")") of $server's"
done
kea_rate=$(for server in $KEA; do of rate "$server"; done | sort -g | tail -1)
kea_cpu=$(for server in $KEA; do of cpu "$server"; done | sort -g | head -1)
echo "ratio: rate $(calc "$(of rate rackline) / $kea_rate") of the faster Kea's (wanted 1.5), cpu" \
	"$(calc "$(of cpu rackline) / $kea_cpu") of the cheaper Kea's (wanted 0.5), p99 of ACK $(of p99ack rackline) ms (wanted 5)"
[ -z "$LIMITED" ] || echo "perfdhcp did not reach these rates, at which nothing was lost:$LIMITED"
