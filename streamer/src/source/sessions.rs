//! Logs of GPU-Z: sessions one after the other, each behind a header of its own, whose columns may
//! be others.

use std::{
    io::{self, BufRead, BufReader, Read},
    ops::Range,
};

use nexus_common::sources::gpu_z::begins_session;

/// Longest line that is looked at as one, in bytes: a header has a few thousand.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most sessions of a file: each is a shard with a key of its own.
const SESSIONS_MAX: usize = 4096;

/// The headers in a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    /// Where they stand, with their line ends.
    pub(crate) at: Vec<Range<u64>>,
    /// The last one.
    pub(crate) last: Vec<u8>,
}

/// Finds the headers in what `input`, which begins with a line, has to give.
///
/// # Errors
/// When it cannot be read, or has more sessions than a source may.
pub(crate) fn headers(input: impl Read) -> io::Result<Headers> {
    let mut input = BufReader::new(input);
    let (mut found, mut line) = (Headers::default(), Vec::new());
    let (mut begin, mut fresh) = (0, true);
    loop {
        line.clear();
        let bytes = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        if bytes == 0 {
            return Ok(found);
        }
        if fresh && begins_session(&line) {
            if found.at.len() == SESSIONS_MAX {
                let reason = format!("it has more than {SESSIONS_MAX} sessions");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            found.at.push(begin..begin + bytes);
            found.last.clone_from(&line);
        }
        // What is longer comes in pieces, and only the first begins a line.
        fresh = line.ends_with(b"\n");
        begin += bytes;
    }
}

/// The rows between headers, up to the end of a file of `bytes`.
pub(crate) fn rows(headers: &[Range<u64>], bytes: u64) -> Vec<Range<u64>> {
    let ends = headers.iter().skip(1).map(|next| next.start).chain([bytes]);
    let between = headers.iter().zip(ends).map(|(header, end)| header.end..end);
    between.filter(|rows| !rows.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_header_begins_a_session() {
        let text =
            " Date , GPU Load [%] ,\n1,2,\n\n  Date , Fan [RPM] ,\r\n3,4,\n5,6,\nDate,x [V]\n";
        let found = headers(text.as_bytes()).unwrap();
        assert_eq!(found.at, [0..23, 29..51, 61..72]);
        assert_eq!(found.last, b"Date,x [V]\n");
        assert_eq!(rows(&found.at, text.len() as u64), [23..29, 51..61]);
        assert_eq!(headers(&b""[..]).unwrap(), Headers::default());
    }
}
