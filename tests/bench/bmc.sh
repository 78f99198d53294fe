#!/usr/bin/env bash
# Thousands of BMCs at once: power status of all, dead and late ones among them, and against FreeIPMI's ipmipower and ipmitool
# (50 of them at a time). The BMCs are simulated (bmc-load.rs), in one process and a network namespace of its own; each answers
# every packet after a time of its own between 50 and 500 ms. Prints the medians of RUNS rounds:
#
#   status  power status of COUNT BMCs: at first contact, in open sessions, and after those were closed. With the log-in it is
#           four round trips (Open Session, RAKP 1 and 3, the command), in an open session one
#   hosts   power status of HOSTS BMCs by one process that starts, asks and ends: ours, ipmipower, ipmitool under xargs -P 50.
#           ipmipower is told to send again after 1 s, as the others do: with its own 0.4 s it never gets in where an answer
#           takes longer. A BMC has 64 sessions here, 4 in the rest
#   faults  10 % of COUNT dead and 5 % answering after 20 s: p99 of the healthy ones against that without faults
#   sweep   sensors and log of COUNT BMCs once in 60 s
#
# Wanted: all of COUNT within 2 s and within 1.2 of the slowest alone, plus the queueing bound; at most 200 MB; less wall and CPU
# time than the others; p99 of the healthy within 10 %; a sweep below 20 % of a core.
#
# The bound. With N BMCs and CPU time c for each command and the simulator on another core, the last answer is handled when the
# slowest BMC has answered and the core has worked off what came before it: T <= slowest + N * c. Nothing else queues, as long as
# N is at most the number of places (bmc::Settings::parallel); beyond that, T grows by place * N / parallel at most.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${RACKLINE_BENCH:-}" ] || exec env RACKLINE_BENCH=1 setsid -w "$0" "$@"
{ echo -15 >/proc/$$/autogroup; } 2>/dev/null || true
. tests/bench/lib/figures.sh
RUNS=${RUNS:-5} COUNT=${COUNT:-1000} HOSTS=${HOSTS:-50} WATCH=${WATCH:-120} PARTS=${PARTS:-status hosts faults sweep}
SERVER_CORE=${SERVER_CORE:-0} CLIENT_CORE=${CLIENT_CORE:-1}
LOAD=$(built bmc-load)
[ -x "$LOAD" ] || { echo "not built: cargo build --release --benches" >&2; exit 1; }
NS=rackline-bench-$$ DIR=$(mktemp -d -p "${BENCH_DIR:-/var/tmp}" rackline-bench.XXXXXX) HALL=
trap 'hall_down; ip netns del $NS; rm -rf "$DIR"' EXIT
ip netns add "$NS"
ip -n "$NS" link set lo up

# COUNT, then per cent dead, late, sensors and sessions.
hall() {
	hall_down
	ip netns exec "$NS" taskset -c "$SERVER_CORE" "$LOAD" hall "$1" 50 500 "$2" "$3" "$4" "$5" >"$DIR/hall" 2>&1 &
	HALL=$!
	for _ in $(seq 100); do grep -q ready "$DIR/hall" && return; sleep 0.1; done
	cat "$DIR/hall" >&2 && exit 1
}
hall_down() {
	[ -z "$HALL" ] || { kill "$HALL" 2>/dev/null && wait "$HALL" 2>/dev/null || true; }
	HALL=
}

# A command on the clients' core. WALL in s, CPU in ms of it and all its children.
client() {
	local TIMEFORMAT='%R %U %S' user system
	{ time ip netns exec "$NS" taskset -c "$CLIENT_CORE" "$@" >"$DIR/out" 2>"$DIR/err"; } 2>"$DIR/time" || true
	read -r WALL user system <"$DIR/time"
	CPU=$(calc "($user + $system) * 1000" 1)
}

# A figure of the last output: the line's first word, then the figure's name.
figure() { awk -v line="$1" -v name="$2" '$1 == line {for (i = 2; i < NF; i++) if ($i == name) print $(i + 1)}' "$DIR/out"; }
keep() { echo "$2" >>"$DIR/$1"; }
of() { median <"$DIR/$1"; }

status() {
	hall "$COUNT" "$1" "$2" 0 4
	client "$LOAD" status "$COUNT"
	for how in first open closed; do
		for what in ok failed healthy p50 p99 alone cpu_ms rss_mb; do keep "$3.$how.$what" "$(figure $how $what)"; done
	done
	sed "s/^/  $3 /" "$DIR/out" >&2
}

hosts() {
	local list
	list=$(for ((n = 0; n < HOSTS; n++)); do echo "127.1.$((n / 250)).$((n % 250 + 1))"; done)
	hall "$HOSTS" 0 0 0 64
	for who in rackline ipmipower ipmitool; do
		case $who in
		rackline) client "$LOAD" once "$HOSTS"; answered=$(figure once ok) ;;
		ipmipower)
			client ipmipower -D LAN_2_0 -I 17 --retransmission-timeout=1000 -h "$(paste -sd, <<<"$list")" -u admin \
				-p calvin-lab --stat
			answered=$(grep -cE ': (on|off)' "$DIR/out" || true)
			;;
		ipmitool)
			client xargs -P 50 -I{} ipmitool -I lanplus -C 17 -H {} -U admin -P calvin-lab power status <<<"$list"
			answered=$(grep -c 'Power is' "$DIR/out" || true)
			;;
		esac
		echo "  hosts $who: $answered of $HOSTS, wall $WALL s, cpu $CPU ms" >&2
		[ "$answered" = "$HOSTS" ] || { cat "$DIR/err" >&2; exit 1; }
		keep "hosts.$who.wall" "$WALL" && keep "hosts.$who.cpu" "$(calc "$CPU / $HOSTS" 3)"
	done
}

# Sensors and log of COUNT BMCs once a minute, after three minutes in which the sensor records are read.
sweep() {
	hall "$COUNT" 0 0 60 4
	client "$LOAD" sweep "$COUNT" 60 "$WATCH"
	cat "$DIR/out"
	hall_down
	tail -1 "$DIR/hall"
}

echo "# load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) cores, kernel $(uname -r); BMCs on core $SERVER_CORE, clients on core $CLIENT_CORE"
for run in $(seq "$RUNS"); do
	case $PARTS in *status* | *faults*) status 0 0 whole ;; esac
	case $PARTS in *faults*) status 10 5 faulty ;; esac
	case $PARTS in *hosts*) hosts ;; esac
done

case $PARTS in *status*)
	for how in first open closed; do
		t=$(of whole.$how.healthy) alone=$(of whole.$how.alone) cpu=$(of whole.$how.cpu_ms)
		bound=$(calc "1.2 * $alone + $COUNT * $cpu / 1000" 3)
		echo "status $how: $(of whole.$how.ok) of $COUNT in $(calc "$t" 3) s (wanted 2), slowest alone $(calc "$alone" 3) s," \
			"1.2 x slowest + $COUNT x cpu = $bound s, ratio $(calc "$t / $bound"); cpu $(calc "$cpu" 3) ms each," \
			"at most $(of whole.$how.rss_mb) MB (wanted 200)"
	done ;;
esac
case $PARTS in *faults*)
	for how in first open closed; do
		echo "faults $how: $(of faulty.$how.ok) healthy, p99 $(calc "$(of faulty.$how.p99)" 0) ms, without faults" \
			"$(calc "$(of whole.$how.p99)" 0) ms, ratio $(calc "$(of faulty.$how.p99) / $(of whole.$how.p99)") (wanted 1.10)"
	done ;;
esac
case $PARTS in *hosts*)
	for who in rackline ipmipower ipmitool; do
		echo "hosts $who: wall $(calc "$(of hosts.$who.wall)" 3) s, cpu $(calc "$(of hosts.$who.cpu)" 3) ms a call"
	done
	for who in ipmipower ipmitool; do
		echo "ratio to $who: wall $(calc "$(of hosts.rackline.wall) / $(of hosts.$who.wall)")," \
			"cpu $(calc "$(of hosts.rackline.cpu) / $(of hosts.$who.cpu)") (wanted below 1)"
	done ;;
esac
case $PARTS in *sweep*) sweep ;; esac
