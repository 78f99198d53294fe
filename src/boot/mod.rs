//! DHCP, TFTP and HTTP boot.
