//! The SHA-256 digest that names a module.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// The SHA-256 digest of a WebAssembly file, in OCI's form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Parses OCI's form, `sha256:` and 64 lower-case hex digits, or the digits alone.
    pub fn parse(text: &str) -> Option<Digest> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let mut digest = [0; 32];
        hex::decode_to_slice(hex, &mut digest).ok()?;
        // hex accepts capitals too; a digest must have one form only, since it is a file name.
        (hex::encode(digest) == hex).then_some(Digest(digest))
    }

    /// As [`Digest::parse`], where there has to be a digest.
    ///
    /// # Errors
    /// `InvalidArgument` naming the text.
    pub fn required(text: &str) -> Result<Digest> {
        Digest::parse(text).ok_or_else(|| Error::InvalidArgument(format!("{text:?} is not a SHA-256 digest")))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}
