# A guest for the delivery check, ready before the network is: the host's own kernel with an initramfs that says it is
# alive and powers off.
#   qemu-system-x86_64 -enable-kvm -m 256 -nographic -no-reboot -kernel /vmlinuz \
#       -initrd /usr/share/rackline/guest.cpio -append "console=ttyS0 quiet"
guest=$(mktemp -d)
mkdir "$guest/bin" "$guest/dev"
cp /bin/busybox "$guest/bin/"
cat > "$guest/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
echo RACKLINE-GUEST-OK > /dev/ttyS0
/bin/busybox poweroff -f
INIT
chmod 755 "$guest/init"
mkdir -p /usr/share/rackline
cd "$guest"
find . | sort | cpio --quiet --create --format=newc --owner=0:0 --reproducible > /usr/share/rackline/guest.cpio
rm -r "$guest"
