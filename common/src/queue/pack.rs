//! Samples to messages: hosts are packed into blocks of a size that suits etcd.

use super::{Message, Producer};
use crate::{
    block::{Block, EncodeError, Section},
    limits::{BLOCK_BYTES_MAX, ENQUEUE_MESSAGES_MAX, MESSAGE_BYTES_TARGET, MESSAGE_HOSTS_MAX},
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
    let mut messages = Vec::new();
    let mut open: Vec<Section> = Vec::new();
    let mut bytes = 0;
    for section in sections {
        let full =
            open.len() >= MESSAGE_HOSTS_MAX || bytes + section.byte_len() > MESSAGE_BYTES_TARGET;
        if !open.is_empty() && full {
            messages.push(message(cluster, std::mem::take(&mut open))?);
            bytes = 0;
        }
        bytes += section.byte_len();
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
    if section.byte_len() + HEADER_BYTES <= BLOCK_BYTES_MAX || host.samples() < 2 {
        into.push(section);
        return Ok(());
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

/// The messages of these hosts. One that no message can hold, whoever told it, must not keep the
/// others from being enqueued: its samples are refused, and how many these are is told.
///
/// # Errors
/// When not even the others can be encoded.
pub fn messages_of_good(
    cluster: &ClusterId,
    hosts: Vec<HostSamples>,
) -> Result<(Vec<Message>, u64), EncodeError> {
    if let Ok(all) = messages(cluster, hosts.clone()) {
        return Ok((all, 0));
    }
    let mut refused = 0;
    let (mut good, mut bad) = (Vec::new(), 0);
    for host in hosts {
        let samples = host.samples() as u64;
        match messages(cluster, vec![host.clone()]) {
            Ok(_) => good.push(host),
            Err(error) => {
                (refused, bad) = (refused + samples, bad + 1);
                if bad == 1 {
                    tracing::warn!(host = %host.host, %error, "what a host tells cannot be stored");
                }
            }
        }
    }
    Ok((messages(cluster, good)?, refused))
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
