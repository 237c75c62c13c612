//! Whether somebody who names targets could be asked.

use super::SourceError;
use crate::keyspace::discover::{Discover, DnsNames, Endpoints, Form, REFRESH_MS, Record};

/// Longest name in the DNS, in bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 255;
/// Longest name in Kubernetes of the kinds used here, in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Longest path of a URL, and longest selector, in bytes: a value in etcd stays small.
const TEXT_BYTES_MAX: usize = 512;

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
