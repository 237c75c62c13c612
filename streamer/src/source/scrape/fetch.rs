//! Asking an exporter over HTTP. Blocking: each question has a thread, and an end.

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flate2::read::MultiGzDecoder;
use nexus_common::keyspace::live::{Login, Scrape};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use ureq::{
    Agent,
    tls::{
        Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsConfigBuilder,
        parse_pem,
    },
};

use super::Format;

/// What we can read, the newer format first.
const ACCEPT: &str =
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
/// What is read and written at once, in bytes: a head fits, and a connection a question costs no
/// pages that are new each time.
const BUFFER_BYTES: usize = 16 * 1024;
/// Largest file with a secret, in bytes: tokens are a few thousand at most.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Largest file of authorities, in bytes: a system's whole store is about 250 KiB.
const CA_BYTES_MAX: u64 = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("read {0}")]
    File(String, #[source] std::io::Error),
    #[error("read {path}: a secret must lie in {folder} (--scrape-secrets-dir)")]
    Outside { path: String, folder: PathBuf },
    #[error("read {0}: no certificate in PEM")]
    Certificate(String),
    #[error("read {0}: no private key in PEM")]
    Key(String),
    #[error("show the certificate of {0} with the key of {1}")]
    Pair(String, String, #[source] rustls::Error),
    #[error("ask {url}: it answered {status}{}", told(.location))]
    Status { url: String, status: u16, location: Option<String> },
    #[error("ask {0}")]
    Http(String, #[source] Box<ureq::Error>),
    #[error("read the answer of {0}")]
    Body(String, #[source] std::io::Error),
    #[error("read the answer of {0}: it has more than {1} bytes")]
    Large(String, u64),
}

/// Where a redirect leads. A target is who it is: one that sends us elsewhere is not asked there.
fn told(location: &Option<String>) -> String {
    let to = location.as_ref().map(|to| format!(", to {to}; redirects are not followed"));
    to.unwrap_or_default()
}

impl FetchError {
    /// Whether a target let us wait in vain.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::Http(_, error) => matches!(**error, ureq::Error::Timeout(_)),
            Self::Body(_, error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                matches!(inner, Some(ureq::Error::Timeout(_)))
            }
            _ => false,
        }
    }
}

/// What a client needs: how it says who it is, whom it trusts, and what it bears.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) login: Login,
    pub(crate) ca_file: Option<String>,
    pub(crate) cert_file: Option<String>,
    pub(crate) key_file: Option<String>,
    pub(crate) timeout_ms: u64,
    pub(crate) body_bytes_max: u64,
}

impl Access {
    /// As a source's targets are asked.
    pub(crate) fn of(scrape: &Scrape) -> Self {
        Self {
            login: scrape.login.clone(),
            ca_file: scrape.ca_file.clone(),
            cert_file: scrape.cert_file.clone(),
            key_file: scrape.key_file.clone(),
            timeout_ms: scrape.timeout_ms,
            body_bytes_max: scrape.body_bytes_max,
        }
    }
}

/// A client for all targets of a source.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    login: Login,
    /// The files of its authorities, certificate and key, as they were when they were read.
    read: Vec<(String, Option<Stamp>)>,
    /// Whoever may write a source names files and where to send what is in them: only those that
    /// whoever runs the streamer put here.
    secrets: PathBuf,
    body_bytes_max: u64,
}

impl Client {
    /// A client as the source says, which may send what lies in `secrets`.
    pub(crate) fn new(scrape: &Scrape, secrets: &Path) -> Result<Self, FetchError> {
        Self::with(Access::of(scrape), secrets)
    }

    /// A client of any kind. Reads its authorities and what it shows of itself.
    pub(crate) fn with(access: Access, secrets: &Path) -> Result<Self, FetchError> {
        let files = [&access.ca_file, &access.cert_file, &access.key_file].into_iter().flatten();
        // Before they are read: what is written meanwhile is another file.
        let read = files.map(|path| (path.clone(), stamp(path).ok())).collect();
        let mut tls = tls(access.ca_file.as_deref())?;
        if let Some((shown, path)) = access.cert_file.as_ref().zip(access.key_file.as_ref()) {
            tls = tls.client_cert(Some(own_certificate(shown, inside(path, secrets)?)?));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(access.timeout_ms)))
            .user_agent(concat!("nexus-streamer/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_redirects(0)
            .http_status_as_error(false)
            .proxy(None)
            .tls_config(tls.build())
            .build()
            .new_agent();
        Ok(Self {
            agent,
            login: access.login,
            read,
            secrets: secrets.to_owned(),
            body_bytes_max: access.body_bytes_max,
        })
    }

    /// Whether a file that it read is another one by now: then a new client is needed.
    pub(crate) fn is_old(&self) -> bool {
        self.read.iter().any(|(path, was)| stamp(path).ok() != *was)
    }

    /// Asks once.
    pub(crate) fn get(&self, url: &str) -> Result<(Vec<u8>, Format), FetchError> {
        let request = self.agent.get(url).header("Accept", ACCEPT);
        let mut request = request.header("Accept-Encoding", "gzip");
        if let Some(login) = self.authorization()? {
            request = request.header("Authorization", login);
        }
        let failed = |error| FetchError::Http(url.to_owned(), Box::new(error));
        let mut answer = request.call().map_err(failed)?;
        let status = answer.status().as_u16();
        if status != 200 {
            let location =
                answer.headers().get("location").filter(|_| answer.status().is_redirection());
            let location = location.and_then(|to| to.to_str().ok()).map(str::to_owned);
            return Err(FetchError::Status { url: url.to_owned(), status, location });
        }
        let content_type = answer.headers().get("content-type").and_then(|v| v.to_str().ok());
        let format = Format::of(content_type.unwrap_or_default());
        let encoding = answer.headers().get("content-encoding").map(|v| v.as_bytes());
        let packed = encoding.is_some_and(|word| word.eq_ignore_ascii_case(b"gzip"));
        let mut body = Vec::new();
        // The limit is on what was unpacked: a small answer may unfold to anything.
        let limit = self.body_bytes_max;
        let plain = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut reader: Box<dyn Read> =
            if packed { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) };
        reader
            .by_ref()
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
            let bytes = read_at_most(inside(path, &self.secrets)?, SECRET_BYTES_MAX)?;
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

/// The file itself, links followed, if it lies where secrets do. A secret that a mount brings
/// in by links is read by its link: the links stay in its folder.
fn inside<'a>(path: &'a str, secrets: &Path) -> Result<&'a str, FetchError> {
    let real = |path: &Path| {
        let failed = |error| FetchError::File(path.display().to_string(), error);
        path.canonicalize().map_err(failed)
    };
    if real(Path::new(path))?.starts_with(real(secrets)?) {
        Ok(path)
    } else {
        let (path, folder) = (path.to_owned(), secrets.to_owned());
        Err(FetchError::Outside { path, folder })
    }
}

/// What a file is told by: its inode, its length, and when it was written (seconds, nanoseconds).
pub(super) type Stamp = (u64, u64, i64, i64);

pub(super) fn stamp(path: &str) -> std::io::Result<Stamp> {
    std::fs::metadata(path).map(|is| (is.ino(), is.len(), is.mtime(), is.mtime_nsec()))
}

/// TLS as everywhere here, with the authorities that a file holds.
pub(crate) fn tls(ca_file: Option<&str>) -> Result<TlsConfigBuilder, FetchError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    Ok(match ca_file {
        Some(path) => tls.root_certs(RootCerts::new_with_certs(&certificates(path)?)),
        None => tls,
    })
}

fn certificates(path: &str) -> Result<Vec<Certificate<'static>>, FetchError> {
    let pem = read_at_most(path, CA_BYTES_MAX)?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(FetchError::Certificate(path.to_owned())) } else { Ok(found) }
}

/// A certificate and its key. Whether they go together is looked at here: the client would panic.
fn own_certificate(shown: &str, key: &str) -> Result<ClientCert, FetchError> {
    let chain = certificates(shown)?;
    let pem = read_at_most(key, SECRET_BYTES_MAX)?;
    let bad_key = |_| FetchError::Key(key.to_owned());
    let private = PrivateKey::from_pem(&pem).map_err(bad_key)?;
    let der = PrivateKeyDer::try_from(private.der().to_vec());
    let der = der.map_err(|_| FetchError::Key(key.to_owned()))?;
    let certs = chain.iter().map(|one| CertificateDer::from(one.der().to_vec())).collect();
    CertifiedKey::from_der(certs, der, &rustls::crypto::ring::default_provider())
        .map_err(|error| FetchError::Pair(shown.to_owned(), key.to_owned(), error))?;
    Ok(ClientCert::new_with_certs(&chain, private))
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
    fn only_what_lies_where_secrets_do_is_sent() {
        let (secrets, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |folder: &Path, name: &str| {
            std::fs::write(folder.join(name), "s").unwrap();
            folder.join(name).display().to_string()
        };
        let good = write(secrets.path(), "token");
        let bad = write(elsewhere.path(), "token");
        let link = secrets.path().join("link");
        std::os::unix::fs::symlink(&bad, &link).unwrap();
        let up = secrets.path().join("..").join(&bad[1..]).display().to_string();
        let client = |login| Client {
            agent: Agent::new_with_defaults(),
            login,
            read: Vec::new(),
            secrets: secrets.path().to_owned(),
            body_bytes_max: 1,
        };
        let check = |path: &str, good: bool| {
            let token_file = path.to_owned();
            let got = client(Login::Bearer { token_file }).authorization();
            assert_eq!(got.ok().flatten().is_some(), good, "{path}");
        };
        check(&good, true);
        for path in [&bad, &up, &link.display().to_string(), "token", "/nowhere"] {
            check(path, false);
        }
    }

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
