//! Keys and algorithms of a session: cipher suites 3 and 17 (section 22.15.2, tables 13-17 to 13-19).
//!
//! | suite | authentication | integrity | confidentiality |
//! |---|---|---|---|
//! | 3 | RAKP-HMAC-SHA1 | HMAC-SHA1-96 | AES-CBC-128 |
//! | 17 | RAKP-HMAC-SHA256 | HMAC-SHA256-128 | AES-CBC-128 |
//!
//! The weaker suites of the specification (no integrity, no encryption, MD5) are left out on purpose.

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Three,
    Seventeen,
}

impl Suite {
    pub fn number(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Seventeen => 17,
        }
    }

    /// Numbers of the authentication, integrity and confidentiality algorithm.
    pub fn algorithms(self) -> [u8; 3] {
        match self {
            Self::Three => [1, 1, 1],
            Self::Seventeen => [3, 4, 1],
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Three => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Seventeen => hmac::HMAC_SHA256,
        }
    }

    /// Bytes of an integrity check value: the digest cut short.
    pub fn check_length(self) -> usize {
        match self {
            Self::Three => 12,
            Self::Seventeen => 16,
        }
    }

    /// Bytes of the key exchange authentication code in RAKP 2 and 3: the whole digest.
    pub fn code_length(self) -> usize {
        self.hmac().tag_len()
    }

    /// The HMAC of the joined parts, whole.
    pub fn mac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.hmac(), key));
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }
}

/// In constant time; different lengths are different.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    verify_slices_are_equal(a, b).is_ok()
}

const BLOCK: usize = 16;

/// What a session signs and encrypts with (section 13.32).
pub struct Keys {
    suite: Suite,
    integrity: hmac::Key,
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

impl Keys {
    /// K1 signs, the first 16 bytes of K2 encrypt; both come from the session integrity key.
    pub fn derive(suite: Suite, session_key: &[u8]) -> Result<Self, Unspecified> {
        let k1 = suite.mac(session_key, &[&[1; 20]]);
        let k2 = suite.mac(session_key, &[&[2; 20]]);
        let aes = k2.get(..BLOCK).ok_or(Unspecified)?;
        Ok(Self {
            suite,
            integrity: hmac::Key::new(suite.hmac(), &k1),
            encrypting: EncryptingKey::cbc(UnboundCipherKey::new(&AES_128, aes)?)?,
            decrypting: DecryptingKey::cbc(UnboundCipherKey::new(&AES_128, aes)?)?,
        })
    }

    pub fn check_length(&self) -> usize {
        self.suite.check_length()
    }

    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let mut check = hmac::sign(&self.integrity, bytes).as_ref().to_vec();
        check.truncate(self.check_length());
        check
    }

    pub fn verify(&self, bytes: &[u8], check: &[u8]) -> bool {
        equal(&self.sign(bytes), check)
    }

    /// `IV(16) AES-CBC(message, 01 02 03 …, length of the padding)` (section 13.29).
    pub fn encrypt(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut text = message.to_vec();
        let padding = (BLOCK - (message.len() + 1) % BLOCK) % BLOCK;
        text.extend((1..=padding).map(|i| i as u8));
        text.push(padding as u8);
        let context = self.encrypting.encrypt(&mut text)?;
        let iv: &[u8] = (&context).try_into()?;
        Ok([iv, &text].concat())
    }

    /// The message of an encrypted payload. Call it only after [`Keys::verify`].
    pub fn decrypt(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let (iv, text) = payload.split_first_chunk::<BLOCK>()?;
        if text.is_empty() || text.len() % BLOCK != 0 {
            return None;
        }
        let mut text = text.to_vec();
        self.decrypting.decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(iv))).ok()?;
        let padding = usize::from(text.pop()?);
        let length = text.len().checked_sub(padding)?;
        // More than a block of padding is not what any implementation sends.
        if padding >= BLOCK {
            return None;
        }
        text.truncate(length);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_the_rfcs() {
        // RFC 2202 case 2 and RFC 4231 case 2, given in two parts.
        let parts: &[&[u8]] = &[b"what do ya want ", b"for nothing?"];
        assert_eq!(hex::encode(Suite::Three.mac(b"Jefe", parts)), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        assert_eq!(
            hex::encode(Suite::Seventeen.mac(b"Jefe", parts)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_padded_password_is_the_same_key() {
        let padded = *b"calvin\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(Suite::Three.mac(b"calvin", &[b"x"]), Suite::Three.mac(&padded, &[b"x"]));
    }

    #[test]
    fn messages_of_every_length_come_back() {
        for suite in [Suite::Three, Suite::Seventeen] {
            let keys = Keys::derive(suite, &[7; 20]).unwrap();
            for length in 0..=64 {
                let message: Vec<u8> = (0..length).collect();
                let payload = keys.encrypt(&message).unwrap();
                assert_eq!(payload.len() % BLOCK, 0);
                assert_eq!(keys.decrypt(&payload).unwrap(), message);
                for cut in [0, 1, BLOCK, payload.len() - 1] {
                    assert!(keys.decrypt(&payload[..cut]).is_none());
                }
            }
        }
    }

    #[test]
    fn a_changed_bit_is_noticed() {
        let keys = Keys::derive(Suite::Seventeen, b"key").unwrap();
        let check = keys.sign(b"bytes");
        assert_eq!(check.len(), 16);
        assert!(
            keys.verify(b"bytes", &check) && !keys.verify(b"bytez", &check) && !keys.verify(b"bytes", &check[..15])
        );
    }
}
