//! A model file's content from anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libjrs::model::{Model, PublicKey};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(model) = Model::from_bytes(bytes, "fuzz") {
        let _ = model.to_bytes();
        if let Ok(key) = PublicKey::from_bytes(&[1; 32]) {
            let _ = model.verify_signature(&key);
        }
    }
});
