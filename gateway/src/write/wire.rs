//! The body of a remote write request, version 1.0: a `WriteRequest` of protobuf, packed with
//! snappy's block format. Pure.
//!
//! It is read where it lies: what is kept grows with what was sent and not with what it claims to
//! hold. The format is that of Prometheus' `remote.proto` and `types.proto`.

use std::{borrow::Cow, ops::Range};

use snap::raw;

use super::limits::{LABELS_MAX, PACKED_BYTES_MAX, SAMPLES_MAX, SERIES_MAX, UNPACKED_BYTES_MAX};

/// Why a body is no request that can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// Not snappy's block format.
    #[error("unpack the body: {0}; it must be packed with snappy's block format")]
    Snappy(String),
    /// Not a `WriteRequest`.
    #[error("read the body as a prometheus.WriteRequest: {what} at byte {at}")]
    Protobuf {
        /// What is wrong.
        what: &'static str,
        /// Where, in the unpacked body.
        at: usize,
    },
    /// More of something than is taken at once.
    #[error("{what}: {value}, at most {max} are taken in one request")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are, or would have to be looked at.
        value: usize,
        /// How many there may be.
        max: usize,
    },
}

fn at_most(what: &'static str, value: usize, max: usize) -> Result<(), WireError> {
    if value > max { Err(WireError::TooMany { what, value, max }) } else { Ok(()) }
}

/// Unpacks a body. What it says of its length is checked before anything is allocated.
///
/// # Errors
/// When it is not packed so, or is too large.
pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<u8>, WireError> {
    let bad = |error: snap::Error| WireError::Snappy(error.to_string());
    at_most("bytes of the packed body", packed.len(), PACKED_BYTES_MAX)?;
    let length = raw::decompress_len(packed).map_err(bad)?;
    at_most("bytes of the unpacked body", length, UNPACKED_BYTES_MAX)?;
    raw::Decoder::new().decompress_vec(packed).map_err(bad)
}

/// A request as it lies there.
#[derive(Debug, Default)]
pub(crate) struct Sent<'a> {
    /// Its time series.
    pub(crate) series: Vec<Series<'a>>,
    samples: Vec<(i64, f64)>,
}

impl Sent<'_> {
    /// Samples of one of its series: milliseconds since the epoch, and what was measured.
    pub(crate) fn samples(&self, series: &Series<'_>) -> &[(i64, f64)] {
        self.samples.get(series.samples.clone()).unwrap_or_default()
    }
}

/// One time series of a request.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    /// Its labels, field by field as they were sent: equal ones are of equal series.
    pub(crate) label_bytes: Cow<'a, [u8]>,
    /// Where they begin.
    at: usize,
    samples: Range<usize>,
    /// Native histograms, which are not read.
    pub(crate) histograms: usize,
}

impl Series<'_> {
    /// Names and values, in the order they were sent.
    ///
    /// # Errors
    /// When they are no labels, or too many.
    pub(crate) fn labels(&self) -> Result<Vec<(&str, &str)>, WireError> {
        let whole = self.at + self.label_bytes.len();
        let mut fields = Fields { rest: &self.label_bytes, whole };
        let mut labels = Vec::with_capacity(16);
        while let Some((_, value)) = fields.next()? {
            labels.push(read_label(fields.message(value)?)?);
            at_most("labels of a series", labels.len(), LABELS_MAX)?;
        }
        Ok(labels)
    }
}

/// Reads a request, but not what is in its labels.
///
/// # Errors
/// When it is no `WriteRequest`, or has too many of something.
pub(crate) fn read(body: &[u8]) -> Result<Sent<'_>, WireError> {
    let mut request = Fields { rest: body, whole: body.len() };
    let mut sent = Sent::default();
    let mut histograms = 0;
    while let Some((number, value)) = request.next()? {
        // 1 is a series; 3 is metadata, which is not kept.
        if number != 1 {
            continue;
        }
        at_most("series", sent.series.len() + 1, SERIES_MAX)?;
        let series = read_series(body, request.message(value)?, &mut sent.samples)?;
        histograms += series.histograms;
        at_most("samples", sent.samples.len() + histograms, SAMPLES_MAX)?;
        sent.series.push(series);
    }
    Ok(sent)
}

fn read_series<'a>(
    body: &'a [u8],
    mut fields: Fields<'a>,
    samples: &mut Vec<(i64, f64)>,
) -> Result<Series<'a>, WireError> {
    let at = fields.at();
    let (mut labels, mut apart) = (at..at, Vec::new());
    let (first, mut histograms) = (samples.len(), 0);
    loop {
        let begin = fields.at();
        let Some((number, value)) = fields.next()? else { break };
        match number {
            1 => {
                fields.message(value)?;
                let field = begin..fields.at();
                if labels.end == begin || labels.is_empty() {
                    labels = if labels.is_empty() { field } else { labels.start..field.end };
                } else {
                    // Nobody writes them so, but they may: other fields stand between.
                    apart.extend_from_slice(body.get(field).unwrap_or_default());
                }
            }
            2 => {
                samples.push(read_sample(fields.message(value)?)?);
                at_most("samples", samples.len() - first, SAMPLES_MAX)?;
            }
            // Exemplars say how a value came about: they are no samples.
            4 => histograms += 1,
            _ => {}
        }
    }
    let at = labels.start;
    let together = body.get(labels).unwrap_or_default();
    let label_bytes = match apart.is_empty() {
        true => Cow::Borrowed(together),
        false => Cow::Owned([together, &apart].concat()),
    };
    Ok(Series { label_bytes, at, samples: first..samples.len(), histograms })
}

fn read_label<'a>(mut fields: Fields<'a>) -> Result<(&'a str, &'a str), WireError> {
    let (mut name, mut text) = ("", "");
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = fields.text(value)?,
            2 => text = fields.text(value)?,
            _ => {}
        }
    }
    Ok((name, text))
}

fn read_sample(mut fields: Fields<'_>) -> Result<(i64, f64), WireError> {
    let (mut at, mut measured) = (0, 0.0);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Fixed64(bits)) => measured = f64::from_bits(bits),
            // Negative numbers are written as they stand in memory.
            (2, Value::Varint(bits)) => at = bits.cast_signed(),
            (1 | 2, _) => return Err(fields.bad("a sample of another type")),
            _ => {}
        }
    }
    Ok((at, measured))
}

/// A field as it stands there.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of a message, one after the other.
struct Fields<'a> {
    rest: &'a [u8],
    /// Bytes from here to the end of the message, and how many stand before it: places are told.
    whole: usize,
}

impl<'a> Fields<'a> {
    /// Where the next field begins.
    fn at(&self) -> usize {
        self.whole - self.rest.len()
    }

    fn bad(&self, what: &'static str) -> WireError {
        WireError::Protobuf { what, at: self.at() }
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Value::Fixed64(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
            }
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return Err(self.bad("a field of no known type")),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let split = self.rest.split_at_checked(length);
        let (taken, rest) =
            split.ok_or_else(|| self.bad("a field that ends behind its message"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0;
        // Ten groups of seven bits hold any number of 64.
        for (nth, byte) in self.rest.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * nth);
            if byte & 0x80 == 0 {
                self.rest = self.rest.split_at(nth + 1).1;
                return Ok(number);
            }
        }
        Err(self.bad("a number without an end"))
    }

    /// The fields of a message in a field that was just read.
    fn message(&self, value: Value<'a>) -> Result<Fields<'a>, WireError> {
        let Value::Bytes(bytes) = value else { return Err(self.bad("a message of another type")) };
        Ok(Fields { rest: bytes, whole: self.at() })
    }

    fn text(&self, value: Value<'a>) -> Result<&'a str, WireError> {
        let Value::Bytes(bytes) = value else { return Err(self.bad("a text of another type")) };
        std::str::from_utf8(bytes).map_err(|_| self.bad("a text that is not UTF-8"))
    }
}

/// The messages of the protocol, as another implementation writes them.
#[cfg(test)]
#[path = "../../tests/it/sent.rs"]
pub(super) mod sent;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::{
        sent::{TimeSeries, WriteRequest, series},
        *,
    };

    fn read_back(body: &[u8]) -> Result<Vec<TimeSeries>, WireError> {
        let sent = read(body)?;
        let found = sent.series.iter().map(|one| {
            let histograms = vec![Vec::new(); one.histograms];
            Ok(TimeSeries { histograms, ..series(&one.labels()?, sent.samples(one)) })
        });
        found.collect()
    }

    fn any_series() -> impl Strategy<Value = TimeSeries> {
        (
            proptest::collection::vec((".{0,8}", ".{0,8}"), 0..4),
            proptest::collection::vec((any::<i64>(), -1e9..1e9f64), 0..4),
            0usize..2,
        )
            .prop_map(|(labels, samples, histograms)| {
                let labels: Vec<_> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let histograms = vec![Vec::new(); histograms];
                TimeSeries { histograms, ..series(&labels, &samples) }
            })
    }

    proptest! {
        #[test]
        fn what_another_implementation_writes_is_read(
            timeseries in proptest::collection::vec(any_series(), 0..4),
        ) {
            let metadata = vec![b"\x08\x01".to_vec()];
            let mut sent = timeseries.clone();
            sent.iter_mut().for_each(|one| one.exemplars = vec![b"\x08\x01".to_vec()]);
            let body = WriteRequest { timeseries: sent, metadata }.encode_to_vec();
            let packed = raw::Encoder::new().compress_vec(&body).unwrap();
            prop_assert_eq!(unpack(&packed).unwrap(), &body[..]);
            prop_assert_eq!(read_back(&body).unwrap(), timeseries);
        }

        #[test]
        fn no_bytes_make_it_panic_and_what_both_read_is_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = unpack(&bytes);
            // Neither reads all that the other does: groups, fields of a type that is not theirs.
            if let (Ok(found), Ok(other)) = (read_back(&bytes), WriteRequest::decode(&*bytes)) {
                prop_assert_eq!(found.len(), other.timeseries.len());
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        let check = |body: &[u8], what: &'static str, at: usize| {
            assert_eq!(read_back(body), Err(WireError::Protobuf { what, at }), "{body:?}");
        };
        check(&[0x0a, 5, 0x0a], "a field that ends behind its message", 2);
        check(&[0x0a, 2, 0x12, 9], "a field that ends behind its message", 4);
        check(&[0x80; 11], "a number without an end", 0);
        check(&[0x0b], "a field of no known type", 1);
        check(&[0x08, 1], "a message of another type", 2);
        check(&[0x0a, 5, 0x0a, 3, 0x0a, 1, 0xff], "a text that is not UTF-8", 7);
        assert!(matches!(unpack(b"no"), Err(WireError::Snappy(_))));
    }

    #[test]
    fn every_bound_names_itself() {
        let check = |body: Vec<u8>, what: &'static str, max: usize| {
            let error = read_back(&body).unwrap_err();
            assert_eq!(error, WireError::TooMany { what, value: max + 1, max });
        };
        check([0x0a, 0].repeat(SERIES_MAX + 1), "series", SERIES_MAX);
        let many = |one: TimeSeries| WriteRequest { timeseries: vec![one], metadata: vec![] };
        let labels = vec![("a", "b"); LABELS_MAX + 1];
        check(many(series(&labels, &[])).encode_to_vec(), "labels of a series", LABELS_MAX);
        let samples = vec![(1, 1.0); SAMPLES_MAX + 1];
        check(many(series(&[], &samples)).encode_to_vec(), "samples", SAMPLES_MAX);
        // A few bytes that claim to be many: refused before anything is allocated.
        let bomb = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        let what = "bytes of the unpacked body";
        let (value, max) = (u32::MAX as usize, UNPACKED_BYTES_MAX);
        assert_eq!(unpack(&bomb), Err(WireError::TooMany { what, value, max }));
        assert!(matches!(unpack(&vec![0; PACKED_BYTES_MAX + 1]), Err(WireError::TooMany { .. })));
    }
}
