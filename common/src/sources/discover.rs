//! Those who name targets, as people write them down, and whether they could be asked.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{SourceError, document::Length};
use crate::keyspace::discover::{
    Discover, DnsNames, Endpoints, Form, HttpLists, REFRESH_MS, Record,
};

/// Longest name in the DNS, in bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 255;
/// Longest name in Kubernetes of the kinds used here, in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Longest path of a URL, and longest selector, in bytes: a value in etcd stays small.
const TEXT_BYTES_MAX: usize = 512;

/// Somebody who names targets: exactly one kind with what it takes.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiscoverSource {
    /// A web server that answers as Prometheus' `http_sd` has it.
    http: Option<DiscoverHttp>,
    /// A name in the DNS.
    dns: Option<DiscoverDns>,
    /// The API of the Kubernetes cluster in which streamers run.
    kubernetes: Option<DiscoverKubernetes>,
}

/// A web server with lists of targets; asked as the targets are.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiscoverHttp {
    /// Where.
    #[cfg_attr(feature = "openapi", schema(example = "http://inventory/targets"))]
    url: String,
    /// From one question to the next, from 5s to 24h.
    #[serde(default = "minute")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "1m"))]
    refresh: Length,
}

/// A name in the DNS that stands for many targets.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiscoverDns {
    /// The name.
    #[cfg_attr(feature = "openapi", schema(example = "_dcgm._tcp.example.org"))]
    name: String,
    /// What is looked up: `srv`, `a` or `aaaa`.
    #[serde(default = "srv")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "srv"))]
    record: Record,
    /// The targets' port, of `a` and `aaaa`.
    port: Option<u16>,
    /// The name server, with its port; the system's if not given.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.0.0.53:53"))]
    server: Option<SocketAddr>,
    /// Ask the targets with TLS.
    #[serde(default)]
    https: bool,
    /// Where they answer.
    #[serde(default = "metrics")]
    #[cfg_attr(feature = "openapi", schema(example = "/metrics"))]
    path: String,
    /// From one question to the next, from 5s to 24h.
    #[serde(default = "half_a_minute")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
    refresh: Length,
}

/// Ready endpoints of services in Kubernetes.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiscoverKubernetes {
    /// Where the services are.
    #[cfg_attr(feature = "openapi", schema(example = "gpu-operator"))]
    namespace: String,
    /// Labels of the services' EndpointSlices; all if not given.
    #[cfg_attr(feature = "openapi", schema(example = "app=nvidia-dcgm-exporter"))]
    selector: Option<String>,
    /// The port, by its name; all of TCP if not given.
    #[cfg_attr(feature = "openapi", schema(example = "metrics"))]
    port: Option<String>,
    /// Ask the targets with TLS.
    #[serde(default)]
    https: bool,
    /// Where they answer.
    #[serde(default = "metrics")]
    #[cfg_attr(feature = "openapi", schema(example = "/metrics"))]
    path: String,
    /// From one question to the next, from 5s to 24h.
    #[serde(default = "half_a_minute")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
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

impl DiscoverSource {
    /// As it stands in etcd.
    pub(super) fn value(self) -> Result<Discover, SourceError> {
        let http = self.http.map(|DiscoverHttp { url, refresh }| {
            Discover::Http(HttpLists { url, refresh_ms: refresh.0 })
        });
        let dns =
            self.dns.map(|DiscoverDns { name, record, port, server, https, path, refresh }| {
                let (form, refresh_ms) = (Form { https, path }, refresh.0);
                Discover::Dns(DnsNames { name, record, port, server, form, refresh_ms })
            });
        let kubernetes = self.kubernetes.map(|given| {
            let DiscoverKubernetes { namespace, selector, port, https, path, refresh } = given;
            let (form, refresh_ms) = (Form { https, path }, refresh.0);
            Discover::Kubernetes(Endpoints { namespace, selector, port, form, refresh_ms })
        });
        let mut kinds = [http, dns, kubernetes].into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            _ => {
                let reason = "each must be exactly one of http, dns and kubernetes".to_owned();
                Err(SourceError::Field { field: "discover", reason })
            }
        }
    }
}

/// Checks one; `secured` if there are authorities for `https`.
pub(super) fn check(discover: &Discover, secured: bool) -> Result<(), SourceError> {
    super::wanted::check_range("refresh, in milliseconds,", discover.refresh_ms(), REFRESH_MS)?;
    match discover {
        Discover::Http(lists) => super::wanted::check_url(&lists.url, secured),
        Discover::Dns(names) => check_dns(names, secured),
        Discover::Kubernetes(endpoints) => check_endpoints(endpoints, secured),
    }
}

fn check_dns(names: &DnsNames, secured: bool) -> Result<(), SourceError> {
    let name = &names.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
        return bad("dns", format!("name: {name:?} is not like _dcgm._tcp.example.org"));
    }
    match (names.record, names.port) {
        (Record::Srv, Some(_)) => {
            bad("dns", "port: SRV records say it; give none, or record: a".to_owned())?;
        }
        (Record::A | Record::Aaaa, None | Some(0)) => {
            bad("dns", "port: addresses do not say it; give one from 1 to 65535".to_owned())?;
        }
        _ => {}
    }
    check_form("dns", &names.form, secured)
}

fn check_endpoints(endpoints: &Endpoints, secured: bool) -> Result<(), SourceError> {
    let label = |text: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !text.is_empty() && text.len() <= LABEL_BYTES_MAX && text.chars().all(plain)
    };
    let Endpoints { namespace, selector, port, form, .. } = endpoints;
    if !label(namespace) {
        return bad("kubernetes", format!("namespace: {namespace:?} is not like gpu-operator"));
    }
    if let Some(port) = port.as_ref().filter(|port| !label(port)) {
        return bad("kubernetes", format!("port: {port:?} is not a port's name, like metrics"));
    }
    let printed = |text: &&String| {
        text.len() <= TEXT_BYTES_MAX && text.chars().all(|c| c == ' ' || c.is_ascii_graphic())
    };
    if let Some(selector) = selector.as_ref().filter(|text| !printed(text)) {
        return bad("kubernetes", format!("selector: {selector:?} is not like app=dcgm-exporter"));
    }
    check_form("kubernetes", form, secured)
}

fn check_form(field: &'static str, form: &Form, secured: bool) -> Result<(), SourceError> {
    let Form { https, path } = form;
    let plain = path.len() <= TEXT_BYTES_MAX && path.chars().all(|c| c.is_ascii_graphic());
    if !path.starts_with('/') || !plain {
        return bad(field, format!("path: {path:?} is not like /metrics"));
    }
    if *https && !secured {
        return bad(field, "https needs ca_file: the authorities it is checked with".to_owned());
    }
    Ok(())
}

fn bad(field: &'static str, reason: String) -> Result<(), SourceError> {
    Err(SourceError::Field { field, reason })
}
