# Takes out of a root directory what must not be the same on two hosts, or is of no use on any.
#   finish.sh ROOT EPOCH
set -eu
root=$1 epoch=$2
cd "$root"
rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/lib/dpkg/*-old var/log/apt var/cache/ldconfig/aux-cache
find var/log -type f -delete
# Nodes that only root can make, and that nobody sees: a devtmpfs lies over them on every host.
find dev -mindepth 1 -delete
rm -rf tmp/* tmp/.[!.]* run/* var/tmp/* root/.bash_history
# Made anew at the first boot, on each host for itself.
: > etc/machine-id
rm -f var/lib/dbus/machine-id etc/ssh/ssh_host_* var/lib/systemd/random-seed etc/hostname- etc/passwd- etc/shadow- etc/group- etc/gshadow-
# A site's mirror stays, a password for it does not.
find etc/apt -name '*.list' -o -name '*.sources' | while read -r list; do
    sed -i 's,://[^/@]*@,://,' "$list"
done
rm -f etc/apt/apt.conf.d/99mmdebstrap
[ ! -e etc/dpkg/dpkg.cfg.d/99mmdebstrap ] ||
    { sed -n '/^path-/p' etc/dpkg/dpkg.cfg.d/99mmdebstrap > etc/dpkg/dpkg.cfg.d/rackline; rm etc/dpkg/dpkg.cfg.d/99mmdebstrap; }
# Times of the build itself are cut to one, that the same recipe gives the same disk. Files of packages are older, and
# Python's compiled files remember those times.
find . -xdev -newermt "@$epoch" -print0 | xargs -0r touch -h -d "@$epoch"
