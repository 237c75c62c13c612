//! TLS both ways, and names with passwords, against an etcd that insists on them.

use std::{path::PathBuf, time::Duration};

use nexus_common::{
    etcd::{Error, Etcd, EtcdConfig, RangeRead, Security, follow},
    keyspace::{ClaimItem, Keyspace},
    model::Role,
    testing::{Secured, TestEtcd, eventually, life_on},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::given::{claimed, clean};

const SOON: Duration = Duration::from_secs(10);

/// An authority and what it signed, as files.
struct Pki {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// Signs a certificate for `name` that is, or was, good for both ends.
    fn sign(&self, name: &str, expired: bool) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }

    /// What `name` shows, and whom it trusts.
    fn security(&self, name: &str) -> Security {
        Security {
            ca_file: Some(self.path("ca.pem")),
            cert_file: Some(self.path(&format!("{name}.pem"))),
            key_file: Some(self.path(&format!("{name}.key"))),
            user: None,
        }
    }

    /// An etcd with the certificate of `server`, that asks everyone for one of this authority.
    fn etcd(&self, server: &str) -> TestEtcd {
        let flags = [
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", self.text("ca.pem")),
            format!("--cert-file={}", self.text(&format!("{server}.pem"))),
            format!("--key-file={}", self.text(&format!("{server}.key"))),
        ];
        let etcdctl = vec![
            "--insecure-skip-tls-verify".to_owned(), // it must reach one with an old certificate
            format!("--cert={}", self.text("client.pem")),
            format!("--key={}", self.text("client.key")),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        TestEtcd::secured(&flags, Secured { tls: true, etcdctl })
    }
}

fn config(endpoint: String, security: Security) -> EtcdConfig {
    let (keyspace, request_timeout) = (Keyspace::default(), Duration::from_secs(3));
    EtcdConfig { endpoints: vec![endpoint], keyspace, request_timeout, security }
}

/// Why it cannot be used; `expected` must be told before long. In TLS 1.3 a server refuses after
/// the client is done, so a request may be cut off before the reason is read.
async fn refused(config: EtcdConfig, expected: &[&str]) {
    let etcd = Etcd::connect(config).await.unwrap();
    eventually(&format!("{expected:?} is told"), SOON, || async {
        let told = etcd.revision().await.expect_err("it is refused").to_string();
        println!("{told}");
        expected.iter().any(|word| told.contains(word))
    })
    .await;
}

/// Reads, writes, watches, claims.
async fn works(etcd: Etcd) {
    let (tell, mut events) = mpsc::channel(64);
    let (stop, range) = (CancellationToken::new(), etcd.keyspace().prefix("claims/"));
    tokio::spawn(follow(etcd.clone(), range, tell, stop.clone()));
    timeout(SOON, events.recv()).await.unwrap().unwrap();
    let life = life_on(etcd.clone(), Role::Collector, "one", 60).await;
    claimed(&life, ClaimItem::Janitor).await;
    timeout(SOON, events.recv()).await.expect("the claim is seen").unwrap();
    clean(&etcd).await;
    assert!(etcd.used_bytes().await.unwrap() > 0);
    stop.cancel();
    life.session.revoke().await;
}

#[tokio::test]
async fn everything_works_over_mutual_tls_and_goes_on_after_a_restart() {
    let pki = Pki::new("ours");
    ["server", "client"].iter().for_each(|name| pki.sign(name, false));
    let mut server = pki.etcd("server");
    let config = config(server.endpoint(), pki.security("client"));
    let etcd = Etcd::connect(config).await.unwrap();
    works(etcd.clone()).await;
    server.kill();
    server.restart();
    eventually("it answers again", SOON, || async { etcd.revision().await.is_ok() }).await;
    works(etcd).await;
}

#[tokio::test]
async fn a_wrong_authority_an_old_certificate_and_none_are_told_apart() {
    let (pki, other) = (Pki::new("ours"), Pki::new("theirs"));
    ["server", "client"].iter().for_each(|name| pki.sign(name, false));
    ["old", "old-server"].iter().for_each(|name| pki.sign(name, true));
    other.sign("stranger", false);
    let (server, old) = (pki.etcd("server"), pki.etcd("old-server"));
    // etcd's alert depends on the Go that it was built with: 3.4 calls every one of them bad.
    let check = async |endpoint: &TestEtcd, security: Security, expected: &[&str]| {
        refused(config(endpoint.endpoint(), security), expected).await;
    };
    let trusts = |ca: &Pki, of: Security| Security { ca_file: Some(ca.path("ca.pem")), ..of };
    check(&server, trusts(&other, pki.security("client")), &["UnknownIssuer"]).await;
    check(&old, pki.security("client"), &["certificate expired"]).await;
    check(&server, trusts(&pki, other.security("stranger")), &["BadCertificate", "UnknownCA"])
        .await;
    check(&server, pki.security("old"), &["BadCertificate", "CertificateExpired"]).await;
    let nobody = Security { ca_file: Some(pki.path("ca.pem")), ..Security::default() };
    check(&server, nobody, &["ertificate"]).await;
}

#[tokio::test]
async fn files_and_urls_that_do_not_fit_are_named_before_anything_is_sent() {
    let pki = Pki::new("ours");
    pki.sign("client", false);
    std::fs::write(pki.path("empty.pem"), "").unwrap();
    let check = async |endpoint: &str, security: Security, expected: &str| {
        let error = Etcd::connect(config(endpoint.to_owned(), security)).await.err().unwrap();
        assert!(matches!(error, Error::Config { .. } | Error::Request { .. }), "{error:?}");
        let told = error.to_string();
        println!("{told}");
        assert!(told.contains(expected), "{told:?} does not tell {expected:?}");
    };
    let (https, good) = ("https://127.0.0.1:1", pki.security("client"));
    check(https, Security::default(), "--etcd-ca-file").await;
    check("http://127.0.0.1:1", good.clone(), "write https://").await;
    check(https, pki.security("nobody"), "nobody.pem: No such file").await;
    let empty = Security { ca_file: Some(pki.path("empty.pem")), ..good.clone() };
    check(https, empty, "empty.pem holds no certificate").await;
    let swapped = Security { key_file: good.cert_file.clone(), ..good.clone() };
    check(https, swapped, "client.pem holds no private key").await;
    let user = Some(("nexus".to_owned(), pki.path("password")));
    check("http://127.0.0.1:1", Security { user, ..Security::default() }, "password: No").await;
}

#[tokio::test]
async fn a_name_and_a_password_are_given_again_when_etcd_has_forgotten_them() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let mut server = TestEtcd::start();
    server.etcdctl(&["user", "add", "root:secret"]);
    server.etcdctl(&["user", "grant-role", "root", "root"]);
    server.etcdctl(&["auth", "enable"]);
    server.authenticate("root:secret");
    let with = |name: &str| {
        let user = Some((name.to_owned(), password.clone()));
        config(server.endpoint(), Security { user, ..Security::default() })
    };
    refused(config(server.endpoint(), Security::default()), &["user name is empty"]).await;
    refused(with("stranger"), &["authentication failed"]).await;
    let etcd = Etcd::connect(with("root")).await.unwrap();
    works(etcd.clone()).await;
    // Its tokens are in its memory only.
    server.kill();
    server.restart();
    eventually("it answers again", SOON, || async { etcd.revision().await.is_ok() }).await;
    let how = RangeRead::default();
    assert!(etcd.range(&etcd.keyspace().prefix("claims/"), how).await.is_ok());
    works(etcd).await;
}
