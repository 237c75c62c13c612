//! Exporters that answer as they should not, and those that insist on knowing who asks: each path
//! of an address is one of them.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;

/// Listens until it is dropped.
pub(crate) struct Faulty {
    pub(crate) address: String,
    stop: Arc<AtomicBool>,
}

impl Faulty {
    /// Over plain HTTP.
    pub(crate) fn start() -> Self {
        Self::serve(answer)
    }

    /// Over TLS, as `tls` says.
    pub(crate) fn secured(tls: Arc<ServerConfig>) -> Self {
        Self::serve(move |stream| answer(wrapped(&tls, stream)))
    }

    /// Whatever `answer` makes of the head of a question: a status and a body.
    pub(crate) fn answering(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&str) -> (&'static str, String) + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::serve(move |stream| match &tls {
            Some(tls) => answer_with(wrapped(tls, stream), &answer),
            None => answer_with(stream, &answer),
        })
    }

    /// Whatever bytes `answer` makes of the head of a question.
    pub(crate) fn raw(answer: impl Fn(&str) -> Vec<u8> + Clone + Send + Sync + 'static) -> Self {
        Self::serve(move |mut stream| {
            let Some(head) = head(&mut stream)? else { return Ok(()) };
            stream.write_all(&answer(&head))
        })
    }

    fn serve(
        answer: impl Fn(TcpStream) -> std::io::Result<()> + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Relaxed) {
                    return;
                }
                let answer = answer.clone();
                // Whoever asked may be gone before it is answered.
                std::thread::spawn(move || stream.and_then(answer));
            }
        });
        Self { address, stop }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(&self.address); // wakes the listener
    }
}

fn wrapped(tls: &Arc<ServerConfig>, stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(Arc::clone(tls)).unwrap(), stream)
}

/// The head of a question; none when nobody asks any more.
fn head(stream: &mut impl Read) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn answer_with(
    mut stream: impl Read + Write,
    answer: impl Fn(&str) -> (&'static str, String),
) -> std::io::Result<()> {
    let Some(head) = head(&mut stream)? else { return Ok(()) };
    let (status, body) = answer(&head);
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    stream.flush()
}

/// Answers one question as its path says; one that lets wait does so until nobody waits.
fn answer(mut stream: impl Read + Write) -> std::io::Result<()> {
    let Some(head) = head(&mut stream)? else { return Ok(()) };
    // What stands behind the question mark only tells targets apart.
    let path = head.split([' ', '?']).nth(1).unwrap_or_default();
    let knows = |login: &str| head.contains(&format!("uthorization: {login}\r\n"));
    let lines = |count: usize| (0..count).map(|n| format!("metric_{n} 1\n")).collect::<String>();
    let (status, header, body) = match path {
        "/good" => ("200 OK", "X: y", lines(1).into_bytes()),
        "/gzip" => ("200 OK", "Content-Encoding: gzip", packed(&lines(2))),
        "/bomb" => ("200 OK", "Content-Encoding: gzip", packed(&"#\n".repeat(1 << 20))),
        "/large" => ("200 OK", "X: y", "#\n".repeat(4096).into_bytes()),
        "/many" => ("200 OK", "X: y", lines(9).into_bytes()),
        "/moved" => ("302 Found", "Location: /good", lines(1).into_bytes()),
        "/broken" => ("500 Internal Server Error", "X: y", lines(1).into_bytes()),
        "/basic" if knows("Basic YWRhOnNlY3JldA==") => ("200 OK", "X: y", lines(1).into_bytes()),
        "/bearer" if knows("Bearer secret") => ("200 OK", "X: y", lines(1).into_bytes()),
        "/half" => ("200 OK", "X: y", lines(1).into_bytes()),
        "/hang" => return until_nobody_waits(stream),
        _ => ("401 Unauthorized", "X: y", Vec::new()),
    };
    // One that stops half way has promised more than it tells.
    let promised = body.len() + usize::from(path == "/half");
    let head = format!("HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {promised}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    stream.flush()?;
    if path == "/half" {
        return until_nobody_waits(stream);
    }
    Ok(())
}

fn until_nobody_waits(mut stream: impl Read) -> std::io::Result<()> {
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

fn packed(text: &str) -> Vec<u8> {
    let mut packing = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packing.write_all(text.as_bytes()).unwrap();
    packing.finish().unwrap()
}

/// An authority, and what it signs, as files.
pub(crate) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        std::fs::write(dir.path().join("ca.der"), ca.der()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// Writes `{name}.pem` and `{name}.key`, for either end.
    pub(crate) fn sign(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        (cert.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// A server with a certificate of this authority; it asks for one of `clients`, if given.
    pub(crate) fn server(&self, clients: Option<&Self>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (cert, key) = self.sign("server");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let der = std::fs::read(authority.path("ca.der")).unwrap();
                roots.add(CertificateDer::from(der)).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        Arc::new(builder.with_single_cert(vec![cert], key).unwrap())
    }
}
