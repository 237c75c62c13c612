//! The file of tokens: a line each, with the token's hash instead of the token. Pure.

use std::{fmt, str::FromStr};

use nexus_common::model::InstanceId;
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;

/// Most tokens in a file: each request is compared with all of them, about 10 ns each.
pub const TOKENS_MAX: usize = 1024;
/// Longest token that is looked at, in bytes: ours have 70.
pub const TOKEN_BYTES_MAX: usize = 256;
/// What a token of ours begins with, so that secret scanners find one that leaked.
const PREFIX: &str = "nexus_";
/// How a hash is written.
const ALGORITHM: &str = "sha256:";

/// What a token is good for. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everything that only tells.
    Read,
    /// Declaring, pausing, resuming and withdrawing sources.
    Write,
    /// Everything.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            "admin" => Ok(Self::Admin),
            // Not repeated: a line whose words are mixed up may have its token here.
            _ => Err("a scope is read, write or admin".to_owned()),
        }
    }
}

/// SHA-256 of a token: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TokenHash {
    /// Of a token. One round is enough for what cannot be guessed: tokens have 256 random bits.
    pub fn of(token: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for TokenHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Not repeated: somebody may have written the token itself.
        let bad = || format!("a hash is {ALGORITHM} and 64 hexadecimal digits");
        let digits = text.strip_prefix(ALGORITHM).filter(|d| d.len() == 64).ok_or_else(bad)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let digit = |at: usize| pair.get(at).and_then(|&c| char::from(c).to_digit(16));
            let (high, low) = digit(0).zip(digit(1)).ok_or_else(bad)?;
            // Two digits below 16 fit a byte.
            *byte = u8::try_from(high * 16 + low).map_err(|_| bad())?;
        }
        Ok(Self(hash))
    }
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLine {
    /// Who it is for: in logs, never in answers.
    pub name: InstanceId,
    /// What it is good for.
    pub scope: Scope,
    /// Its hash.
    pub hash: TokenHash,
}

impl fmt::Display for TokenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, scope, hash } = self;
        write!(f, "{name} {scope} {hash}")
    }
}

impl FromStr for TokenLine {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, scopes, hash] = words[..] else {
            let found = words.len();
            return Err(format!("{found} words instead of three: name, scopes, hash"));
        };
        Ok(Self {
            name: name.parse().map_err(|e| format!("the name: {e}"))?,
            scope: highest(scopes)?,
            hash: hash.parse()?,
        })
    }
}

/// The highest of some scopes, which includes the others.
pub fn highest(scopes: &str) -> Result<Scope, String> {
    let scopes: Vec<Scope> = scopes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    scopes.into_iter().max().ok_or_else(|| "no scope".to_owned())
}

/// A line that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// All lines of a file. Empty ones and those that begin with `#` say nothing.
///
/// # Errors
/// The first line that is wrong. What could be a token is not repeated.
pub fn parse(text: &str) -> Result<Vec<TokenLine>, BadLine> {
    let mut tokens: Vec<TokenLine> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |reason: String| BadLine { line: index + 1, reason };
        let token: TokenLine = line.parse().map_err(bad)?;
        if tokens.iter().any(|known| known.name == token.name) {
            return Err(bad(format!("the name {} stands on an earlier line", token.name)));
        }
        if tokens.iter().any(|known| known.hash == token.hash) {
            return Err(bad("this hash stands on an earlier line".to_owned()));
        }
        if tokens.len() == TOKENS_MAX {
            return Err(bad(format!("more than {TOKENS_MAX} tokens")));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// A new token.
///
/// # Errors
/// When the system has no randomness to give.
pub fn generate() -> Result<String, ring::error::Unspecified> {
    let mut random = [0; 32];
    SystemRandom::new().fill(&mut random)?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PREFIX}{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn a_file_is_read_line_by_line_and_the_highest_scope_counts() {
        let text = format!("# dashboards\n\ngrafana  read,write\t{HASH}\r\n");
        let tokens = parse(&text).unwrap();
        assert_eq!(tokens.len(), 1);
        assert_eq!((tokens[0].name.as_str(), tokens[0].scope), ("grafana", Scope::Write));
        assert_eq!(tokens[0].hash, TokenHash::of("test"));
        assert_eq!(tokens[0].to_string(), format!("grafana write {HASH}"));
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_allowed() {
        let check = |text: &str, line: usize, reason: &str| {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(reason), "{text}: {error}");
        };
        check(&format!("a read {HASH}\nb"), 2, "1 words instead of three: name, scopes, hash");
        check(&format!("a/b read {HASH}"), 1, "the name");
        check(&format!("a root {HASH}"), 1, "read, write or admin");
        check(&format!("a read, {HASH}"), 1, "read, write or admin");
        check("a read md5:00", 1, "sha256: and 64 hexadecimal digits");
        check(&format!("a read {}g", &HASH[..70]), 1, "sha256: and 64 hexadecimal digits");
        check(&format!("a read {HASH}\na write {HASH}"), 2, "the name a stands on an earlier");
        check(&format!("a read {HASH}\nb write {HASH}"), 2, "this hash stands on an earlier");
        let many: String = (0..=TOKENS_MAX)
            .map(|n| format!("n{n} read {}\n", TokenHash::of(&n.to_string())))
            .collect();
        check(&many, TOKENS_MAX + 1, "more than 1024 tokens");
    }

    #[test]
    fn no_two_new_tokens_are_the_same_and_a_line_holds_only_the_hash() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), PREFIX.len() + 64);
        assert!(TokenHash::of(&one).is(&TokenHash::of(&one)));
        assert!(!TokenHash::of(&one).is(&TokenHash::of(&other)));
        let line =
            TokenLine { name: "a".parse().unwrap(), scope: Scope::Read, hash: TokenHash::of(&one) };
        assert!(!line.to_string().contains(&one) && !format!("{line:?}").contains(&one));
        assert_eq!(line.to_string().parse(), Ok(line));
    }
}
