//! Ed25519 signatures: a vendor's word that a model is the one that was released.
//!
//! The manifest is signed, as the JSON text this software writes; it holds the SHA-256 of every tensor, so the signature
//! covers the whole model. It stands under `jrs.signature` in the file's metadata.

use std::path::Path;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::{Error, Result};

/// A signature, 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

/// The public half of a vendor's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// The secret half.
pub struct SecretKey(SigningKey);

impl Signature {
    /// From 128 hexadecimal digits.
    pub(super) fn from_hex(hex: &str) -> Result<Self, String> {
        from_hex(hex)
            .map(Self)
            .ok_or_else(|| format!("its signature `{hex:.20}...` is not 128 hexadecimal digits"))
    }

    /// As hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

impl PublicKey {
    /// From its 32 bytes.
    ///
    /// # Errors
    /// [`Error::Input`] if they are no Ed25519 public key, or a weak one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        match VerifyingKey::from_bytes(bytes) {
            Ok(key) if !key.is_weak() => Ok(Self(key)),
            _ => Err(Error::input(
                format!("{} is no Ed25519 public key", to_hex(bytes)),
                "give the 32 bytes that `jrs model sign` printed in hexadecimal",
            )),
        }
    }

    /// From 64 hexadecimal digits.
    ///
    /// # Errors
    /// As [`PublicKey::from_bytes`], and for anything that is not 64 digits.
    pub fn from_hex(hex: &str) -> Result<Self> {
        let bytes = from_hex(hex.trim()).ok_or_else(|| {
            Error::input(
                format!("the key `{hex:.80}` is not 64 hexadecimal digits"),
                "give what `jrs model sign` printed",
            )
        })?;
        Self::from_bytes(&bytes)
    }

    /// As hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(self.0.as_bytes())
    }

    pub(super) fn accepts(&self, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl SecretKey {
    /// Reads a key: a file of 32 random bytes (`openssl rand -out key 32`).
    ///
    /// # Errors
    /// If the file cannot be read or holds another number of bytes.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fix = "make one with `openssl rand -out key 32` and keep it secret";
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e, fix))?;
        let seed: &[u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| Error::file(path, format!("{} bytes, and a secret key has 32", bytes.len()), fix))?;
        Ok(Self(SigningKey::from_bytes(seed)))
    }

    /// The half that may be given away.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| 16 * pair[0] + pair[1]).collect();
    (digits.len() == 2 * N).then(|| bytes.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GeneratorWeights, Model, Provenance};

    /// RFC 8032, section 7.1, test 1: the empty message.
    #[test]
    fn the_rfcs_first_test() {
        let seed = from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let key = SecretKey(SigningKey::from_bytes(&seed));
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.public().to_hex(), public);
        let expected = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
        assert_eq!(key.sign(b"").to_hex(), expected);
        assert!(PublicKey::from_hex(public).unwrap().accepts(b"", &Signature::from_hex(expected).unwrap()));
    }

    #[test]
    fn a_signed_model_stays_signed_and_a_changed_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [7u8; 32]).unwrap();
        let key = SecretKey::load(&path).unwrap();
        let mut model = Model::new(GeneratorWeights::random(1), Provenance::default());
        let unsigned = model.verify_signature(&key.public()).unwrap_err().to_string();
        assert!(unsigned.contains("not signed"), "{unsigned}");
        model.manifest.organs.insert(5, "bladder".into());
        model.sign(&key);
        let read = Model::from_bytes(&model.to_bytes(), "m").unwrap();
        read.verify_signature(&key.public()).unwrap();
        assert_eq!(read, model);

        let mut changed = read.clone();
        changed.manifest.training.steps = 1;
        assert!(changed.verify_signature(&key.public()).is_err());
        let mut heavier = read.clone();
        heavier.generator.layers[0].bias[0] += 1.0;
        // Its own writer takes new hashes, and these are not the signed ones.
        let heavier = Model::from_bytes(&heavier.to_bytes(), "m").unwrap();
        assert!(heavier.verify_signature(&key.public()).is_err());
        std::fs::write(&path, [8u8; 32]).unwrap();
        let other = SecretKey::load(&path).unwrap().public();
        assert!(read.verify_signature(&other).unwrap_err().to_string().contains(&other.to_hex()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for hex in ["", "12", &"0".repeat(64), &"zz".repeat(32), &format!("01{}", "0".repeat(62))] {
            assert!(PublicKey::from_hex(hex).is_err(), "{hex}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [0u8; 31]).unwrap();
        let said = SecretKey::load(&path).err().unwrap().to_string();
        assert!(said.contains("31 bytes") && said.contains("key"), "{said}");
    }
}
