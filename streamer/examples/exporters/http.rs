//! As much of HTTP/1.1 as a scraper needs: questions without a body, one after the other.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

/// Longest head of a question, in bytes.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// A question.
#[allow(dead_code, reason = "one that includes this looks at the path, another at the headers")]
pub(crate) struct Asked {
    /// What is asked for.
    pub(crate) path: String,
    /// The header lines, in lower case.
    pub(crate) headers: Vec<String>,
}

/// An answer: what stands behind `HTTP/1.1 `, further header lines, the body.
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) headers: &'static [&'static str],
    pub(crate) body: Vec<u8>,
}

/// Answers one connection's questions until it ends.
pub(crate) fn serve(stream: TcpStream, answer: impl Fn(&Asked) -> Answer) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = stream.by_ref().take(HEAD_BYTES_MAX).lines();
        let Some(first) = lines.next() else { return Ok(()) };
        let path = first?.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let Some(line) = lines.next() else { return Ok(()) };
            match line? {
                line if line.is_empty() => break,
                line => headers.push(line.to_ascii_lowercase()),
            }
        }
        let Answer { status, headers, body } = answer(&Asked { path, headers });
        let mut whole = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
        for header in headers {
            whole.push_str(header);
            whole.push_str("\r\n");
        }
        let mut whole = whole.into_bytes();
        whole.extend_from_slice(b"\r\n");
        whole.extend(body);
        out.write_all(&whole)?;
    }
}
