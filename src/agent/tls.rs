//! The host's own key and certificate, and the services that show it: libvirt, Docker, OVSDB.
//!
//! The key is made here and stays here (`/etc/rackline/tls/host.key`); the appliance signs the public half, with the names that it
//! knows this host by. Each service then listens for clients with a certificate of the same site, and for nobody else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};

use super::tool;
use crate::durable;
use crate::error::{Kind, OrFail, Result};
use crate::link::{CertificateRequest, HostCertificate};
use crate::machine::Role;

/// Ports of libvirt (`virsh -c qemu+tls`), Docker and OVSDB, as their own documents name them.
pub const LIBVIRT: u16 = 16514;
pub const DOCKER: u16 = 2376;
pub const OVSDB: u16 = 6640;

const SERVICE: Duration = Duration::from_secs(120);

/// A private key that was made here, and the request that it signs.
pub struct Key {
    pub pem: String,
    pub request: CertificateRequest,
}

impl Key {
    /// `who`: the id of this machine, the name of a client.
    pub fn make(who: &str) -> Result<Self> {
        let failed = || "a key for TLS cannot be made";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_fail(Kind::Internal, "tls.key", failed)?;
        let public_key = hex::encode(key.der_bytes());
        let statement = CertificateRequest::statement(who, &public_key);
        let proof = key.sign(statement.as_bytes()).or_fail(Kind::Internal, "tls.key", failed)?;
        Ok(Self { pem: key.serialize_pem(), request: CertificateRequest { public_key, proof: hex::encode(proof) } })
    }
}

/// Where a host keeps them.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// `root` is `/` but in tests.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn key(&self) -> PathBuf {
        self.at("etc/rackline/tls/host.key")
    }

    pub fn certificate(&self) -> PathBuf {
        self.at("etc/rackline/tls/host.pem")
    }

    pub fn authority(&self) -> PathBuf {
        self.at("etc/rackline/tls/ca.pem")
    }

    /// Key and certificate, and for libvirt where it looks for them.
    pub fn keep(&self, key: &str, signed: &HostCertificate, roles: &[Role]) -> Result<()> {
        secret(&self.key(), key)?;
        public(&self.certificate(), &signed.certificate)?;
        public(&self.authority(), &signed.authority)?;
        if roles.contains(&Role::Kvm) {
            secret(&self.at("etc/pki/libvirt/private/serverkey.pem"), key)?;
            public(&self.at("etc/pki/libvirt/servercert.pem"), &signed.certificate)?;
            public(&self.at("etc/pki/CA/cacert.pem"), &signed.authority)?;
            // What the host itself shows to others, when a guest moves.
            secret(&self.at("etc/pki/libvirt/private/clientkey.pem"), key)?;
            public(&self.at("etc/pki/libvirt/clientcert.pem"), &signed.certificate)?;
        }
        if roles.contains(&Role::Docker) {
            // Read by Debian's unit; `-H fd://`, the socket for this host, stays as it is there.
            let options = format!(
                "# Written by rackline at delivery.\nDOCKER_OPTS=\"-H tcp://0.0.0.0:{DOCKER} --tlsverify \
                 --tlscacert=/etc/rackline/tls/ca.pem --tlscert=/etc/rackline/tls/host.pem \
                 --tlskey=/etc/rackline/tls/host.key\"\n"
            );
            public(&self.at("etc/default/docker"), &options)?;
        }
        Ok(())
    }
}

/// Makes the services of a role take what [`Place::keep`] wrote.
pub async fn serve(role: Role) -> Result<()> {
    match role {
        Role::Kvm => {
            // systemd starts no socket of a service that runs; the next client starts it again.
            tool::expect("systemctl", &["stop", "libvirtd.service"], SERVICE).await?;
            tool::expect("systemctl", &["enable", "--now", "libvirtd-tls.socket"], SERVICE).await?;
        }
        Role::Docker => {
            tool::expect("systemctl", &["restart", "docker.service"], SERVICE).await?;
        }
        Role::Ovs => {
            let place = Place::new(Path::new("/"));
            let paths = [place.key(), place.certificate(), place.authority()].map(|p| p.display().to_string());
            let listen = format!("pssl:{OVSDB}");
            let [key, certificate, authority] = &paths;
            let args = ["--timeout=60", "set-ssl", key, certificate, authority, "--", "set-manager", &listen];
            tool::expect("ovs-vsctl", &args, SERVICE).await?;
        }
    }
    Ok(())
}

fn folder(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).or_fail(Kind::Internal, "tls.keep", || format!("cannot make {}", parent.display()))
}

fn public(path: &Path, text: &str) -> Result<()> {
    folder(path)?;
    durable::replace(path, text.as_bytes())
        .or_fail(Kind::Internal, "tls.keep", || format!("cannot write {}", path.display()))
}

/// Readable by root only from its first byte on; one of an earlier delivery is replaced.
fn secret(path: &Path, text: &str) -> Result<()> {
    folder(path)?;
    let failed = || format!("cannot write {}", path.display());
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    durable::create_secret(&fresh, text.as_bytes()).or_fail(Kind::Internal, "tls.keep", failed)?;
    durable::rename(&fresh, path).or_fail(Kind::Internal, "tls.keep", failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_root_s_alone_and_replaced_at_the_next_delivery() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path());
        let signed = HostCertificate { certificate: "C".into(), authority: "A".into() };
        for key in ["one", "two"] {
            place.keep(key, &signed, &[Role::Kvm, Role::Docker]).unwrap();
        }
        for path in [place.key(), dir.path().join("etc/pki/libvirt/private/serverkey.pem")] {
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let docker = std::fs::read_to_string(dir.path().join("etc/default/docker")).unwrap();
        assert!(docker.contains("-H tcp://0.0.0.0:2376 --tlsverify --tlscacert=/etc/rackline/tls/ca.pem"), "{docker}");
        assert!(!dir.path().join("etc/pki/libvirt/private/serverkey.new").exists());
    }
}
