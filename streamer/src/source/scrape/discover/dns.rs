//! Targets by names in the DNS.

use std::{net::SocketAddr, time::Duration};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use nexus_common::keyspace::{
    discover::{DnsNames, Record},
    live::Target,
};

/// Why a name is not looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsError {
    #[error("read the system's resolvers; name one with server")]
    System(#[source] NetError),
    #[error("ask the name server")]
    Ask(#[source] NetError),
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// The targets that a name stands for: none, if there is no such name. Blocking, in a thread of a
/// runtime.
pub(super) fn targets(names: &DnsNames, within: Duration) -> Result<Vec<Target>, DnsError> {
    let looked_up = tokio::time::timeout(within, look_up(names));
    tokio::runtime::Handle::current().block_on(looked_up).map_err(|_| DnsError::Late(within))?
}

async fn look_up(names: &DnsNames) -> Result<Vec<Target>, DnsError> {
    let record = match names.record {
        Record::Srv => RecordType::SRV,
        Record::A => RecordType::A,
        Record::Aaaa => RecordType::AAAA,
    };
    let found = match resolver(names.server)?.lookup(names.name.as_str(), record).await {
        Ok(found) => found,
        // An answer, too: nobody is there any more.
        Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
        Err(error) => return Err(DnsError::Ask(error)),
    };
    let port = names.port.unwrap_or(0); // checked: where records have none it was given
    let targets = found.answers().iter().filter_map(|answer| {
        let (host, port) = match &answer.data {
            RData::SRV(srv) => (srv.target.to_utf8().trim_end_matches('.').to_owned(), srv.port),
            RData::A(address) => (address.to_string(), port),
            RData::AAAA(address) => (address.to_string(), port),
            _ => return None, // how the name is called really
        };
        let is_there = !host.is_empty() && port > 0; // a dot means: decidedly not here (RFC 2782)
        is_there.then(|| Target { url: names.form.url(&host, port), host: None, interval_ms: None })
    });
    Ok(targets.collect())
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, DnsError> {
    let mut builder = match server {
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().map_err(DnsError::System)?,
    };
    // What is asked again is due: whatever was said before.
    builder.options_mut().cache_size = 0;
    if server.is_some() {
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
    }
    builder.build().map_err(DnsError::System)
}
