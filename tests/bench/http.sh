#!/usr/bin/env bash
# Files over HTTP: the machines' web server against nginx with sendfile, on the loopback of a network namespace, in turn, the
# same file in the page cache. Prints the medians of RUNS runs, and the ratios: speed should be at least 0.95 of nginx's, CPU
# time of the server per GB at most 1.1 of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-5} SIZE=$((1 << 30)) PORT=8080 NS=rackline-http-$$
# clients, requests of each, bytes of each request
SPECS=${SPECS:-"1:16:$SIZE 16:1:$SIZE 200:1:$((96 << 20))"}

load=$(cargo bench --bench http-load --no-run --message-format=json 2>/dev/null |
	sed -n 's/.*"executable":"\([^"]*http_load[^"]*\)".*/\1/p')
[ -x "$load" ] || { echo "http-load was not built: cargo bench --bench http-load --no-run" >&2; exit 1; }

dir=$(mktemp -d -p "${TMPDIR:-/var/tmp}") server=
trap 'end; ip netns del $NS 2>/dev/null || true; rm -rf "$dir"' EXIT
end() { [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; server=; }; }

ip netns add $NS && ip -n $NS link set lo up
mkdir -p "$dir/boot/files" && head -c $SIZE /dev/urandom >"$dir/boot/files/file"
chmod -R a+rX "$dir"
cat >"$dir/nginx.conf" <<EOF
worker_processes auto; daemon off; pid $dir/nginx.pid; error_log $dir/error.log; worker_rlimit_nofile 65536;
events { worker_connections 4096; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_body_temp_path $dir/t;
 proxy_temp_path $dir/t; fastcgi_temp_path $dir/t; uwsgi_temp_path $dir/t; scgi_temp_path $dir/t;
 server { listen 127.0.0.1:$PORT reuseport; root $dir; } }
EOF

start() {
	case $1 in
	nginx) ip netns exec $NS nginx -c "$dir/nginx.conf" & ;;
	rackline) ip netns exec $NS "$load" serve 127.0.0.1:$PORT "$dir/boot/files/file" & ;;
	esac
	server=$!
	for _ in $(seq 100); do ip netns exec $NS curl -sfo /dev/null "http://127.0.0.1:$PORT/boot/files/file" && return; sleep 0.1; done
	echo "$1 does not answer" >&2; exit 1
}

# CPU seconds of the server and its workers so far: utime and stime of proc_pid_stat(5).
cpu() { for pid in $server $(pgrep -P "$server"); do cut -d' ' -f14,15 "/proc/$pid/stat"; done | awk '{t += $1 + $2} END {print t / 100}'; }

for run in $(seq "$RUNS"); do
	# Each goes first every other time.
	[ $((run % 2)) = 0 ] && order="nginx rackline" || order="rackline nginx"
	for who in $order; do
		start $who
		for spec in $SPECS; do
			IFS=: read -r clients requests length <<<"$spec"
			before=$(cpu)
			line=$(ip netns exec $NS "$load" fetch 127.0.0.1:$PORT /boot/files/file "$clients" "$requests" "$length" $SIZE)
			after=$(cpu)
			awk -v who=$who -v clients="$clients" -v cpu="$after $before" '{
				split($1, b, "="); split($3, g, "="); split(cpu, c, " ")
				print who, clients, g[2], (c[1] - c[2]) / (b[2] / 1e9) }' <<<"$line" | tee -a "$dir/results" >&2
		done
		end
	done
done

median() { awk -v who="$1" -v clients="$2" -v column="$3" '$1 == who && $2 == clients {print $column}' "$dir/results" |
	sort -n | awk '{a[NR] = $1} END {print NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2}'; }
for spec in $SPECS; do
	clients=${spec%%:*}
	awk -v n="$clients" -v a="$(median rackline "$clients" 3)" -v b="$(median nginx "$clients" 3)" \
		-v c="$(median rackline "$clients" 4)" -v d="$(median nginx "$clients" 4)" 'BEGIN {
		printf "%3d clients: %.2f GB/s, nginx %.2f, ratio %.2f; CPU %.3f s/GB, nginx %.3f, ratio %.2f\n", n, a, b, a / b, c, d, c / d }'
done
