//! Files that were sent, once nobody reads them any more.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nexus_common::{
    model::SourceId,
    sources::{SourceDesk, SourceError, SourceState},
};
use tokio::task::spawn_blocking;

use super::intake::{PART_PREFIX, PART_SUFFIX};

/// Behind its source's id in a file's name.
pub(super) const SUFFIX: &str = ".csv";
/// What ids of such sources begin with.
pub(super) const PREFIX: &str = "upload-";

/// Removes what gateways that died left half written: nothing comes in for as long as `age`.
pub(super) fn sweep(folder: &Path, age: Duration) -> io::Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for path in named(folder, PART_PREFIX, PART_SUFFIX)? {
        // Another gateway may have finished it meanwhile.
        if is_old(&path, age) && std::fs::remove_file(&path).is_ok() {
            swept.push(path);
        }
    }
    Ok(swept)
}

/// Removes files whose sources were read to the end or withdrawn, if nobody sent them for as long
/// as `age`: they may be about to be asked for.
pub(super) async fn clear_away(
    folder: PathBuf,
    age: Duration,
    desk: &SourceDesk,
) -> Result<Vec<PathBuf>, SourceError> {
    let listing = spawn_blocking(move || {
        let named = named(&folder, PREFIX, SUFFIX).unwrap_or_default();
        named.into_iter().filter(|path| is_old(path, age)).collect::<Vec<_>>()
    });
    let files = listing.await.unwrap_or_default();
    if files.is_empty() {
        return Ok(files);
    }
    let standings: HashMap<_, _> = desk
        .standings()
        .await?
        .into_iter()
        .map(|(id, source, standing)| (id, (source, standing.state)))
        .collect();
    let mut removed = Vec::new();
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let Ok(id) = stem.parse::<SourceId>() else { continue };
        let spent = match standings.get(&id) {
            Some((source, SourceState::Done)) => source.kind.path() == path.to_str(),
            Some(_) => false,
            None => desk.was_withdrawn(&id).await?,
        };
        if spent && is_old(&path, age) && std::fs::remove_file(&path).is_ok() {
            removed.push(path);
        }
    }
    Ok(removed)
}

fn named(folder: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(suffix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_old(path: &Path, age: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|since| since >= age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_left_half_written_long_ago_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".upload-x.part", "upload-1.csv", ".upload-y"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(sweep(folder.path(), Duration::from_secs(3600)).unwrap().is_empty());
        let swept = sweep(folder.path(), Duration::ZERO).unwrap();
        assert_eq!((swept.len(), std::fs::read_dir(folder.path()).unwrap().count()), (1, 2));
        assert!(swept[0].ends_with(".upload-x.part"));
    }
}
