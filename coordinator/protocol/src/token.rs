//! The join token: a secret that workers and coordinator share.

use crate::error::{Error, Result};
use std::path::Path;
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// Shortest secret that is not guessed: 16 characters.
const SHORTEST: usize = 16;

/// A shared secret. It is compared in constant time and never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes `secret` without surrounding white space.
    ///
    /// # Errors
    /// If it has fewer than 16 characters, or others than visible ASCII.
    pub fn new(secret: &str) -> Result<Self> {
        Self::parse(secret).map_err(|problem| {
            Error::input(problem, "Make one with `head -c 32 /dev/urandom | base64`, and give it to all")
        })
    }

    /// Reads the secret from a file, as schedulers mount it.
    ///
    /// # Errors
    /// If the file cannot be read or holds no token.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::file(path, format!("the join token cannot be read: {e}"), "Name a file with the token")
        })?;
        Self::parse(&text).map_err(|problem| {
            Error::file(path, problem, "Make one with `head -c 32 /dev/urandom | base64`, and give it to all")
        })
    }

    /// Adds the token to a request's metadata.
    pub(crate) fn attach(&self, metadata: &mut MetadataMap) {
        let mut value: MetadataValue<Ascii> =
            format!("{SCHEME}{}", self.0).parse().expect("only visible ASCII was accepted");
        value.set_sensitive(true);
        metadata.insert(HEADER, value);
    }

    fn parse(text: &str) -> Result<Self, String> {
        let secret = text.trim();
        if secret.len() < SHORTEST {
            return Err(format!("a join token of {} characters can be guessed", secret.len()));
        }
        if !secret.chars().all(|c| c.is_ascii_graphic()) {
            return Err("the join token has characters other than visible ASCII".to_owned());
        }
        Ok(Self(secret.to_owned()))
    }

    fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Lets a request through if it carries `expected`, or if none is expected.
///
/// # Errors
/// `Unauthenticated`, without saying what was wrong.
pub fn admit(expected: Option<&Token>, request: Request<()>) -> Result<Request<()>, Status> {
    let Some(expected) = expected else { return Ok(request) };
    let given = request.metadata().get(HEADER).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix(SCHEME)) {
        Some(given) if expected.is(given) => Ok(request),
        _ => Err(Status::unauthenticated(
            "the join token is missing or wrong: give every worker the coordinator's --token-file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn request(token: Option<&Token>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(token) = token {
            token.attach(request.metadata_mut());
        }
        request
    }

    #[test]
    fn only_the_right_token_is_let_in() {
        let right = Token::new(SECRET).unwrap();
        let wrong = Token::new("0123456789abcdeF").unwrap();
        let longer = Token::new("0123456789abcdef0").unwrap();
        assert!(admit(Some(&right), request(Some(&right))).is_ok());
        for given in [None, Some(&wrong), Some(&longer)] {
            let refused = admit(Some(&right), request(given)).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated);
            assert!(!refused.message().contains(SECRET));
        }
        assert!(admit(None, request(None)).is_ok());
    }

    #[test]
    fn weak_tokens_are_refused_and_none_is_printed() {
        for weak in ["", "short", "0123456789 abcdef", "0123456789abcdefä"] {
            assert!(Token::new(weak).is_err(), "{weak:?}");
        }
        assert!(!format!("{:?}", Token::new(SECRET)).contains(SECRET));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
        assert!(Token::read(file.path()).unwrap().is(SECRET));
        assert!(Token::read(Path::new("/absent/token")).unwrap_err().to_string().contains("/absent/token"));
    }
}
