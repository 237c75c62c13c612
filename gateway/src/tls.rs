//! TLS of the port: certificates from files, read again when they change.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use nexus_common::runtime::TlsOfNow;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};
use tokio_util::sync::CancellationToken;

use crate::files::{self, FileError};

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM of the certificate and of what leads from it to its authority.
    pub cert: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
    /// PEM of the authorities of clients; without it clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds nothing of use.
    #[error("{} holds no {what} in PEM", path.display())]
    Nothing {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// Certificate and key do not go together, or are of a kind that is not known.
    #[error("cannot use the certificate of {} with the key of {}: {source}", cert.display(), key.display())]
    Pair {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The authorities of clients cannot be used.
    #[error("cannot check clients with {}: {reason}", path.display())]
    ClientCa {
        /// Their file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// TLS as the files last said.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    current: Arc<RwLock<TlsAcceptor>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or used: names it.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Arc::new(RwLock::new(acceptor(&files)?));
        Ok(Self { files, current })
    }

    /// For a server: each new connection speaks what is current then.
    pub fn of_now(&self) -> TlsOfNow {
        let current = Arc::clone(&self.current);
        // A lock whose holder panicked still holds an acceptor: it is replaced as a whole.
        Arc::new(move || current.read().unwrap_or_else(|held| held.into_inner()).clone())
    }

    /// Reads the files again whenever one changes, until `stop`. Files that cannot be used (a
    /// certificate whose key is still to come) change nothing, and the log says so.
    pub async fn follow(self, stop: CancellationToken) {
        let TlsFiles { cert, key, client_ca } = &self.files;
        let paths: Vec<PathBuf> = [cert, key].into_iter().chain(client_ca).cloned().collect();
        let changed = || match acceptor(&self.files) {
            Ok(new) => {
                tracing::info!(path = %self.files.cert.display(), "certificates read");
                *self.current.write().unwrap_or_else(|held| held.into_inner()) = new;
            }
            Err(error) => tracing::error!(%error, "TLS stays as it was"),
        };
        files::follow(&paths, stop, changed).await;
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&files::read(&files.key)?)
        .map_err(|_| TlsError::Nothing { what: "private key", path: files.key.clone() })?;
    let pair = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => config.with_client_cert_verifier(verifier(path, provider)?),
    };
    let mut config = config.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let nothing = || TlsError::Nothing { what: "certificate", path: path.to_owned() };
    let bytes = files::read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    read.ok().filter(|chain| !chain.is_empty()).ok_or_else(nothing)
}

fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let bad = |reason: String| TlsError::ClientCa { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|e| bad(e.to_string()))?;
    }
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    built.map_err(|e| bad(e.to_string()))
}
