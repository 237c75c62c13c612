//! A line that was read, as a pattern for those that say the same of another time and value.

use nexus_common::sources::header::Layout;

use super::records::Record;

/// The bytes of one line between the fields that change. Whoever starts where the line started
/// (in the same state of the CSV grammar) and has the same bytes there, has the same fields: what
/// stands in for the changing ones holds neither quote, separator nor line end, so the grammar
/// goes through the same states.
#[derive(Debug)]
pub(super) struct Template {
    line: Box<[u8]>,
    /// The changing fields: column, and where in the line they lie.
    gaps: Box<[(usize, u32, u32)]>,
}

/// Whether a byte may mean something to the CSV grammar.
fn is_special(byte: u8) -> bool {
    matches!(byte, b'"' | b',' | b'\n' | b'\r')
}

impl Template {
    /// Of a line as it stands in the file, from which `record` was read. None where its fields
    /// are spelled in a way that needs the whole grammar.
    pub(super) fn of(line: &[u8], record: &Record, layout: &Layout) -> Option<Self> {
        let last = *line.last()?;
        if last != b'\n' && last != b'\r' {
            return None; // the end of the input ended it
        }
        let mut gaps = Vec::new();
        // Line ends of earlier, blank lines belong to it.
        let mut at = line.iter().position(|byte| !matches!(byte, b'\n' | b'\r'))?;
        for column in 0..record.len() {
            let field = record.get(column)?;
            let quoted = line.get(at) == Some(&b'"');
            at += usize::from(quoted);
            let begin = at;
            let changes = layout.changes(column);
            if changes {
                if field.iter().copied().any(is_special) || !line.get(at..)?.starts_with(field) {
                    return None;
                }
                gaps.push((
                    column,
                    u32::try_from(begin).ok()?,
                    u32::try_from(begin + field.len()).ok()?,
                ));
            }
            at = skip_field(line, at, field, quoted)?;
            let separator = *line.get(at)?;
            let is_end = column + 1 == record.len();
            if (separator == b',') == is_end || (is_end && at + 1 != line.len()) {
                return None;
            }
            at += 1;
        }
        Some(Self { line: line.into(), gaps: gaps.into() })
    }

    /// How many bytes `ahead` begins with that are this line with other values; hands over the
    /// text of each changing column. None where it is not this line.
    pub(super) fn matches<'a>(
        &self,
        ahead: &'a [u8],
        mut field: impl FnMut(usize, &'a [u8]),
    ) -> Option<usize> {
        let (mut at, mut known) = (0, 0);
        for &(column, begin, end) in &self.gaps {
            let fixed = self.line.get(known..begin as usize)?;
            let rest = ahead.get(at..)?.strip_prefix(fixed)?;
            at += fixed.len();
            let length = rest.iter().position(|byte| is_special(*byte))?;
            field(column, rest.get(..length)?);
            at += length;
            known = end as usize;
        }
        let fixed = self.line.get(known..)?;
        ahead.get(at..)?.starts_with(fixed).then_some(at + fixed.len())
    }

    /// The last byte of the line: in which state of the grammar it leaves a reader.
    pub(super) fn last(&self) -> u8 {
        self.line.last().copied().unwrap_or_default()
    }

    /// Memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.line.len() + size_of_val(&*self.gaps)
    }
}

/// Where the field that begins at `at` ends, behind its closing quote; it must spell `field`.
fn skip_field(line: &[u8], mut at: usize, field: &[u8], quoted: bool) -> Option<usize> {
    for &byte in field {
        if *line.get(at)? != byte {
            return None;
        }
        at += 1;
        if quoted && byte == b'"' {
            // Doubled in the line.
            if *line.get(at)? != b'"' {
                return None;
            }
            at += 1;
        }
    }
    if quoted {
        if *line.get(at)? != b'"' {
            return None;
        }
        at += 1;
    }
    Some(at)
}
