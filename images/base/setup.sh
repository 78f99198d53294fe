# Finishes the base system, inside of it.

# No password opens it: the seed brings keys.
passwd --lock root

# Its generator, which looks for a data source at each boot, is masked: the data source is known.
systemctl enable cloud-init-local.service cloud-final.service
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /lib/systemd/system/cloud-init.target /etc/systemd/system/multi-user.target.wants/cloud-init.target

# Consoles of servers: VGA and the first serial port.
systemctl enable serial-getty@ttyS0.service
