//! Who names the targets of a source that is scraped, besides the source itself and its files.
//!
//! What they name changes while the source is read. Which shard asks a target never does: that is
//! the target's URL alone.

use core::net::SocketAddr; // a value: nothing is connected here

use serde::{Deserialize, Serialize};

/// How often somebody may be asked for targets, in milliseconds: below it they are asked more often
/// than streamers look at what they said.
pub const REFRESH_MS: std::ops::RangeInclusive<u64> = 5_000..=86_400_000;

/// Somebody who names targets, asked again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discover {
    /// A web server that answers as Prometheus' `http_sd` has it.
    Http(HttpLists),
    /// Names in the DNS.
    Dns(DnsNames),
    /// The API of the Kubernetes cluster in which streamers run.
    Kubernetes(Endpoints),
}

impl Discover {
    /// From one question to the next, in milliseconds.
    pub fn refresh_ms(&self) -> u64 {
        match self {
            Self::Http(lists) => lists.refresh_ms,
            Self::Dns(names) => names.refresh_ms,
            Self::Kubernetes(endpoints) => endpoints.refresh_ms,
        }
    }
}

/// A web server with lists of targets. It is asked as targets are: by the same login, with the same
/// authorities and certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpLists {
    /// Where.
    pub url: String,
    /// From one question to the next.
    pub refresh_ms: u64,
}

/// A name in the DNS that stands for many targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsNames {
    /// The name: as the system completes it, or with a dot at its end.
    pub name: String,
    /// What is looked up.
    pub record: Record,
    /// The targets' port, where the records do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Who is asked; the system's resolvers if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// How URLs are made of what is found.
    #[serde(flatten)]
    pub form: Form,
    /// From one question to the next.
    pub refresh_ms: u64,
}

/// Which records name targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Hosts with their ports.
    Srv,
    /// Addresses of version 4.
    A,
    /// Addresses of version 6.
    Aaaa,
}

/// Endpoints of services, by the slices that the API lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Where the services are.
    pub namespace: String,
    /// Labels of the services' slices, as `kubectl -l` takes them; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The port, by its name; all of TCP if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// How URLs are made of what is found.
    #[serde(flatten)]
    pub form: Form,
    /// From one question to the next.
    pub refresh_ms: u64,
}

/// The parts of a URL around a host and its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// With TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
    /// Behind the port, such as `/metrics`.
    pub path: String,
}

impl Form {
    /// The URL of a host, or of an address, at this port.
    pub fn url(&self, host: &str, port: u16) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("{scheme}://{host}:{port}{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_made_of_names_and_of_addresses_of_both_versions() {
        let check = |https, host: &str, expected: &str| {
            let form = Form { https, path: "/metrics".to_owned() };
            assert_eq!(form.url(host, 9400), expected);
        };
        check(false, "dgx-001.lab", "http://dgx-001.lab:9400/metrics");
        check(true, "10.0.0.1", "https://10.0.0.1:9400/metrics");
        check(false, "fd00::1", "http://[fd00::1]:9400/metrics");
    }
}
