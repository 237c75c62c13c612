//! Asking an exporter over HTTP. Blocking: each question has a thread, and an end.

use std::{io::Read, path::Path, sync::Arc, time::Duration};

use nexus_common::keyspace::live::{Login, Scrape};
use ureq::{
    Agent,
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::Format;

/// What we can read, the newer format first.
const ACCEPT: &str =
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
/// Largest file with a secret, in bytes: tokens are a few thousand at most.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Largest file of authorities, in bytes: a system's whole store is about 250 KiB.
const CA_BYTES_MAX: u64 = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("read {0}")]
    File(String, #[source] std::io::Error),
    #[error("read {0}: no certificate in PEM")]
    Certificate(String),
    #[error("ask {0}")]
    Http(String, #[source] Box<ureq::Error>),
    #[error("read the answer of {0}")]
    Body(String, #[source] std::io::Error),
    #[error("read the answer of {0}: it has more than {1} bytes")]
    Large(String, u64),
}

/// A client for all targets of a source.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    login: Login,
    body_bytes_max: u64,
}

impl Client {
    /// A client as the source says. Reads its authorities.
    pub(crate) fn new(scrape: &Scrape) -> Result<Self, FetchError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        if let Some(path) = &scrape.ca_file {
            let pem = read_at_most(path, CA_BYTES_MAX)?;
            let items = parse_pem(&pem).filter_map(Result::ok);
            let certificates = items.filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            });
            let certificates: Vec<_> = certificates.collect();
            if certificates.is_empty() {
                return Err(FetchError::Certificate(path.clone()));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(scrape.timeout_ms)))
            .user_agent(concat!("nexus-streamer/", env!("CARGO_PKG_VERSION")))
            // A target is who it is: one that sends us elsewhere is not asked there.
            .max_redirects(0)
            .proxy(None)
            .tls_config(tls.build())
            .build()
            .new_agent();
        Ok(Self { agent, login: scrape.login.clone(), body_bytes_max: scrape.body_bytes_max })
    }

    /// Asks once.
    pub(crate) fn get(&self, url: &str) -> Result<(Vec<u8>, Format), FetchError> {
        let mut request = self.agent.get(url).header("Accept", ACCEPT);
        if let Some(login) = self.authorization()? {
            request = request.header("Authorization", login);
        }
        let failed = |error| FetchError::Http(url.to_owned(), Box::new(error));
        let mut answer = request.call().map_err(failed)?;
        let content_type = answer.headers().get("content-type").and_then(|v| v.to_str().ok());
        let format = Format::of(content_type.unwrap_or_default());
        let mut body = Vec::new();
        // The limit is on what was unpacked: a small answer may unfold to anything.
        let limit = self.body_bytes_max;
        let reader = answer.body_mut().with_config().limit(u64::MAX).reader();
        reader
            .take(limit + 1)
            .read_to_end(&mut body)
            .map_err(|error| FetchError::Body(url.to_owned(), error))?;
        if body.len() as u64 > limit {
            return Err(FetchError::Large(url.to_owned(), limit));
        }
        Ok((body, format))
    }

    /// Read each time: secrets are changed while we run.
    fn authorization(&self) -> Result<Option<String>, FetchError> {
        let secret = |path: &str| {
            let bytes = read_at_most(path, SECRET_BYTES_MAX)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        Ok(match &self.login {
            Login::None => None,
            Login::Bearer { token_file } => Some(format!("Bearer {}", secret(token_file)?)),
            Login::Basic { user, password_file } => {
                let pair = format!("{user}:{}", secret(password_file)?);
                Some(format!("Basic {}", base64(pair.as_bytes())))
            }
        })
    }
}

pub(super) fn read_at_most(path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    std::fs::File::open(Path::new(path))
        .and_then(|file| file.take(bytes_max).read_to_end(&mut bytes))
        .map_err(|error| FetchError::File(path.to_owned(), error))?;
    Ok(bytes)
}

/// RFC 4648: what basic authentication is written in.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |n: usize| u32::from(part.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * n) & 63) as usize);
            text.push(if n <= part.len() { digit.map_or('=', |d| char::from(*d)) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let check = |text: &str, expected: &str| assert_eq!(base64(text.as_bytes()), expected);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foob", "Zm9vYg==");
        check("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
