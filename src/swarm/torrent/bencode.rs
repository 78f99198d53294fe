//! Bencode (BEP 3), written only: nothing in this encoding is ever read from the network here.

use std::collections::BTreeMap;

#[derive(Debug, Clone)]
pub enum Value {
    Integer(u64),
    Bytes(Vec<u8>),
    /// In the order of the keys, which is the only valid one; so the same value is always the same bytes.
    Dict(BTreeMap<&'static str, Value>),
    /// Encoded already.
    Raw(Vec<u8>),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Integer(n)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Bytes(text.into())
    }
}

impl<const N: usize> From<[(&'static str, Value); N]> for Value {
    fn from(entries: [(&'static str, Value); N]) -> Self {
        Self::Dict(entries.into())
    }
}

impl Value {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(n) => out.extend(format!("i{n}e").bytes()),
            Self::Bytes(bytes) => string(bytes, out),
            Self::Raw(bytes) => out.extend(bytes),
            Self::Dict(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    string(key.as_bytes(), out);
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(format!("{}:", bytes.len()).bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_bep_3() {
        assert_eq!(Value::from("spam").encode(), b"4:spam");
        assert_eq!(Value::from(0).encode(), b"i0e");
        let dict = Value::from([("spam", "eggs".into()), ("cow", "moo".into())]);
        assert_eq!(dict.encode(), b"d3:cow3:moo4:spam4:eggse");
        assert_eq!(Value::from([("a", Value::Raw(b"i3e".into()))]).encode(), b"d1:ai3ee");
    }
}
