//! Samples to messages: hosts are packed into blocks of a size that suits etcd.

use super::{Message, Producer};
use crate::{
    block::{Block, EncodeError, Section},
    limits::{
        BLOCK_BYTES_MAX, ENQUEUE_MESSAGES_MAX, MESSAGE_BYTES_TARGET, MESSAGE_HOSTS_MAX,
        MESSAGE_SAMPLES_MAX,
    },
    model::{ClusterId, HostSamples},
};

/// Room left in a block for its header.
const HEADER_BYTES: usize = 16 * 1024;

/// Whether messages fit in one transaction.
pub fn fits(messages: &[Message]) -> bool {
    let bytes: usize = messages.iter().map(|m| m.bytes.len()).sum();
    messages.len() <= ENQUEUE_MESSAGES_MAX && bytes <= Producer::room()
}

/// Encodes hosts into as few messages as keep below the size to aim at.
///
/// # Errors
/// When what a host tells cannot be encoded.
pub fn messages(cluster: &ClusterId, hosts: Vec<HostSamples>) -> Result<Vec<Message>, EncodeError> {
    let mut sections = Vec::with_capacity(hosts.len());
    for host in hosts {
        encode(host, &mut sections)?;
    }
    pack(cluster, sections)
}

/// The messages of these hosts. One that no message can hold, whoever told it, must not keep the
/// others from being enqueued: its samples are refused, and how many these are is told.
///
/// # Errors
/// When not even the others can be packed.
pub fn messages_of_good(
    cluster: &ClusterId,
    hosts: Vec<HostSamples>,
) -> Result<(Vec<Message>, u64), EncodeError> {
    let (sections, refused) = sections_of_good(hosts);
    Ok((pack(cluster, sections)?, refused))
}

/// The sections of these hosts, and how many samples are refused because their host's cannot be
/// encoded.
pub fn sections_of_good(hosts: Vec<HostSamples>) -> (Vec<Section>, u64) {
    let (mut sections, mut refused) = (Vec::with_capacity(hosts.len()), 0);
    for host in hosts {
        let (name, samples, good) = (host.host.clone(), host.samples() as u64, sections.len());
        if let Err(error) = encode(host, &mut sections) {
            sections.truncate(good);
            if refused == 0 {
                tracing::warn!(host = %name, %error, "what a host tells cannot be stored");
            }
            refused += samples;
        }
    }
    (sections, refused)
}

/// Puts sections into as few messages as keep below the size to aim at.
///
/// # Errors
/// When one is larger than a block may be.
pub fn pack(cluster: &ClusterId, sections: Vec<Section>) -> Result<Vec<Message>, EncodeError> {
    let mut messages = Vec::new();
    let mut open: Vec<Section> = Vec::new();
    let (mut bytes, mut samples) = (0, 0);
    for section in sections {
        let full = open.len() >= MESSAGE_HOSTS_MAX
            || bytes + section.byte_len() > MESSAGE_BYTES_TARGET
            || samples + section.samples() > MESSAGE_SAMPLES_MAX as u64;
        if !open.is_empty() && full {
            messages.push(message(cluster, std::mem::take(&mut open))?);
            (bytes, samples) = (0, 0);
        }
        bytes += section.byte_len();
        samples += section.samples();
        open.push(section);
    }
    if !open.is_empty() {
        messages.push(message(cluster, open)?);
    }
    Ok(messages)
}

fn message(cluster: &ClusterId, sections: Vec<Section>) -> Result<Message, EncodeError> {
    let block = Block { cluster: cluster.clone(), sections };
    Ok(Message { samples: block.samples(), bytes: block.encode()? })
}

/// Encodes one host; in halves, where the whole would be larger than a block may be.
fn encode(host: HostSamples, into: &mut Vec<Section>) -> Result<(), EncodeError> {
    if host.samples() == 0 {
        return Ok(());
    }
    let section = Section::encode(&host)?;
    if section.byte_len() + HEADER_BYTES <= BLOCK_BYTES_MAX {
        into.push(section);
        return Ok(());
    }
    if host.samples() < 2 {
        let (what, value, max) = ("bytes of a sample", section.byte_len(), BLOCK_BYTES_MAX);
        return Err(EncodeError::TooMany { what, value, max });
    }
    let (left, right) = halves(host);
    encode(left, into)?;
    encode(right, into)
}

/// Splits by series, or the one series there is by time.
fn halves(mut host: HostSamples) -> (HostSamples, HostSamples) {
    let mut right = HostSamples { series: Vec::new(), ..host.clone() };
    if host.series.len() > 1 {
        right.series = host.series.split_off(host.series.len() / 2);
    } else if let Some(series) = host.series.first_mut() {
        let mut later = series.clone();
        let middle = series.values.len() / 2;
        later.values = series.values.split_off(middle);
        later.timestamps = series.timestamps.split_off(middle);
        right.series.push(later);
    }
    (host, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Labels, SeriesSamples};

    /// Values that nothing can compress.
    fn noise(samples: usize, series: usize) -> HostSamples {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f64::from_bits((state >> 12) | 0x3ff0_0000_0000_0000)
        };
        let series = (0..series).map(|i| SeriesSamples {
            gpu: None,
            metric: format!("noise_{i}").parse().unwrap(),
            labels: Labels::default(),
            timestamps: (0..samples as i64).collect(),
            values: (0..samples).map(|_| next()).collect(),
        });
        HostSamples { host: "h".parse().unwrap(), gpus: vec![], series: series.collect() }
    }

    #[test]
    fn what_cannot_be_compressed_is_cut_into_messages_that_fit() {
        let cluster = ClusterId::new("c").unwrap();
        for (samples, series) in [(150_000, 1), (30_000, 5)] {
            let made = messages(&cluster, vec![noise(samples, series)]).unwrap();
            assert!(made.iter().all(|m| m.bytes.len() <= BLOCK_BYTES_MAX));
            assert_eq!(made.iter().map(|m| m.samples).sum::<u64>(), (samples * series) as u64);
            let decoded = made.iter().map(|m| Block::decode(m.bytes.clone()).unwrap().samples());
            assert_eq!(decoded.sum::<u64>(), (samples * series) as u64);
        }
    }
}
