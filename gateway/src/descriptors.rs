//! Open files: each connection is one, and what a system allows at first (1,024, often) is far
//! below what it allows who asks.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that are no connections of clients: to etcd, of listeners, tokens and certificates.
const OTHERS: u64 = 64;

/// Raises the soft limit of open files to the hard one. Returns the limit that holds from now on;
/// none where there is no limit.
pub(crate) fn raise() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(getrlimit(Resource::Nofile).current)
}

/// Raises the limit and says what it is, and whether `connections` fit below it.
pub(crate) fn raise_for(connections: usize) {
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    match raise() {
        Ok(None) => tracing::info!("open files: no limit"),
        Ok(Some(open_files)) if open_files >= needed => tracing::info!(open_files, "open files"),
        Ok(Some(open_files)) => {
            tracing::warn!(
                open_files,
                connections,
                "fewer open files are allowed than there may be connections: raise the hard limit \
                 (LimitNOFILE, ulimit -Hn) or lower --connections-max"
            );
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_and_a_second_time_changes_nothing() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise().unwrap(), hard);
        assert_eq!(raise().unwrap(), hard);
    }
}
