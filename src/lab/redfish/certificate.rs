//! The self-signed certificate that each BMC brings from the factory: made at the start, known to nobody.
//!
//! X.509 (RFC 5280 section 4.1) in DER, with a P-256 key; as little of it as a TLS client reads.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use std::net::IpAddr;

use crate::error::{Kind, OrFail, Result};

pub struct Certificate {
    pub der: Vec<u8>,
    pub pkcs8: Vec<u8>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
/// 1.2.840.10045.4.3.2, ecdsa-with-SHA256.
const ECDSA_SHA256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// 2.5.4.3, common name.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// 2.5.29.17, subject alternative name.
const ALTERNATIVE_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

pub fn self_signed(name: &str, address: IpAddr) -> Result<Certificate> {
    let failed = || "cannot make a certificate";
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
    let key = key.or_fail(Kind::Internal, "lab.certificate", failed)?;
    let pkcs8 = key.to_pkcs8v1().or_fail(Kind::Internal, "lab.certificate", failed)?;
    let public: PublicKeyX509Der = key.public_key().as_der().or_fail(Kind::Internal, "lab.certificate", failed)?;
    let random = SystemRandom::new();
    let mut serial = [0u8; 16];
    random.fill(&mut serial).or_fail(Kind::Internal, "lab.certificate", failed)?;
    // A serial number is positive, and its shortest form.
    serial[0] = serial[0] & 0x7f | 0x40;

    let algorithm = tlv(SEQUENCE, &tlv(OID, &ECDSA_SHA256));
    let common = tlv(SEQUENCE, &[tlv(OID, &COMMON_NAME), tlv(UTF8_STRING, name.as_bytes())].concat());
    let subject = tlv(SEQUENCE, &tlv(SET, &common));
    let validity = tlv(SEQUENCE, &[tlv(UTC_TIME, b"200101000000Z"), tlv(UTC_TIME, b"491231235959Z")].concat());
    let address = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    // GeneralName: [7] iPAddress, [2] dNSName.
    let names = tlv(SEQUENCE, &[tlv(0x87, &address), tlv(0x82, b"localhost")].concat());
    let extension = tlv(SEQUENCE, &[tlv(OID, &ALTERNATIVE_NAME), tlv(OCTET_STRING, &names)].concat());
    let signed = tlv(
        SEQUENCE,
        &[
            tlv(0xa0, &tlv(INTEGER, &[2])),
            tlv(INTEGER, &serial),
            algorithm.clone(),
            subject.clone(),
            validity,
            subject,
            public.as_ref().to_vec(),
            tlv(0xa3, &tlv(SEQUENCE, &extension)),
        ]
        .concat(),
    );
    let signature = key.sign(&random, &signed).or_fail(Kind::Internal, "lab.certificate", failed)?;
    let signature = tlv(BIT_STRING, &[&[0], signature.as_ref()].concat());
    Ok(Certificate { der: tlv(SEQUENCE, &[signed, algorithm, signature].concat()), pkcs8: pkcs8.as_ref().to_vec() })
}

/// Tag, length (short form, or one or two bytes of it), value.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let mut bytes = match length {
        0..0x80 => vec![tag, length as u8],
        0x80..0x100 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    bytes.extend(value);
    bytes
}
