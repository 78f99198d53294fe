//! The site's certificate authority: it makes the certificates by which delivered hosts and those who work with them know one
//! another (libvirt, Docker, OVSDB).
//!
//! Keys are made where they are used and stay there: a request is a public key and a signature with its private half, and names
//! come from what the appliance knows, never from the request. X.509 by `rcgen` (RFC 5280), ECDSA on P-256.

use std::net::IpAddr;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{CertificateRequest, HostCertificate};

/// An uncompressed point on P-256 (SEC 1 section 2.3.3).
const POINT: usize = 65;
/// Of the authority itself, in years.
const AUTHORITY_YEARS: i16 = 20;
/// Of what it signs. A host gets a new certificate with each delivery.
const YEARS: i16 = 5;

/// As it is sealed in the store; holds the private key.
#[derive(Serialize, Deserialize)]
pub struct Sealed {
    name: String,
    key: String,
    certificate: String,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Who the other side is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder<'a> {
    /// A delivered host: shows itself to clients, and to other hosts where guests move between them.
    Host { hostname: &'a str, addresses: &'a [IpAddr] },
    /// Somebody of the site who works with hosts.
    Client { name: &'a str },
}

struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn failed() -> &'static str {
    "the certificate authority of the site does not work"
}

impl Sealed {
    /// A new one. `site` is in its name.
    pub fn make(site: &str) -> Result<Self> {
        let name: String = format!("Rackline {site}").chars().filter(|c| !c.is_control()).take(60).collect();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_fail(Kind::Internal, "authority.make", failed)?;
        let made = parameters(&name)?.self_signed(&key).or_fail(Kind::Internal, "authority.make", failed)?;
        Ok(Self { key: key.serialize_pem(), certificate: made.pem(), name })
    }
}

/// Of the authority; what it signs takes its name and key identifier from here.
fn parameters(name: &str) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = named(name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut parameters, AUTHORITY_YEARS)?;
    Ok(parameters)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From yesterday, for clocks that are behind.
fn valid(parameters: &mut CertificateParams, years: i16) -> Result<()> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let (from, until) = (today.yesterday(), today.checked_add(jiff::Span::new().years(years)));
    parameters.not_before = day(from.or_fail(Kind::Internal, "authority.clock", failed)?);
    parameters.not_after = day(until.or_fail(Kind::Internal, "authority.clock", failed)?);
    Ok(())
}

impl Authority {
    pub fn open(sealed: &Sealed) -> Result<Self> {
        let key = KeyPair::from_pem(&sealed.key).or_fail(Kind::Config, "authority.key", failed)?;
        Ok(Self { issuer: Issuer::new(parameters(&sealed.name)?, key), certificate: sealed.certificate.clone() })
    }

    /// Its own certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// `who` is what the request's signature was made for: the id of a machine, the name of a client.
    pub fn sign(&self, who: &str, holder: &Holder<'_>, request: &CertificateRequest) -> Result<HostCertificate> {
        let key = proven(who, request)?;
        let (name, names, uses) = match holder {
            Holder::Host { hostname, addresses } => {
                let dns = hostname
                    .to_string()
                    .try_into()
                    .or_fail(Kind::Input, "authority.name", || format!("{hostname:?} cannot stand in a certificate"))?;
                let mut names = vec![SanType::DnsName(dns)];
                names.extend(addresses.iter().copied().map(SanType::IpAddress));
                (*hostname, names, vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
            }
            Holder::Client { name } => (*name, Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth]),
        };
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = named(name);
        parameters.subject_alt_names = names;
        // libvirt's own check of a certificate wants the second one, too, whatever the key.
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages = uses;
        parameters.use_authority_key_identifier_extension = true;
        valid(&mut parameters, YEARS)?;
        let signed = parameters.signed_by(&key, &self.issuer).or_fail(Kind::Internal, "authority.sign", failed)?;
        Ok(HostCertificate { certificate: signed.pem(), authority: self.certificate.clone() })
    }
}

/// The key of a request whose sender has the private half, for `who` and nobody else.
fn proven(who: &str, request: &CertificateRequest) -> Result<Point> {
    let wrong = || {
        Error::input("authority.request", "the request for a certificate is not signed by its own key")
            .hint("is the agent of this release? `rackline machine show`")
    };
    if request.public_key.len() != 2 * POINT || request.proof.len() > 4 * POINT {
        return Err(wrong());
    }
    let (Ok(point), Ok(proof)) = (hex::decode(&request.public_key), hex::decode(&request.proof)) else {
        return Err(wrong());
    };
    let statement = CertificateRequest::statement(who, &request.public_key);
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point);
    key.verify(statement.as_bytes(), &proof).map_err(|_| wrong())?;
    Ok(Point(point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::SigningKey;

    fn request(who: &str) -> CertificateRequest {
        let key = KeyPair::generate().unwrap();
        let public_key = hex::encode(key.der_bytes());
        let proof = hex::encode(key.sign(CertificateRequest::statement(who, &public_key).as_bytes()).unwrap());
        CertificateRequest { public_key, proof }
    }

    #[test]
    fn only_the_holder_of_a_key_gets_a_certificate_and_only_for_itself() {
        let authority = Authority::open(&Sealed::make("lab").unwrap()).unwrap();
        let holder = Holder::Client { name: "ops" };
        let good = request("ops");
        let signed = authority.sign("ops", &holder, &good).unwrap();
        assert!(signed.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert_eq!(signed.authority, authority.certificate());
        let other = request("ops");
        for bad in [
            CertificateRequest { public_key: other.public_key.clone(), ..good.clone() },
            CertificateRequest { proof: other.proof, ..good.clone() },
            CertificateRequest { proof: String::new(), ..good.clone() },
            CertificateRequest { public_key: "00".repeat(POINT), ..good.clone() },
            CertificateRequest { public_key: "zz".repeat(POINT), ..good.clone() },
        ] {
            assert_eq!(authority.sign("ops", &holder, &bad).unwrap_err().code(), "authority.request");
        }
        assert!(authority.sign("somebody else", &holder, &good).is_err());
    }

    #[test]
    fn it_is_the_same_after_a_restart() {
        let sealed = Sealed::make("lab").unwrap();
        let text = serde_json::to_string(&sealed).unwrap();
        let again = Authority::open(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(again.certificate(), sealed.certificate);
    }
}
