//! Who may ask what: bearer tokens from a file.
//!
//! Every protocol asks [`Auth::admit`], with the token however it came. What is refused is told
//! in two words that reveal nothing; who asked and why it failed is in the log.

mod pace;
mod tokens;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use nexus_common::model::InstanceId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use tokens::{
    BadLine, Scope, TOKEN_BYTES_MAX, TOKENS_MAX, TokenHash, TokenLine, generate, highest, parse,
};

use crate::files::{self, FileError};
use pace::Pace;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line of it is wrong.
    #[error("cannot use {}, {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: BadLine,
    },
}

/// Why a request is refused. Says nothing about which tokens there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No token, or none that is known.
    #[error("a known bearer token is needed")]
    Unknown,
    /// A known token whose scopes do not reach that far.
    #[error("this token's scopes do not allow that")]
    Beyond,
    /// Too many requests with this token.
    #[error("too many requests with this token")]
    TooMany {
        /// When to come again.
        after: Duration,
    },
}

/// One known token.
#[derive(Debug)]
struct Known {
    line: TokenLine,
    pace: Arc<Pace>,
}

/// What a known token, or the lack of any, allows.
#[derive(Debug, Clone)]
pub struct Grant(Option<Arc<Known>>);

impl Grant {
    /// Allows everything: no tokens are configured.
    pub fn open() -> Self {
        Self(None)
    }

    /// Whether `scope` is within it.
    pub fn allows(&self, scope: Scope) -> bool {
        self.0.as_ref().is_none_or(|known| known.line.scope >= scope)
    }

    /// Whose token it is, for logs; none where no tokens are configured.
    pub fn name(&self) -> Option<&InstanceId> {
        self.0.as_ref().map(|known| &known.line.name)
    }
}

/// Known tokens. Without a file of them everything is allowed.
#[derive(Debug, Clone)]
pub struct Auth {
    file: Option<Arc<TokenFile>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    per_second: u32,
    known: RwLock<Vec<Arc<Known>>>,
}

impl Auth {
    /// No tokens: everything is allowed.
    pub fn open() -> Self {
        Self { file: None, changes: watch::Sender::new(()) }
    }

    /// The tokens of a file, each good for `per_second` requests on average (0: any number).
    ///
    /// # Errors
    /// When the file cannot be read, or a line is wrong: names both.
    pub fn from_file(path: &Path, per_second: u32) -> Result<Self, AuthError> {
        let lines = read(path)?;
        let file = TokenFile { path: path.to_owned(), per_second, known: RwLock::default() };
        file.replace(lines);
        Ok(Self { file: Some(Arc::new(file)), ..Self::open() })
    }

    /// Whether everything is allowed.
    pub fn is_open(&self) -> bool {
        self.file.is_none()
    }

    /// What a token allows; none if it is not known. Takes the same time wherever a wrong token
    /// differs.
    pub fn check(&self, token: &str) -> Option<Grant> {
        let Some(file) = &self.file else { return Some(Grant::open()) };
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let hash = TokenHash::of(token);
        let known = file.known.read().ok()?;
        let mut found = None;
        for one in known.iter() {
            if one.line.hash.is(&hash) {
                found = Some(one);
            }
        }
        found.map(|known| Grant(Some(Arc::clone(known))))
    }

    /// Decides about one request: the token is known, reaches as far as `scope`, and was not
    /// used too often lately. Counts the request.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, token: Option<&str>, scope: Scope) -> Result<Grant, Refused> {
        if self.is_open() {
            return Ok(Grant::open());
        }
        let grant = token.and_then(|token| self.check(token)).ok_or(Refused::Unknown)?;
        self.count(&grant)?;
        if grant.allows(scope) { Ok(grant) } else { Err(Refused::Beyond) }
    }

    /// Counts one more request of a connection that was let in before.
    ///
    /// # Errors
    /// When there were too many lately.
    pub fn count(&self, grant: &Grant) -> Result<(), Refused> {
        let Some(known) = &grant.0 else { return Ok(()) };
        known.pace.take(Instant::now()).map_err(|after| Refused::TooMany { after })
    }

    /// Whether a grant given before still stands: its token may have gone from the file, or be
    /// good for less. For connections that last; ask again when [`Auth::changes`] tells.
    pub fn still(&self, grant: &Grant, scope: Scope) -> bool {
        match (&self.file, &grant.0) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(file), Some(was)) => file.known.read().is_ok_and(|known| {
                let now = known.iter().find(|one| one.line.hash == was.line.hash);
                now.is_some_and(|one| one.line.scope >= scope)
            }),
        }
    }

    /// Tells when the tokens changed; never where there are none.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Reads the file again whenever it changes, until `stop`. A file that is wrong changes
    /// nothing: the tokens that were known stay, and the log says so.
    pub async fn follow(self, stop: CancellationToken) {
        let Some(file) = &self.file else { return };
        let changed = || match read(&file.path) {
            Ok(lines) => {
                tracing::info!(path = %file.path.display(), tokens = lines.len(), "tokens read");
                file.replace(lines);
                self.changes.send_replace(());
            }
            Err(error) => tracing::error!(%error, "the tokens stay as they were"),
        };
        files::follow(std::slice::from_ref(&file.path), stop, changed).await;
    }
}

impl TokenFile {
    /// Tokens that stay keep their count of requests.
    fn replace(&self, lines: Vec<TokenLine>) {
        let Ok(mut known) = self.known.write() else { return };
        let pace = |line: &TokenLine| {
            let same = known.iter().find(|old| old.line.hash == line.hash);
            same.map_or_else(|| Arc::new(Pace::new(self.per_second)), |old| Arc::clone(&old.pace))
        };
        let new = lines.into_iter().map(|line| Arc::new(Known { pace: pace(&line), line }));
        *known = new.collect();
    }
}

fn read(path: &Path) -> Result<Vec<TokenLine>, AuthError> {
    let text = files::read_text(path)?;
    parse(&text).map_err(|source| AuthError::Line { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: &[(&str, &str, &str)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), lines);
        file
    }

    fn write(path: &Path, lines: &[(&str, &str, &str)]) {
        let line = |(name, scopes, token): &(&str, &str, &str)| {
            format!("{name} {scopes} {}\n", TokenHash::of(token))
        };
        std::fs::write(path, lines.iter().map(line).collect::<String>()).unwrap();
    }

    #[test]
    fn each_scope_includes_the_ones_before_it() {
        let file = file(&[("r", "read", "R"), ("w", "write", "W"), ("a", "admin", "A")]);
        let auth = Auth::from_file(file.path(), 0).unwrap();
        let check = |token: Option<&str>, scope: Scope, expected: Result<(), Refused>| {
            assert_eq!(auth.admit(token, scope).map(drop), expected, "{token:?} {scope}");
        };
        check(Some("R"), Scope::Read, Ok(()));
        check(Some("R"), Scope::Write, Err(Refused::Beyond));
        check(Some("W"), Scope::Read, Ok(()));
        check(Some("W"), Scope::Admin, Err(Refused::Beyond));
        check(Some("A"), Scope::Admin, Ok(()));
        check(Some("X"), Scope::Read, Err(Refused::Unknown));
        check(Some(""), Scope::Read, Err(Refused::Unknown));
        check(Some(&"R".repeat(TOKEN_BYTES_MAX + 1)), Scope::Read, Err(Refused::Unknown));
        check(None, Scope::Read, Err(Refused::Unknown));
        assert_eq!(auth.check("R").unwrap().name().unwrap().as_str(), "r");
    }

    #[test]
    fn without_a_file_everything_is_allowed() {
        let auth = Auth::open();
        assert!(auth.is_open());
        let grant = auth.admit(None, Scope::Admin).unwrap();
        assert!(grant.allows(Scope::Admin) && grant.name().is_none());
        assert!(auth.still(&grant, Scope::Admin));
    }

    #[test]
    fn too_many_requests_of_one_token_are_refused_and_no_other_is() {
        let file = file(&[("a", "read", "A"), ("b", "read", "B")]);
        let auth = Auth::from_file(file.path(), 1).unwrap();
        let ask = |token| auth.admit(Some(token), Scope::Read).map(drop);
        assert_eq!((ask("A"), ask("A")), (Ok(()), Ok(())));
        assert!(matches!(ask("A"), Err(Refused::TooMany { after }) if !after.is_zero()));
        assert_eq!(ask("B"), Ok(()));
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again_and_one_that_is_wrong_changes_nothing() {
        let file = file(&[("a", "write", "A"), ("b", "read", "B")]);
        let auth = Auth::from_file(file.path(), 0).unwrap();
        let (a, b) = (auth.check("A").unwrap(), auth.check("B").unwrap());
        let stop = CancellationToken::new();
        let mut changes = auth.changes();
        let following = tokio::spawn(auth.clone().follow(stop.clone()));
        write(file.path(), &[("a", "read", "A"), ("c", "read", "C")]);
        let seen = changes.wait_for(|()| auth.check("C").is_some());
        tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap().unwrap();
        assert!(auth.still(&a, Scope::Read) && !auth.still(&a, Scope::Write));
        assert!(!auth.still(&b, Scope::Read), "it is gone from the file");
        assert!(auth.check("C").is_some());
        std::fs::write(file.path(), "nonsense\n").unwrap();
        assert!(matches!(read(file.path()), Err(AuthError::Line { .. })));
        assert!(auth.check("C").is_some());
        stop.cancel();
        following.await.unwrap();
    }

    #[test]
    fn a_file_that_is_wrong_or_missing_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a read\n").unwrap();
        let error = Auth::from_file(file.path(), 0).unwrap_err().to_string();
        let path = file.path().display();
        assert_eq!(
            error,
            format!("cannot use {path}, line 1: 2 words instead of three: name, scopes, hash")
        );
        let missing = Auth::from_file(Path::new("/nowhere/tokens"), 0).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/tokens"), "{missing}");
    }
}
