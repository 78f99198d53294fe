#!/bin/bash
# What idle consoles cost: 1,000 recorded by one process of ours, against one ipmitool per console, which is what console
# servers start for IPMI (conserver, and conman without libipmiconsole). Both log in to simulated or real BMCs and then wait.
# Prints the memory of one console of ours over that of one ipmitool (PSS, which shares out what is shared).
set -euo pipefail
cd "$(dirname "$0")/../.."
count=${CONSOLES:-1000} seconds=${SECONDS_IDLE:-45}
cargo build -q --release --bench console-idle
ours=$(find target -path '*release/deps/console_idle-*' -executable -type f -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
figures=$("$ours" "$count" "$seconds")
echo "$figures"
each=$(awk '/each_kib/ { print $2 }' <<<"$figures")

dir=$(mktemp -d); sim= tool=
trap 'kill $sim $tool 2>/dev/null || true; rm -rf "$dir"' EXIT
mkdir "$dir/state"
printf 'mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n' > "$dir/emu"
auth="none md2 md5 straight"
cat > "$dir/conf" <<CONF
name "sim"
set_working_mc 0x20
startlan 1
addr 127.77.0.1 6231
priv_limit admin
allowed_auths_admin $auth
guid 4c414200000000000000000000000001
endlan
sol "tcp:127.77.0.1:1" 115200
startnow false
user 2 true "admin" "calvin-lab" admin 10 $auth
CONF
ipmi_sim -n -c "$dir/conf" -f "$dir/emu" -s "$dir/state" >/dev/null 2>&1 & sim=$!
sleep 1
script -qec "ipmitool -I lanplus -C 3 -H 127.77.0.1 -p 6231 -U admin -P calvin-lab sol activate" /dev/null \
    < <(sleep 8) > "$dir/out" & tool=$!
sleep 3
pss=$(awk '/^Pss:/ { print $2 }' "/proc/$(pgrep -f '^ipmitool .*-p 6231' | head -1)/smaps_rollup")
echo "ipmitool_pss_kib $pss"
awk -v a="$each" -v b="$pss" 'BEGIN { printf "console memory: ours / ipmitool = %.3f\n", a / b }'
