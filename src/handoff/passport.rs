//! The signed passport: `{"passport": …, "key": HEX, "signature": HEX}`. The signature is Ed25519 over the compact JSON of
//! `passport` with the keys of every object in ascending order, so that the file may be re-indented and still verifies.

use serde_json::{Value, json};

use crate::image::sign::SigningKey;
use crate::lifecycle::passport::Passport;
use crate::lifecycle::{Machine, Millis};
use crate::link::Problem;

pub fn issue(key: &SigningKey, machine: &Machine, now: Millis) -> Result<Value, Problem> {
    let passport = Passport::of(machine, now)?;
    // serde_json's own map is sorted by key: going through `Value` makes the bytes canonical.
    let body = serde_json::to_value(&passport).map_err(|e| Problem {
        code: "passport.encode".into(),
        title: format!("the passport cannot be written as JSON: {e}"),
        hint: None,
        causes: Vec::new(),
    })?;
    let signature = key.sign(body.to_string().as_bytes());
    Ok(json!({ "passport": body, "key": key.public().to_string(), "signature": hex::encode(signature) }))
}
