//! Which files a name stands for: one, all that match a pattern, or what comes in at standard
//! input.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

/// Most files that one pattern may stand for: each is a source with keys of its own.
const FILES_MAX: usize = 1000;
/// Most entries of folders that are looked at for one pattern: a pattern from the root would walk
/// whole disks.
const ENTRIES_MAX: usize = 1_000_000;
/// What of standard input is read at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Why a name stands for nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error("find {0}: no file is so named; give a path, or a pattern such as '/data/*.csv'")]
    Nothing(PathBuf),
    #[error("find {0}: more than {FILES_MAX} files are so named; give a narrower pattern")]
    TooMany(PathBuf),
    #[error("find {0}: more than {ENTRIES_MAX} names would be looked at; give a narrower pattern")]
    TooWide(PathBuf),
    #[error("look into {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("keep standard input in {path} (--spool-dir)")]
    Spool {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn is_pattern(part: &OsStr) -> bool {
    part.as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Whether all of `name` is as `pattern` says: `*` is any text, `?` any one byte. Goes back to
/// the last star only, so no pattern is slow.
fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if name.get(n) == Some(byte) => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// The files that an absolute path stands for, in the order of their names. A file that is there
/// under that very name is meant, whatever stands in it. What begins with a dot is only found by
/// a pattern that does.
pub(crate) fn matching(path: &Path) -> Result<Vec<PathBuf>, NameError> {
    if !path.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b'*' | b'?'))
        || path.exists()
    {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = vec![PathBuf::new()];
    let mut looked_at = 0;
    let parts: Vec<Component<'_>> = path.components().collect();
    for (nth, part) in parts.iter().enumerate() {
        let is_last = nth + 1 == parts.len();
        let mut next = Vec::new();
        for folder in found {
            if !is_pattern(part.as_os_str()) {
                next.push(folder.join(part));
                continue;
            }
            if !folder.is_dir() {
                continue;
            }
            let failed = |source| NameError::Folder { path: folder.clone(), source };
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                looked_at += 1;
                if looked_at > ENTRIES_MAX {
                    return Err(NameError::TooWide(path.to_owned()));
                }
                let (pattern, bytes) =
                    (part.as_os_str().as_encoded_bytes(), name.as_encoded_bytes());
                let hidden = bytes.starts_with(b".") && !pattern.starts_with(b".");
                let full = folder.join(&name);
                if !hidden && is_like(pattern, bytes) && (!is_last || full.is_file()) {
                    next.push(full);
                }
                if next.len() > FILES_MAX {
                    return Err(NameError::TooMany(path.to_owned()));
                }
            }
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();
    if found.is_empty() { Err(NameError::Nothing(path.to_owned())) } else { Ok(found) }
}

/// Keeps all that comes in as a file of `folder` that is named by its content: what was read of
/// it must be there to be read again.
pub(crate) fn spool(mut from: impl Read, folder: &Path) -> Result<PathBuf, NameError> {
    let part = folder.join(format!(".stdin-{}.part", std::process::id()));
    let kept = keep(&mut from, &part).and_then(|hash| {
        let path = folder.join(format!("stdin-{hash:016x}.csv"));
        std::fs::rename(&part, &path)?;
        File::open(folder)?.sync_all()?;
        Ok(path)
    });
    kept.map_err(|source| {
        // It may not even have been made.
        let _ = std::fs::remove_file(&part);
        NameError::Spool { path: folder.to_owned(), source }
    })
}

/// Whether a file has a name that [`spool`] gives.
pub(crate) fn is_spooled(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("stdin-") && name.ends_with(".csv")
}

fn keep(from: &mut impl Read, path: &Path) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let mut hash = Xxh3::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let got = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(got) => piece.get(..got).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(got);
        file.write_all(got)?;
    }
    file.sync_all()?;
    Ok(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_like_what_a_shell_would_find() {
        let check = |pattern: &str, name: &str, expected: bool| {
            let is = is_like(pattern.as_bytes(), name.as_bytes());
            assert_eq!(is, expected, "{pattern} {name}");
        };
        check("*", "", true);
        check("*.csv", "a.csv", true);
        check("*.csv", "a.csv.gz", false);
        check("a*b*c", "aXbYbZc", true);
        check("a*b*c", "aXbYbZ", false);
        check("?.csv", "a.csv", true);
        check("?.csv", "ab.csv", false);
        check("", "a", false);
        check(&"*a".repeat(50), &"a".repeat(49), false);
    }

    #[test]
    fn a_name_stands_for_every_file_that_is_like_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a/1.csv", "a/2.csv", "a/.3.csv", "b/4.csv", "b/x.txt", "c/5*.csv", "c/55.csv"]
        {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::fs::create_dir(folder.path().join("a/folder.csv")).unwrap();
        let check = |pattern: &str, expected: &[&str]| {
            let found = matching(&folder.path().join(pattern)).unwrap();
            let expected: Vec<_> = expected.iter().map(|name| folder.path().join(name)).collect();
            assert_eq!(found, expected, "{pattern}");
        };
        check("a/*.csv", &["a/1.csv", "a/2.csv"]);
        check("a/.*.csv", &["a/.3.csv"]);
        check("*/?.csv", &["a/1.csv", "a/2.csv", "b/4.csv"]);
        check("?/4.csv", &["b/4.csv"]);
        check("c/5*.csv", &["c/5*.csv"]);
        check("no such file", &["no such file"]);
        let none = matching(&folder.path().join("*.gz")).unwrap_err().to_string();
        assert!(none.contains("no file is so named"), "{none}");
        for n in 0..=FILES_MAX {
            std::fs::write(folder.path().join(format!("{n}.many")), "").unwrap();
        }
        let many = matching(&folder.path().join("*.many")).unwrap_err().to_string();
        assert!(many.contains("more than 1000 files"), "{many}");
    }

    #[test]
    fn what_comes_in_is_kept_under_a_name_of_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let text = b"x".repeat(PIECE_BYTES + 1);
        let first = spool(&text[..], folder.path()).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), text);
        assert_eq!(spool(&text[..], folder.path()).unwrap(), first);
        assert_ne!(spool(&text[1..], folder.path()).unwrap(), first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let error = spool(&text[..], &folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("--spool-dir"), "{error}");
    }
}
