//! Who may ask: tokens, rates, TLS, other origins.

use std::{path::Path, sync::Arc, time::Duration};

use nexus_common::{
    model::Role,
    testing::{TestEtcd, eventually},
};
use nexus_gateway::auth::TokenHash;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{
    pipeline::Pipeline,
    serve::{Gateway, Reply},
};

fn tokens(path: &Path, lines: &[(&str, &str, &str)]) {
    let line = |(name, scopes, token): &(&str, &str, &str)| {
        format!("{name} {scopes} {}\n", TokenHash::of(token))
    };
    std::fs::write(path, lines.iter().map(line).collect::<String>()).unwrap();
}

async fn ask(gateway: &Gateway, path: &str, authorization: Option<&str>) -> Reply {
    let headers: Vec<_> = authorization.map(|a| ("authorization", a)).into_iter().collect();
    gateway.send("GET", path, &headers, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokens_only_who_has_one_is_let_in_and_a_withdrawn_one_is_refused() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    tokens(&file, &[("reader", "read", "R"), ("other", "admin", "O")]);
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| args.auth_tokens_file = Some(file.clone())).await;
    let gateway = gateway.loaded().await;

    for path in ["/livez", "/readyz", "/health", "/", "/swagger/", "/swagger/swagger.json"] {
        assert_eq!(ask(&gateway, path, None).await.status, 200, "{path}");
    }
    let wrong = [None, Some("Bearer X"), Some("Bearer "), Some("Basic UjpS"), Some("R")];
    for path in ["/api/v1/gpus", "/api/v1/gpus/unknown", "/api/v1/telemetry", "/metrics", "/audit"]
    {
        let mut told = Vec::new();
        for authorization in wrong {
            let reply = ask(&gateway, path, authorization).await;
            assert_eq!(reply.status, 401, "{path} {authorization:?}");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
            let mut problem = reply.json();
            assert_eq!(problem["code"], "unauthorized");
            problem["request_id"].take();
            told.push(problem);
        }
        told.dedup();
        assert_eq!(told.len(), 1, "whatever was wrong, the same is told: {told:#?}");
    }
    assert_eq!(ask(&gateway, "/api/v1/gpus", Some("Bearer R")).await.status, 200);
    assert_eq!(ask(&gateway, "/api/v1/gpus", Some("bearer O")).await.status, 200);
    assert_eq!(ask(&gateway, "/api/v1/gpus/unknown", Some("Bearer R")).await.status, 404);

    tokens(&file, &[("other", "admin", "O")]);
    let refused = || async { ask(&gateway, "/metrics", Some("Bearer R")).await.status == 401 };
    eventually("a token that is gone is refused", Duration::from_secs(5), refused).await;
    assert_eq!(ask(&gateway, "/metrics", Some("Bearer O")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_used_too_often_is_told_when_to_come_again() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    tokens(&file, &[("a", "read", "A"), ("b", "read", "B")]);
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| {
        (args.auth_tokens_file, args.rate_limit_per_second) = (Some(file.clone()), 1);
    });
    let gateway = gateway.await.loaded().await;
    let mut last = ask(&gateway, "/metrics", Some("Bearer A")).await;
    for _ in 0..20 {
        if last.status == 429 {
            break;
        }
        last = ask(&gateway, "/metrics", Some("Bearer A")).await;
    }
    assert_eq!((last.status, last.headers["retry-after"].as_str()), (429, "1"));
    assert_eq!(last.json()["code"], "rate-limited");
    assert_eq!(ask(&gateway, "/metrics", Some("Bearer B")).await.status, 200);
    assert_eq!(ask(&gateway, "/livez", None).await.status, 200);
}

/// An authority and what it signs, as files.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for `name`, in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn client(&self, own: Option<(String, String)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// The status line over TLS, or what went wrong.
async fn over_tls(gateway: &Gateway, client: &TlsConnector) -> std::io::Result<String> {
    let stream = TcpStream::connect(gateway.serving.address).await?;
    let name = ServerName::try_from("gateway.test").unwrap();
    let mut stream = client.connect(name, stream).await?;
    let asked = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(asked.as_bytes()).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn write_pair(folder: &TempDir, (cert, key): &(String, String)) {
    std::fs::write(folder.path().join("cert.pem"), cert).unwrap();
    std::fs::write(folder.path().join("key.pem"), key).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_and_a_renewed_certificate_is_served_without_a_restart() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let folder = TempDir::new().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    write_pair(&folder, &old.sign("gateway.test"));
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| {
        args.tls_cert_file = Some(folder.path().join("cert.pem"));
        args.tls_key_file = Some(folder.path().join("key.pem"));
    });
    let gateway = gateway.await;
    let (old_client, new_client) = (old.client(None), new.client(None));
    assert_eq!(over_tls(&gateway, &old_client).await.unwrap(), "HTTP/1.1 200 OK");
    assert!(over_tls(&gateway, &new_client).await.is_err());
    write_pair(&folder, &new.sign("gateway.test"));
    let renewed = || async { over_tls(&gateway, &new_client).await.is_ok() };
    eventually("the new certificate is served", Duration::from_secs(5), renewed).await;
    std::fs::write(folder.path().join("key.pem"), "nonsense").unwrap();
    // What speaks no TLS is ended, and so is who says nothing.
    let mut plain = TcpStream::connect(gateway.serving.address).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP"));
    let mut silent = TcpStream::connect(gateway.serving.address).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), silent.read_to_end(&mut said));
    assert!(ended.await.is_ok());
    assert!(over_tls(&gateway, &new_client).await.is_ok(), "a wrong key changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_for_clients_only_its_own_come_in() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let folder = TempDir::new().unwrap();
    let (servers, clients) = (Authority::new(), Authority::new());
    write_pair(&folder, &servers.sign("gateway.test"));
    std::fs::write(folder.path().join("ca.pem"), clients.0.pem()).unwrap();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| {
        args.tls_cert_file = Some(folder.path().join("cert.pem"));
        args.tls_key_file = Some(folder.path().join("key.pem"));
        args.tls_client_ca_file = Some(folder.path().join("ca.pem"));
    });
    let gateway = gateway.await;
    let own = servers.client(Some(clients.sign("somebody")));
    assert_eq!(over_tls(&gateway, &own).await.unwrap(), "HTTP/1.1 200 OK");
    assert!(over_tls(&gateway, &servers.client(None)).await.is_err());
    let foreign = servers.client(Some(servers.sign("somebody")));
    assert!(over_tls(&gateway, &foreign).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_may_ask_only_where_that_is_allowed() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let page = [("origin", "https://a.example")];
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let reply = gateway.send("GET", "/livez", &page, None).await;
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
    assert_eq!(reply.headers["x-content-type-options"], "nosniff");
    let entrance = gateway.get("/").await;
    assert!(entrance.headers["content-security-policy"].starts_with("default-src 'self'"));

    let process = etcd.process(Role::Gateway, "gateway-2", 10).await;
    let gateway = Gateway::with(process, |args| {
        args.enable_cors = true;
        args.cors_allowed_origins = vec!["https://a.example".parse().unwrap()];
    });
    let gateway = gateway.await;
    let reply = gateway.send("GET", "/livez", &page, None).await;
    assert_eq!(reply.headers["access-control-allow-origin"], "https://a.example");
    let other = gateway.send("GET", "/livez", &[("origin", "https://b.example")], None).await;
    assert!(!other.headers.contains_key("access-control-allow-origin"));
}
