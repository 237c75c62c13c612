//! Targets by the API of Kubernetes: the endpoints of services, as EndpointSlices list them.
//!
//! Where the API is and which account asks is the streamer's to say, not a source's: whoever writes
//! sources must not be able to send the account's token elsewhere.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use nexus_common::keyspace::{
    discover::Endpoints,
    live::{Login, Target},
};
use serde::Deserialize;

use super::{DiscoverError, TARGETS_MAX};
use crate::source::scrape::{
    fetch::{Access, Client},
    target::FILE_BYTES_MAX,
};

/// Slices of one answer, and most answers of one list: a slice holds up to a thousand endpoints.
const PAGE_SLICES: usize = 500;
const PAGES_MAX: usize = 100;

/// The API of a cluster, and the account that asks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kubernetes {
    api: String,
    account: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    items: Vec<Slice>,
}

#[derive(Debug, Default, Deserialize)]
struct PageMeta {
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Absent, null and empty are the same in lists of this API.
#[derive(Debug, Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    /// Not known is ready.
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

impl Kubernetes {
    /// The API at `api`, asked with the token and the authority in `account`, as pods have them.
    pub(crate) fn new(api: &str, account: &Path) -> Self {
        Self { api: api.trim_end_matches('/').to_owned(), account: account.to_owned() }
    }

    /// The targets of these endpoints. Token and authority are read for each list. Blocking.
    pub(super) fn targets(
        &self,
        endpoints: &Endpoints,
        timeout_ms: u64,
    ) -> Result<Vec<Target>, DiscoverError> {
        let file = |name: &str| self.account.join(name).display().to_string();
        let access = Access {
            login: Login::Bearer { token_file: file("token") },
            ca_file: self.api.starts_with("https://").then(|| file("ca.crt")),
            cert_file: None,
            key_file: None,
            timeout_ms,
            body_bytes_max: FILE_BYTES_MAX,
        };
        let client = Client::with(access, &self.account)?;
        let (mut targets, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let url = self.url(endpoints, next.as_deref());
            let (body, _) = client.get(&url)?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|error| DiscoverError::Slices(url, error))?;
            for slice in page.items {
                add(slice, endpoints, &mut targets);
            }
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                return Ok(targets);
            }
            if targets.len() > TARGETS_MAX {
                break;
            }
        }
        Err(DiscoverError::Many)
    }

    fn url(&self, endpoints: &Endpoints, next: Option<&str>) -> String {
        let (api, namespace) = (&self.api, &endpoints.namespace);
        let mut url = format!(
            "{api}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?limit={PAGE_SLICES}"
        );
        for (name, value) in [("labelSelector", endpoints.selector.as_deref()), ("continue", next)]
        {
            if let Some(value) = value {
                let _ = write!(url, "&{name}={}", escaped(value)); // a text takes all
            }
        }
        url
    }
}

/// A value of a URL's query (RFC 3986, 2.3).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}"); // a text takes all
        }
    }
    escaped
}

/// Each ready endpoint at each port that is meant, on the node that it runs on.
fn add(slice: Slice, endpoints: &Endpoints, targets: &mut Vec<Target>) {
    let tcp = |port: &&Port| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let named = |port: &&Port| match &endpoints.port {
        Some(name) => port.name.as_ref() == Some(name),
        None => true,
    };
    let ports = slice.ports.unwrap_or_default();
    let ports: Vec<u16> = ports.iter().filter(tcp).filter(named).filter_map(|p| p.port).collect();
    for endpoint in slice.endpoints.unwrap_or_default() {
        if endpoint.conditions.ready == Some(false) {
            continue;
        }
        // Addresses of one endpoint are the same thing: any of them does.
        let Some(address) = endpoint.addresses.first() else { continue };
        for port in &ports {
            let (url, host) = (endpoints.form.url(address, *port), endpoint.node_name.clone());
            targets.push(Target { url, host, interval_ms: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::keyspace::discover::Form;

    use super::*;

    fn endpoints(selector: Option<&str>, port: Option<&str>) -> Endpoints {
        Endpoints {
            namespace: "gpu".to_owned(),
            selector: selector.map(str::to_owned),
            port: port.map(str::to_owned),
            form: Form { https: false, path: "/metrics".to_owned() },
            refresh_ms: 5000,
        }
    }

    #[test]
    fn what_is_asked_for_stands_in_the_url() {
        let api = Kubernetes::new("https://10.0.0.1:443/", Path::new("/account"));
        let check = |selector, next, expected: &str| {
            let url = api.url(&endpoints(selector, None), next);
            let all = "https://10.0.0.1:443/apis/discovery.k8s.io/v1/namespaces/gpu/endpointslices?limit=500";
            assert_eq!(url, format!("{all}{expected}"));
        };
        check(None, None, "");
        check(Some("app=a,b in (c, d)"), None, "&labelSelector=app%3Da%2Cb%20in%20%28c%2C%20d%29");
        check(None, Some("t/k=="), "&continue=t%2Fk%3D%3D");
    }

    #[test]
    fn ready_endpoints_are_targets_at_the_ports_that_are_meant() {
        let check = |slice: &str, port: Option<&str>, expected: &[(&str, Option<&str>)]| {
            let mut targets = Vec::new();
            add(serde_json::from_str(slice).unwrap(), &endpoints(None, port), &mut targets);
            let found: Vec<_> =
                targets.iter().map(|t| (t.url.as_str(), t.host.as_deref())).collect();
            assert_eq!(found, expected, "{slice}");
        };
        let ports = r#""ports":[{"name":"metrics","port":9400,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"},{"name":"web","port":80}]"#;
        let ready = format!(
            r#"{{"endpoints":[{{"addresses":["10.1.0.4"],"conditions":{{"ready":true}},"nodeName":"dgx-1"}},
            {{"addresses":["10.1.0.5"],"conditions":{{"ready":false}},"nodeName":"dgx-2"}},
            {{"addresses":["fd00::6"]}}, {{"addresses":[]}}],{ports}}}"#
        );
        let (first, other) = ("http://10.1.0.4:9400/metrics", "http://[fd00::6]:9400/metrics");
        check(&ready, Some("metrics"), &[(first, Some("dgx-1")), (other, None)]);
        check(&ready, Some("other"), &[]);
        let web = ["http://10.1.0.4:80/metrics", "http://[fd00::6]:80/metrics"];
        check(
            &ready,
            None,
            &[(first, Some("dgx-1")), (web[0], Some("dgx-1")), (other, None), (web[1], None)],
        );
        check(r#"{"endpoints":null,"ports":null}"#, None, &[]);
        check("{}", None, &[]);
    }
}
