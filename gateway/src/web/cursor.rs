//! Cursors as clients see them. What stands in one is ours to change, so nobody shall read it or
//! make one: base64url of the text that says where a list goes on.

use data_encoding::BASE64URL_NOPAD;

/// The cursor of a text.
pub fn cursor_of(text: &str) -> String {
    BASE64URL_NOPAD.encode(text.as_bytes())
}

/// The text of a cursor; none if it is no cursor of ours.
pub fn text_of_cursor(cursor: &str) -> Option<String> {
    let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_needs_no_escaping_and_gives_its_text_back() {
        for text in ["", "a", "c~h~GPU-1", "1752871354000~c~h~", "ä?&=/+"] {
            let cursor = cursor_of(text);
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            assert!(cursor.bytes().all(plain), "{cursor}");
            assert_eq!(text_of_cursor(&cursor).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_not_one_is_refused() {
        // Readable text, padding, bits left over, and what is not UTF-8.
        for bad in ["c~h~GPU-1", "YQ==", "YR", "a", "_w"] {
            assert_eq!(text_of_cursor(bad), None, "{bad}");
        }
    }
}
