#!/bin/bash
# {{ name }}{% if location %}, {{ location }}{% endif %}: made by Rackline from [[switches]]
# The switch runs a script only where this word stands in it:
# CUMULUS-AUTOPROVISIONING
set -e
nv set system hostname {{ name }}
nv set interface eth0 ip address {{ address.ip }}/{{ address.prefix }}
{% if gateway %}nv set interface eth0 ip gateway {{ gateway }}
{% endif %}{% for server in dns %}nv set service dns mgmt server {{ server }}
{% endfor %}{% for server in ntp %}nv set service ntp mgmt server {{ server }}
{% endfor %}{% for server in syslog %}nv set service syslog mgmt server {{ server }}
{% endfor %}nv set bridge domain br_default vlan {{ vlan }}
{% for port in ports %}nv set interface {{ port.name }} link state up
nv set interface {{ port.name }} description '{{ port.machine }}'
nv set interface {{ port.name }} bridge domain br_default access {{ vlan }}
nv set interface {{ port.name }} bridge domain br_default stp admin-edge on
{% endfor %}{% for port in uplinks %}nv set interface {{ port }} link state up
nv set interface {{ port }} description 'uplink'
nv set interface {{ port }} bridge domain br_default vlan {{ vlan }}
{% endfor %}{% if relay %}nv set interface vlan{{ vlan }} ip address {{ relay.ip }}/{{ relay.prefix }}
nv set interface vlan{{ vlan }} vlan {{ vlan }}
nv set service dhcp-relay default interface vlan{{ vlan }}
{% for port in uplinks %}nv set service dhcp-relay default interface {{ port }}
{% endfor %}nv set service dhcp-relay default server {{ appliance }}
# Option 82 with the port's name. The word changed from `enable on` to `state enabled` between releases.
nv set service dhcp-relay default agent state enabled ||
    nv set service dhcp-relay default agent enable on
nv set service dhcp-relay default agent use-pif-circuit-id state enabled ||
    nv set service dhcp-relay default agent use-pif-circuit-id enable on
nv set service dhcp-relay default agent remote-id {{ name }}
{% endif %}nv config apply -y
nv config save
systemctl enable --now lldpd
exit 0
