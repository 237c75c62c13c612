//! The GPUs of a dictionary, text by text: what all share stands once.

use super::bytes::{Reader, put_bytes, put_varint};
use super::{BlockError, EncodeError};
use crate::limits::{
    DICTIONARY_TEXT_BYTES_MAX, GPU_TEXT_BYTES_MAX, ID_BYTES_MAX, SECTION_GPUS_MAX,
};
use crate::model::{Gpu, GpuId};

const ALL: u8 = 0;
const SAME: u8 = 1;
const UUIDS: u8 = 2;
const BEHIND_UUID: u8 = 3;
const COUNTED: u8 = 4;

/// How much text a dictionary unfolds to, on the way in and on the way out alike.
#[derive(Default)]
pub(super) struct TextBudget(usize);

impl TextBudget {
    pub(super) fn add(&mut self, text: &str) {
        // Behind a text stand its counts or its capacity: many empty ones are large, too.
        self.0 += text.len() + 16;
    }

    pub(super) fn check_written(&self) -> Result<(), EncodeError> {
        let (what, value, max) =
            ("bytes of text of a dictionary", self.0, DICTIONARY_TEXT_BYTES_MAX);
        if value > max { Err(EncodeError::TooMany { what, value, max }) } else { Ok(()) }
    }

    pub(super) fn check_read(&self) -> Result<(), BlockError> {
        let (value, max) = (self.0 as u64, DICTIONARY_TEXT_BYTES_MAX as u64);
        let what = "bytes of text of a dictionary";
        if value > max { Err(BlockError::TooLarge { what, value, max }) } else { Ok(()) }
    }
}

/// Appends count and texts.
pub(super) fn encode_gpus(
    gpus: &[&Gpu],
    budget: &mut TextBudget,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    put_varint(out, gpus.len() as u64);
    if gpus.is_empty() {
        return Ok(());
    }
    let uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    type Field = (&'static str, fn(&Gpu) -> &str);
    let fields: [Field; 6] = [
        ("id", |gpu| gpu.id.as_str()),
        ("index", |gpu| &gpu.index),
        ("device", |gpu| &gpu.device),
        ("model", |gpu| &gpu.model),
        ("driver", |gpu| &gpu.driver),
        ("MIG profile", |gpu| &gpu.mig_profile),
    ];
    check("UUID", &uuids, budget)?;
    encode_texts(&uuids, None, out);
    for (field, text) in fields {
        let texts: Vec<&str> = gpus.iter().map(|gpu| text(gpu)).collect();
        check(field, &texts, budget)?;
        encode_texts(&texts, Some(&uuids), out);
    }
    Ok(())
}

fn check(field: &'static str, texts: &[&str], budget: &mut TextBudget) -> Result<(), EncodeError> {
    texts.iter().for_each(|text| budget.add(text));
    match texts.iter().find(|text| text.len() > GPU_TEXT_BYTES_MAX) {
        Some(text) => Err(EncodeError::Text { field, bytes: text.len() }),
        None => Ok(()),
    }
}

fn encode_texts(texts: &[&str], uuids: Option<&[&str]>, out: &mut Vec<u8>) {
    if let Some((first, rest)) = texts.split_first()
        && rest.iter().all(|text| text == first)
        && parse_uuid(first).is_none()
    {
        out.push(SAME);
        put_bytes(out, first.as_bytes());
    } else if let Some((prefix, first)) = counted(texts) {
        out.push(COUNTED);
        put_bytes(out, prefix.as_bytes());
        put_varint(out, first);
    } else if let Some(suffixes) = uuids.and_then(|uuids| behind(texts, uuids)) {
        out.push(BEHIND_UUID);
        suffixes.iter().for_each(|suffix| put_bytes(out, suffix.as_bytes()));
    } else if let Some(uuids) =
        texts.iter().map(|text| parse_uuid(text)).collect::<Option<Vec<_>>>()
    {
        out.push(UUIDS);
        uuids.iter().for_each(|uuid| out.extend_from_slice(uuid));
    } else {
        out.push(ALL);
        texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
    }
}

fn behind<'a>(texts: &[&'a str], uuids: &[&str]) -> Option<Vec<&'a str>> {
    if uuids.iter().all(|uuid| uuid.is_empty()) {
        return None;
    }
    texts.iter().zip(uuids).map(|(text, uuid)| text.strip_prefix(uuid)).collect()
}

/// Prefix and first number, if the texts are `prefix` followed by consecutive numbers.
fn counted<'a>(texts: &[&'a str]) -> Option<(&'a str, u64)> {
    let first = texts.first()?;
    let digits = first.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (prefix, number) = first.split_at(first.len() - digits);
    let start: u64 = number.parse().ok()?;
    let agrees = |(n, text): (u64, &&str)| {
        start.checked_add(n).is_some_and(|n| text.strip_prefix(prefix) == Some(&n.to_string()))
    };
    (0..).zip(texts).all(agrees).then_some((prefix, start))
}

/// The 16 bytes of `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, exactly as [`print_uuid`] prints.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let hex: Vec<u8> = text.strip_prefix("GPU-")?.bytes().filter(|b| *b != b'-').collect();
    if hex.len() != 32 || text.len() != 40 {
        return None;
    }
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    // Upper case, or dashes elsewhere.
    (print_uuid(uuid) == text).then_some(uuid)
}

fn print_uuid(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(40);
    text.push_str("GPU-");
    for (position, byte) in uuid.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    text
}

/// Reads what [`encode_gpus`] wrote.
pub(super) fn decode_gpus(
    reader: &mut Reader<'_>,
    budget: &mut TextBudget,
) -> Result<Vec<Gpu>, BlockError> {
    let n = reader.count("GPUs of a section", SECTION_GPUS_MAX)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let uuids = decode_texts(reader, n, None, budget)?;
    let mut field = || decode_texts(reader, n, Some(&uuids), budget).map(Vec::into_iter);
    let (mut ids, mut indices, mut devices) = (field()?, field()?, field()?);
    let (mut models, mut drivers, mut profiles) = (field()?, field()?, field()?);
    let mut gpus = Vec::with_capacity(n);
    for uuid in &uuids {
        let next = |texts: &mut std::vec::IntoIter<String>| texts.next().unwrap_or_default();
        gpus.push(Gpu {
            id: GpuId::new(&next(&mut ids))?,
            uuid: uuid.clone(),
            index: next(&mut indices),
            device: next(&mut devices),
            model: next(&mut models),
            driver: next(&mut drivers),
            mig_profile: next(&mut profiles),
        });
    }
    Ok(gpus)
}

fn decode_texts(
    reader: &mut Reader<'_>,
    n: usize,
    uuids: Option<&[String]>,
    budget: &mut TextBudget,
) -> Result<Vec<String>, BlockError> {
    // Any text may be as long as an id behind a UUID.
    const MAX: usize = GPU_TEXT_BYTES_MAX + ID_BYTES_MAX;
    let text = |reader: &mut Reader<'_>| reader.text("text of a GPU", MAX).map(str::to_owned);
    let texts: Vec<String> = match (reader.byte("texts of GPUs")?, uuids) {
        (ALL, _) => (0..n).map(|_| text(reader)).collect::<Result<_, _>>()?,
        (SAME, _) => vec![text(reader)?; n],
        (UUIDS, _) => {
            let packed = reader.take(16 * n, "UUIDs of GPUs")?;
            let uuids = packed.chunks_exact(16).filter_map(|bytes| bytes.try_into().ok());
            uuids.map(print_uuid).collect()
        }
        (BEHIND_UUID, Some(uuids)) => {
            let behind = |uuid: &String| Ok(uuid.clone() + &text(reader)?);
            uuids.iter().map(behind).collect::<Result<_, BlockError>>()?
        }
        (COUNTED, _) => {
            let prefix = text(reader)?;
            let first = reader.varint("texts of GPUs")?;
            (0..n as u64).map(|n| format!("{prefix}{}", first.wrapping_add(n))).collect()
        }
        _ => return Err(BlockError::Corrupt("texts of GPUs of an unknown kind")),
    };
    texts.iter().for_each(|text| budget.add(text));
    budget.check_read()?;
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_packed_only_if_it_comes_back_letter_by_letter() {
        let check = |text: &str, packed: bool| {
            assert_eq!(parse_uuid(text).map(print_uuid), packed.then(|| text.to_owned()));
        };
        check("GPU-01234567-89ab-cdef-0123-456789abcdef", true);
        check("GPU-01234567-89ab-cdef-0123-456789abcdeF", false);
        check("GPU-0123456-789ab-cdef-0123-456789abcdef", false);
        check("GPU-0123456789abcdef0123456789abcdef----", false);
        check("MIG-01234567-89ab-cdef-0123-456789abcdef", false);
        check("GPU-01234567-89ab-cdef-0123-456789abcdé", false);
        check("", false);
    }

    #[test]
    fn texts_of_every_shape_come_back() {
        let check = |texts: &[&str], uuids: Option<&[&str]>, kind: u8| {
            let mut out = Vec::new();
            encode_texts(texts, uuids, &mut out);
            assert_eq!(out[0], kind, "{texts:?}");
            let owned = uuids.map(|u| u.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>());
            let mut reader = Reader::new(&out);
            let mut budget = TextBudget::default();
            let back = decode_texts(&mut reader, texts.len(), owned.as_deref(), &mut budget);
            assert_eq!(back.unwrap(), texts);
            assert_eq!(reader.finish(), Ok(()));
        };
        let uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef";
        check(&["H100", "H100"], None, SAME);
        check(&["", ""], Some(&[uuid, uuid]), SAME);
        check(&[uuid, uuid], None, UUIDS);
        check(&[uuid], None, UUIDS);
        check(&[uuid], Some(&[uuid]), BEHIND_UUID);
        check(&["a:1", "b"], Some(&["a", "b"]), BEHIND_UUID);
        check(&["nvidia9", "nvidia10"], None, COUNTED);
        check(&["9", "10", "11"], None, COUNTED);
        check(&["09", "10"], None, ALL);
        check(&["0", "2"], None, ALL);
        check(&["18446744073709551615", "0"], None, ALL);
        check(&["é", "x", ""], None, ALL);
    }
}
