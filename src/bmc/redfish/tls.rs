//! Whether it is the same BMC as before: its certificate, pinned on first use.
//!
//! BMCs come with a certificate that they signed themselves, often the same for a whole model, and with the wrong name in
//! it. So nothing in it is believed but the key: the first certificate that a BMC shows is remembered by its SHA-256, the
//! handshake proves that the BMC has the key, and any other certificate is refused before a password is sent. A site that
//! gives its BMCs certificates of its own names the authority, and then chain and name are checked as everywhere.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Kind, OrFail, Result};

/// SHA-256 of a certificate in DER, as browsers and `openssl x509 -fingerprint -sha256` show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|b| format!("{b:02X}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

impl FromStr for Fingerprint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes: Vec<u8> =
            text.trim().split(':').map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<_, _>>().map_err(drop)?;
        Ok(Self(bytes.try_into().map_err(drop)?))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which certificates of a BMC are accepted.
#[derive(Clone, Default)]
pub enum Trust {
    /// Whatever it shows first; what that was, [`Pin::seen`] tells.
    #[default]
    FirstUse,
    Pinned(Fingerprint),
    Authority(Authority),
}

/// The authority of a site, which signs the certificates of its BMCs.
#[derive(Clone)]
pub struct Authority(Arc<WebPkiServerVerifier>);

impl Authority {
    /// `pem`: one certificate or several.
    pub fn from_pem(pem: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let wrong = || "the authority for BMC certificates is not a PEM file of certificates";
            let certificate = certificate.or_fail(Kind::Config, "bmc.authority", wrong)?;
            roots.add(certificate).or_fail(Kind::Config, "bmc.authority", wrong)?;
        }
        let empty = || "the authority for BMC certificates has no certificate in it";
        let built = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::new(provider::default_provider()));
        Ok(Self(built.build().or_fail(Kind::Config, "bmc.authority", empty)?))
    }
}

/// What the connections to one BMC accept, and what they were shown.
pub struct Pin {
    provider: Arc<CryptoProvider>,
    authority: Option<Authority>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    accepted: Option<Fingerprint>,
    refused: Option<Fingerprint>,
}

impl Pin {
    pub fn new(trust: Trust) -> Arc<Self> {
        let (accepted, authority) = match trust {
            Trust::FirstUse => (None, None),
            Trust::Pinned(fingerprint) => (Some(fingerprint), None),
            Trust::Authority(authority) => (None, Some(authority)),
        };
        Arc::new(Self {
            provider: Arc::new(provider::default_provider()),
            authority,
            seen: Mutex::new(Seen { accepted, refused: None }),
        })
    }

    pub fn config(self: &Arc<Self>) -> Result<ClientConfig> {
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .or_fail(Kind::Internal, "bmc.tls", || "the TLS library has no protocol version")?
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth();
        Ok(config)
    }

    /// The certificate that connections were made with; `None` before the first.
    pub fn seen(&self) -> Option<Fingerprint> {
        self.lock().accepted
    }

    /// The sentence for a certificate that was refused, where that is why a connection failed.
    pub fn refusal(&self, whose: &str) -> Option<Error> {
        let seen = self.lock();
        let (accepted, refused) = (seen.accepted?, seen.refused?);
        let message = format!("{whose} shows another certificate than before: {refused} instead of {accepted}");
        Some(Error::refused("bmc.certificate", message).hint(
            "if its firmware or certificate was renewed, forget the old one; else find out who answers at this address",
        ))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?})", self.seen())
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::of(certificate);
        if let Some(Authority(authority)) = &self.authority {
            let verified = authority.verify_server_cert(certificate, intermediates, name, ocsp, now)?;
            self.lock().accepted = Some(shown);
            return Ok(verified);
        }
        let mut seen = self.lock();
        if *seen.accepted.get_or_insert(shown) == shown {
            return Ok(ServerCertVerified::assertion());
        }
        seen.refused = Some(shown);
        Err(rustls::Error::General(format!("certificate {shown} is not the pinned one")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(pin: &Pin, certificate: &[u8]) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from("10.0.0.7").unwrap();
        pin.verify_server_cert(&CertificateDer::from(certificate), &[], &name, &[], UnixTime::now())
    }

    #[test]
    fn the_first_certificate_is_kept_and_another_one_refused_by_name() {
        let pin = Pin::new(Trust::FirstUse);
        assert!(pin.seen().is_none());
        show(&pin, b"first").unwrap();
        show(&pin, b"first").unwrap();
        assert!(pin.refusal("BMC 10.0.0.7").is_none());
        show(&pin, b"other").unwrap_err();
        let refusal = pin.refusal("BMC 10.0.0.7").unwrap();
        assert_eq!(refusal.code(), "bmc.certificate");
        let first = pin.seen().unwrap().to_string();
        // echo -n first | sha256sum
        assert!(first.starts_with("A7:93:7B:64:B8:CA:A5:8F"), "{first}");
        assert!(refusal.message().ends_with(&format!("instead of {first}")), "{refusal}");

        let later = Pin::new(Trust::Pinned(pin.seen().unwrap()));
        show(&later, b"other").unwrap_err();
        show(&later, b"first").unwrap();
    }

    #[test]
    fn an_authority_needs_certificates() {
        assert_eq!(Authority::from_pem(b"").err().unwrap().code(), "bmc.authority");
    }
}
