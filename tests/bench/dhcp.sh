#!/usr/bin/env bash
# DHCP against Kea (memfile; one thread, and several) and dnsmasq, all by the same clients over a veth pair, in turn. Prints
# the medians of RUNS rounds:
#
#   rate   leases a second (DISCOVER to ACK) with less than 1 % lost; found by doubling and halving, with dhcp-load.rs, since
#          perfdhcp itself ends at some 17,000 a second on one core
#   half   p99 in ms from REQUEST to ACK at half of that rate, with dhcp-load.rs
#   same   CPU ms of the server for 1,000 leases, p99 of OFFER and of ACK, by perfdhcp, everybody at half the better Kea's rate
#
# Wanted: rate at least 1.5 of the better Kea's, CPU at most half of it, p99 of ACK at half the rate under 5 ms. Ours grants a
# lease when it is on the disk; Kea and dnsmasq write their file and let the kernel sync it some time. Every trial starts with
# an empty lease store: dnsmasq writes its whole file for every lease. Clients come through a relay (giaddr is set) and are new.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/lib/boot.sh
RUNS=${RUNS:-5} SECONDS_EACH=${SECONDS_EACH:-3} SERVERS=${SERVERS:-rackline kea-one kea-many dnsmasq}
KEA=$(grep -o 'kea-[a-z]*' <<<"$SERVERS")
BOOT_SERVER=$(built boot-server)
LOAD=$(built dhcp-load)
[ -x "$BOOT_SERVER" ] && [ -x "$LOAD" ] || { echo "not built: cargo build --release --benches" >&2; exit 1; }

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

# One server at one rate, by perfdhcp or dhcp-load: LOST in percent, CPU in ms for 1,000 leases, P99 of OFFER and of ACK in ms.
trial() {
	begin "$2"
	local before after
	before=$(cpu_ms)
	by_"$1" "$3"
	after=$(cpu_ms)
	stop
	LOST=$(calc "$SENT ? 100 * ($SENT - $ACKED) / $SENT : 100") CPU=$(calc "$ACKED ? ($after - $before) / $ACKED * 1000 : -1")
	echo "  $2 rate=$3 by $1: sent=$SENT lost=$LOST% cpu=$CPU p99=$P99_OFFER/$P99_ACK" >&2
}

by_load() { read -r _ SENT _ ACKED _ P99_OFFER _ P99_ACK <<<"$(client "$LOAD" 10.16.0.1 10.16.0.2 "$1" "$SECONDS_EACH")"; }

by_perfdhcp() {
	client perfdhcp -4 -l c0 -g single -r "$1" -p "$SECONDS_EACH" -W 1000000 -R 1000000 -b mac=00:0c:01:00:00:00 -x t \
		10.16.0.1 >"$DIR/perfdhcp" 2>&1 || true
	read -r SENT ACKED < <(awk '/^\*\*\*Statistics for: / {part = $3}
		part == "DISCOVER-OFFER***" && /^sent packets/ {sent = $3}
		part == "REQUEST-ACK***" && /^received packets/ {got = $3}
		END {print sent + 0, got + 0}' "$DIR/perfdhcp")
	P99_OFFER=$(p99 DISCOVER-OFFER) P99_ACK=$(p99 REQUEST-ACK)
}

# Of the times that perfdhcp's -x t lists as seconds.microseconds for one part of the exchange.
p99() {
	awk -v part="$1***" '/^\*\*\*Timestamps/ {on = $NF == part}
		on && /^sent \/ received/ {split($4, a, "."); split($6, b, "."); print (b[1] - a[1]) * 1000 + (b[2] - a[2]) / 1000}' \
		"$DIR/perfdhcp" | sort -g | awk '{v[NR] = $1} END {print NR ? v[int(NR * 0.99) + (NR < 100)] : -1}'
}

# Whether the server carries the rate. One failure may be the machine's: a second trial decides.
carries() { trial load "$1" "$2"; kept_up "$2" && return; trial load "$1" "$2"; kept_up "$2"; }

# A rate that the load did not reach is not one that the server carried; where nothing was lost, the load is the limit.
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
		trial load "$server" $((RATE / 2 + 1))
		echo "$P99_ACK" >>"$DIR/half.$server"
		echo "run $run $server rate=$RATE p99 at half=$P99_ACK" >&2
	done
	# One rate for all, since sharing costs among leases depends on it; dnsmasq does not reach it.
	kea_rate=$(cat "$DIR"/rate.kea-* | sort -g | tail -1)
	for server in ${SERVERS/dnsmasq/}; do
		trial perfdhcp "$server" $((kea_rate / 2))
		echo "$CPU" >>"$DIR/cpu.$server" && echo "$P99_OFFER" >>"$DIR/offer.$server" && echo "$P99_ACK" >>"$DIR/ack.$server"
	done
done

of() { [ ! -e "$DIR/$1.$2" ] || median <"$DIR/$1.$2"; }
for server in $SERVERS; do
	printf '%-9s rate %6d/s  half: p99 %7.2f ms  same: cpu %5.1f ms/1000 leases, p99 OFFER %6.2f ms, ACK %6.2f ms\n' "$server" \
		"$(of rate "$server")" "$(of half "$server")" "$(of cpu "$server")" "$(of offer "$server")" "$(of ack "$server")"
done
for server in ${SERVERS/rackline/}; do
	echo "rate: $(calc "$(of rate rackline) / $(of rate "$server")") of $server's"
done
kea_rate=$(for server in $KEA; do of rate "$server"; done | sort -g | tail -1)
kea_cpu=$(for server in $KEA; do of cpu "$server"; done | sort -g | head -1)
echo "ratio: rate $(calc "$(of rate rackline) / $kea_rate") of the faster Kea's (wanted 1.5), cpu" \
	"$(calc "$(of cpu rackline) / $kea_cpu") of the cheaper Kea's (wanted 0.5), p99 of ACK at half the rate" \
	"$(of half rackline) ms (wanted 5)"
[ -z "$LIMITED" ] || echo "the load did not reach these rates, at which nothing was lost:$LIMITED"
