//! The part of a file of sources that says who names targets.

use std::net::SocketAddr;

use anyhow::bail;
use nexus_common::keyspace::discover::{Discover, DnsNames, Endpoints, Form, HttpLists, Record};
use serde::Deserialize;

use super::file::Length;

/// One of them; each kind takes things of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discovered {
    http: Option<Http>,
    dns: Option<Dns>,
    kubernetes: Option<Kubernetes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    url: String,
    #[serde(default = "minute")]
    refresh: Length,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    name: String,
    #[serde(default = "srv")]
    record: Record,
    port: Option<u16>,
    server: Option<SocketAddr>,
    #[serde(default)]
    https: bool,
    #[serde(default = "metrics")]
    path: String,
    #[serde(default = "half_a_minute")]
    refresh: Length,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kubernetes {
    namespace: String,
    selector: Option<String>,
    port: Option<String>,
    #[serde(default)]
    https: bool,
    #[serde(default = "metrics")]
    path: String,
    #[serde(default = "half_a_minute")]
    refresh: Length,
}

fn minute() -> Length {
    Length(60_000)
}

fn half_a_minute() -> Length {
    Length(30_000)
}

fn srv() -> Record {
    Record::Srv
}

fn metrics() -> String {
    "/metrics".to_owned()
}

impl Discovered {
    /// As it stands in etcd.
    pub(super) fn value(self) -> anyhow::Result<Discover> {
        let http = self
            .http
            .map(|Http { url, refresh }| Discover::Http(HttpLists { url, refresh_ms: refresh.0 }));
        let dns = self.dns.map(|Dns { name, record, port, server, https, path, refresh }| {
            let (form, refresh_ms) = (Form { https, path }, refresh.0);
            Discover::Dns(DnsNames { name, record, port, server, form, refresh_ms })
        });
        let kubernetes = self.kubernetes.map(|given| {
            let Kubernetes { namespace, selector, port, https, path, refresh } = given;
            let (form, refresh_ms) = (Form { https, path }, refresh.0);
            Discover::Kubernetes(Endpoints { namespace, selector, port, form, refresh_ms })
        });
        let mut kinds = [http, dns, kubernetes].into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            _ => bail!("each of discover must be exactly one of http, dns and kubernetes"),
        }
    }
}

/// In a word or two, for a list.
pub(super) fn show(discover: &Discover) -> String {
    match discover {
        Discover::Http(lists) => format!("those of {}", lists.url),
        Discover::Dns(names) => format!("those of {} in the DNS", names.name),
        Discover::Kubernetes(endpoints) => {
            let selector = endpoints.selector.as_deref().unwrap_or("all");
            format!("those of {} ({selector}) in Kubernetes", endpoints.namespace)
        }
    }
}
