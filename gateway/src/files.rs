//! Small files that may change under a running process: tokens and certificates.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Largest file that is read: a thousand tokens, or a long chain of certificates, are far below.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How often files are looked at: a token that was withdrawn is refused this soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// All of a small file.
///
/// # Errors
/// When it cannot be read or is larger than it may be.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let reason = format!("it is larger than {FILE_BYTES_MAX} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok(bytes)
}

/// All of a small file, as text.
///
/// # Errors
/// When it cannot be read, is larger than it may be, or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String, FileError> {
    let failed = |e| FileError {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, e),
    };
    String::from_utf8(read(path)?).map_err(|e| failed(e.utf8_error()))
}

/// Calls `changed` whenever one of `paths` holds something else than before, until `stop`. Content
/// is compared, since mounted secrets change by moving links, with whatever times.
pub(crate) async fn follow(paths: &[PathBuf], stop: CancellationToken, changed: impl Fn()) {
    let look = |paths: Vec<PathBuf>| move || paths.iter().map(|p| read(p).ok()).collect::<Vec<_>>();
    let mut known = None;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Ok(now) = tokio::task::spawn_blocking(look(paths.to_vec())).await else { return };
        // A file may have changed between being read and being followed: the first look counts.
        if known.as_ref() != Some(&now) {
            changed();
            known = Some(now);
        }
    }
}
