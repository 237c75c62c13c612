//! The part of a source that says who names targets.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{Length, wrong};
use crate::{
    keyspace::discover::{Discover, DnsNames, Endpoints, Form, HttpLists, Record},
    sources::SourceError,
};

/// Who names targets; exactly one of these.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Discovered {
    /// A web server.
    http: Option<HttpDiscovery>,
    /// The DNS.
    dns: Option<DnsDiscovery>,
    /// The API of Kubernetes.
    kubernetes: Option<KubernetesDiscovery>,
}

/// Lists as of Prometheus' `http_sd`.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HttpDiscovery {
    /// Where they are.
    #[cfg_attr(feature = "openapi", schema(example = "http://inventory.example.org/targets"))]
    url: String,
    /// How often they are asked for, such as 30s or 1m.
    #[serde(default = "minute")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "1m"))]
    refresh: Length,
}

/// Names in the DNS.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DnsDiscovery {
    /// The name.
    #[cfg_attr(feature = "openapi", schema(example = "_dcgm._tcp.example.org"))]
    name: String,
    /// `srv`, `a` or `aaaa`.
    #[serde(default = "srv")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "srv"))]
    record: Record,
    /// The port of addresses; SRV records say it themselves.
    port: Option<u16>,
    /// Who is asked; the system's resolvers if not given.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.0.0.53:53"))]
    server: Option<SocketAddr>,
    /// Whether targets are asked by https.
    #[serde(default)]
    https: bool,
    /// The path that targets are asked for.
    #[serde(default = "metrics")]
    path: String,
    /// How often it is asked for, such as 30s or 1m.
    #[serde(default = "half_a_minute")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
    refresh: Length,
}

/// Ready endpoints of services, by their EndpointSlices.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct KubernetesDiscovery {
    /// Where the services are.
    #[cfg_attr(feature = "openapi", schema(example = "gpu-operator"))]
    namespace: String,
    /// Labels of the slices; all if not given.
    #[cfg_attr(feature = "openapi", schema(example = "app=nvidia-dcgm-exporter"))]
    selector: Option<String>,
    /// The port by its name; all of TCP if not given.
    port: Option<String>,
    /// Whether targets are asked by https.
    #[serde(default)]
    https: bool,
    /// The path that targets are asked for.
    #[serde(default = "metrics")]
    path: String,
    /// How often it is asked for, such as 30s or 1m.
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

impl Discovered {
    /// As it stands in etcd.
    pub(super) fn value(self) -> Result<Discover, SourceError> {
        let http = self.http.map(|HttpDiscovery { url, refresh }| {
            Discover::Http(HttpLists { url, refresh_ms: refresh.0 })
        });
        let dns =
            self.dns.map(|DnsDiscovery { name, record, port, server, https, path, refresh }| {
                let (form, refresh_ms) = (Form { https, path }, refresh.0);
                Discover::Dns(DnsNames { name, record, port, server, form, refresh_ms })
            });
        let kubernetes = self.kubernetes.map(|given| {
            let KubernetesDiscovery { namespace, selector, port, https, path, refresh } = given;
            let (form, refresh_ms) = (Form { https, path }, refresh.0);
            Discover::Kubernetes(Endpoints { namespace, selector, port, form, refresh_ms })
        });
        let mut kinds = [http, dns, kubernetes].into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            _ => wrong("discover", "each must be exactly one of http, dns and kubernetes"),
        }
    }
}
