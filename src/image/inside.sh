# Work inside a root directory: packages, scripts, units. Runs in mount and PID namespaces of its own, so that nothing
# stays mounted or running when it ends, however it ends.
#   inside.sh ROOT DEBS APT_CONF RECIPE -- PACKAGE... -- SCRIPT... -- ENABLE... -- MASK...
set -eu
root=$1 debs=$2 apt_conf=$3 recipe=$4
shift 5

mount -t proc proc "$root/proc"
# A user namespace may not mount a sysfs of its own beside a network that is not its own.
mount -t sysfs -o ro sysfs "$root/sys" 2> /dev/null || mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/1 "$root/dev/stdout"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir "$root/tmp/recipe"
mount --bind "$recipe" "$root/tmp/recipe"
mkdir -p "$root/var/cache/apt/archives" "$root/run/lock"
mount --bind "$debs" "$root/var/cache/apt/archives"
mkdir -p "$root/var/cache/apt/archives/partial"

# Packages must not start what they install.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        ${SOURCE_DATE_EPOCH:+SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH"} chroot "$root" "$@"
}

packages=
while [ "$1" != -- ]; do packages="$packages $1"; shift; done
shift
if [ -n "$packages" ]; then
    # apt of this machine, with its ways to the mirror; dpkg of the new system.
    export APT_CONFIG="$apt_conf" DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    install() { apt-get -q -y --no-install-recommends -o DPkg::Chroot-Directory="$root" install $packages; }
    # The package lists are as old as the layer beneath: files may be gone from the mirror since.
    if ! apt-get -q -y --no-install-recommends --download-only install $packages; then
        apt-get -q update
    fi
    install
    unset APT_CONFIG
fi
while [ "$1" != -- ]; do
    echo "+ script $1"
    inside sh -eu "/tmp/recipe/$1"
    shift
done
shift
while [ "$1" != -- ]; do
    # One by one: with one unit missing, systemctl would enable none of the others.
    inside systemctl enable "$1"
    shift
done
shift
[ $# -eq 0 ] || inside systemctl mask "$@"
rm "$root/usr/sbin/policy-rc.d"
