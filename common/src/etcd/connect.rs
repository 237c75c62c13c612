//! How etcd is reached: endpoints, TLS, time-outs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::error::Error;
use crate::keyspace::Keyspace;

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// Where our keys are.
    pub keyspace: Keyspace,
    /// Longest wait for one answer.
    pub request_timeout: Duration,
    /// Whom to trust, and who we are.
    pub security: Security,
}

/// Files that prove who is who. None of them: plain text, nobody in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// PEM of the authorities that members' certificates are checked with.
    pub ca_file: Option<PathBuf>,
    /// PEM of our certificate, and of those between it and an authority.
    pub cert_file: Option<PathBuf>,
    /// PEM of its key.
    pub key_file: Option<PathBuf>,
    /// Name at etcd's own authentication, with the file that holds the password.
    pub user: Option<(String, PathBuf)>,
}

/// Name and password.
pub(super) type Login = (String, String);

impl EtcdConfig {
    /// Options with every time-out that the client library leaves open.
    fn options(&self) -> Result<ConnectOptions, Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // etcd refuses pings more often than every 5 s, and pings without a stream.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        let wants_tls = self.endpoints.iter().find(|e| e.starts_with("https://"));
        let no_tls = self.endpoints.iter().find(|e| !e.starts_with("https://"));
        match (&self.security.ca_file, wants_tls, no_tls) {
            (None, Some(endpoint), _) => {
                let what = format!("{endpoint} needs --etcd-ca-file: the authorities to trust");
                return Err(Error::Config { what });
            }
            (Some(_), _, Some(endpoint)) => {
                let what = format!(
                    "{endpoint} is plain text, but --etcd-ca-file is given: write https://"
                );
                return Err(Error::Config { what });
            }
            _ => {}
        }
        Ok(match self.security.tls()? {
            Some(tls) => options.with_tls(tls),
            None => options,
        })
    }

    /// A channel to each member, in the order of the endpoints. Never waits for etcd: the first
    /// request does. Files are read anew, so that a renewed certificate is used.
    pub(super) async fn channels(&self) -> Result<Vec<Client>, Error> {
        let options = self.options()?;
        let mut channels = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            // One endpoint a channel: the library's balancer goes on asking members that are gone.
            let channel = open(endpoint, options.clone()).await;
            let attempt = format!("open a channel to {endpoint}");
            channels.push(channel.map_err(|e| Error::request(&attempt, e))?);
        }
        if channels.is_empty() {
            return Err(Error::Config { what: "no endpoint of etcd was given".to_owned() });
        }
        Ok(channels)
    }

    /// Name and password, if etcd is to ask for them.
    pub(super) fn login(&self) -> Result<Option<Login>, Error> {
        let Some((name, file)) = &self.security.user else { return Ok(None) };
        let password = String::from_utf8(read(file)?).map_err(|_| Error::Config {
            what: format!("the password in {} is not text", file.display()),
        })?;
        // Editors and `echo` end a file with a line break; secrets of Kubernetes do not.
        Ok(Some((name.clone(), password.trim_end_matches(['\r', '\n']).to_owned())))
    }
}

impl Security {
    fn tls(&self) -> Result<Option<TlsOptions>, Error> {
        let Some(ca) = &self.ca_file else { return Ok(None) };
        let mut tls =
            TlsOptions::new().ca_certificate(Certificate::from_pem(pem(ca, CERTIFICATE)?));
        if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
            tls = tls.identity(Identity::from_pem(pem(cert, CERTIFICATE)?, pem(key, KEY)?));
        }
        Ok(Some(tls))
    }
}

async fn open(endpoint: &str, options: ConnectOptions) -> Result<Client, etcd_client::Error> {
    #[cfg(feature = "testing")]
    if let Some(channel) = crate::testing::Wire::channel(endpoint) {
        return Client::from_channel(etcd_client::Channel::Custom(channel), Some(options)).await;
    }
    Client::connect([endpoint], Some(options)).await
}

/// What PEM of a certificate, and of any kind of key, begins with or has in its first line.
const CERTIFICATE: (&str, &str) = ("certificate", "-----BEGIN CERTIFICATE-----");
const KEY: (&str, &str) = ("private key", "PRIVATE KEY-----");

/// A file that holds PEM of the kind. Its content is checked by who uses it.
fn pem(path: &Path, (kind, mark): (&str, &str)) -> Result<Vec<u8>, Error> {
    let bytes = read(path)?;
    if String::from_utf8_lossy(&bytes).contains(mark) {
        return Ok(bytes);
    }
    Err(Error::Config { what: format!("{} holds no {kind} as PEM", path.display()) })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|e| Error::Config { what: format!("cannot read {}: {e}", path.display()) })
}
