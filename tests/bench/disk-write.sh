#!/usr/bin/env bash
# One node, an image to its disk without the network: the agent's own pipeline against the disk's and the processor's limits and
# against other writers, all with the same image on the same disk, their sources in memory. Median of RUNS.
#
#   fio        as many bytes as the image uses, in one piece: what the disk can take
#   unpack     all frames decompressed on all cores, nothing written: what the processor can give
#
# A disk is a loop device with direct access over a file on a real disk. Every second column is seconds / those of ours: more
# than 1 is slower than ours. Peers may leave out what is zero where they can, since the disk is zero before each run.
set -euo pipefail
RUNS=${RUNS:-5}
IMAGES=${RACKLINE_IMAGES:-$HOME/.cache/rackline/images}
IMAGE=$(ls -dS "$IMAGES"/*/disk.zst | head -1) && IMAGE=$(dirname "$IMAGE")
DIR=$(mktemp -d -p "${BENCH_DIR:-/var/tmp}" rackline-disk.XXXXXX) RAM=$(mktemp -d -p /dev/shm rackline-disk.XXXXXX)
. "$(dirname "$0")/lib/figures.sh"
LOOP=
trap '[ -z "$LOOP" ] || losetup -d "$LOOP"; rm -rf "$DIR" "$RAM"' EXIT
BENCH=${DISK_WRITE:-$(built disk-write)}

# ---- the same image in every peer's form ----
cp "$IMAGE"/{manifest,disk.zst} "$RAM"
zstd -q -d "$RAM/disk.zst" -o "$RAM/disk.raw" --sparse
zstd -q -3 -T0 "$RAM/disk.raw" -o "$RAM/stream.zst"
qemu-img convert -O qcow2 -c -o compression_type=zstd "$RAM/disk.raw" "$RAM/disk.qcow2"
bmaptool -q create "$RAM/disk.raw" -o "$RAM/disk.bmap" 2>/dev/null
# partclone knows file systems, not disks: it has the root partition only.
read -r START SECTORS < <(sfdisk -J "$RAM/disk.raw" | tr -d ' ,\n' | grep -o '"start":[0-9]*"size":[0-9]*' |
	sed 's/[^0-9]\+/ /g' | sort -k2 -g | tail -1)
PART=$(losetup -f --show -r -o $((START * 512)) --sizelimit $((SECTORS * 512)) "$RAM/disk.raw")
partclone.ext4 -c -s "$PART" -q -o "$RAM/root.pc" -L "$DIR/log" >/dev/null 2>&1 && zstd -q -3 -T0 "$RAM/root.pc" || true
losetup -d "$PART"

# ---- the disk ----
SIZE=$((($(stat -c %s "$RAM/disk.raw") >> 22) + 32 << 22))
fallocate -l "$SIZE" "$DIR/disk"
LOOP=$(losetup -f --show --direct-io=on "$DIR/disk")
# Written once, so that nobody pays for the file system's extents; zeros are written before each run.
blank() { dd if=/dev/zero of="$LOOP" bs=4M count=$((SIZE >> 22)) oflag=direct conv=fsync status=none; }
USED=$("$BENCH" unpack "$RAM" | cut -d' ' -f2)

method() {
	case $1 in
	fio) fio --name=w --filename="$LOOP" --rw=write --bs=4M --size="$USED" --direct=1 --ioengine=libaio --iodepth=4 --end_fsync=1 ;;
	unpack) "$BENCH" unpack "$RAM" ;;
	ours) "$BENCH" write "$RAM" "$LOOP" ;;
	ours-no-journal) "$BENCH" write "$RAM" "$LOOP" --no-journal ;;
	qemu-img) qemu-img convert -n --target-is-zero -t none -W -m 8 -f qcow2 -O raw "$RAM/disk.qcow2" "$LOOP" ;;
	bmaptool) bmaptool -q copy --bmap "$RAM/disk.bmap" "$RAM/stream.zst" "$LOOP" ;;
	zstd-dd) zstd -dcq "$RAM/stream.zst" | dd of="$LOOP" bs=4M iflag=fullblock oflag=direct conv=fdatasync status=none ;;
	zstd-dd-sparse) zstd -dcq "$RAM/stream.zst" | dd of="$LOOP" bs=4M iflag=fullblock oflag=direct conv=sparse,fdatasync status=none ;;
	partclone) zstd -dcq "$RAM/root.pc.zst" | partclone.ext4 -r -s - -o "$LOOP" -q -L "$DIR/log" ;;
	esac >"$DIR/out" 2>&1
}

METHODS=${METHODS:-fio unpack ours ours-no-journal qemu-img bmaptool zstd-dd zstd-dd-sparse partclone}
echo "# load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) cores, kernel $(uname -r); $(basename "$IMAGE"): $((USED >> 20)) MiB used of" \
	"$(($(stat -c %s "$RAM/disk.raw") >> 20)) MiB, $(($(stat -c %s "$RAM/disk.zst") >> 20)) MiB compressed; median of $RUNS"
for _ in $(seq "$RUNS"); do
	for m in $METHODS; do
		blank
		start=$(date +%s.%N)
		method "$m" || { echo "$m failed:" && cat "$DIR/out"; exit 1; }
		# Buffered writers are done when the disk has it.
		sync "$LOOP"
		seconds=$(calc "$(date +%s.%N) - $start" 3)
		# Only ours starts a runtime that others do not have to: it counts all the same.
		echo "$seconds" >>"$DIR/$m"
		case $m in ours*) tail -1 "$DIR/out" | cut -d' ' -f3 >>"$DIR/$m.memory" ;; esac
	done
	[ -f "$DIR/same" ] || [[ ! $METHODS =~ ours ]] || { blank; method ours; cmp -n "$(stat -c %s "$RAM/disk.raw")" "$RAM/disk.raw" "$LOOP"; touch "$DIR/same"; }
done

ours=$(median <"$DIR/ours")
for m in $METHODS; do
	s=$(median <"$DIR/$m")
	printf '%-16s %7.2f s %8.0f MB/s of the image  %5.2f x ours\n' "$m" "$s" "$(calc "$USED / 1e6 / $s" 0)" "$(calc "$s / $ours")"
done
floor=$(printf '%s\n' "$(median <"$DIR/fio")" "$(median <"$DIR/unpack")" | sort -g | tail -1)
echo "ratio to the larger of fio and unpack: $(calc "$ours / $floor")  (goal: at most 1.20)"
echo "ratio with to without journal:         $(calc "$ours / $(median <"$DIR/ours-no-journal")" 3)  (goal: at most 1.02)"
echo "most memory: $(($(sort -g "$DIR/ours.memory" | tail -1) >> 10)) MiB  (goal: less than 256)"
