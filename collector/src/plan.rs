//! What one commit takes and makes of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use nexus_common::{
    block::{Block, BlockError, EncodeError, Section, merge},
    limits::{BLOCK_BYTES_MAX, COMMIT_BLOCKS_MAX, COMMIT_LANES_MAX, TXN_BYTES_MAX},
    model::{ClusterId, HostName, Lane},
    queue::{Intake, Received},
    store::{Description, NewBlock},
};

/// Sections below this many samples are put together when they meet: their dictionaries cost
/// more than their values. Larger ones are moved as they are.
const SMALL_SECTION_SAMPLES: u64 = 4096;
/// Bytes of messages in one commit: with what they become, and keys, below a transaction.
const INTAKE_BYTES_MAX: usize = TXN_BYTES_MAX - 256 * 1024;
/// Blocks are kept well below the largest, so that merging has room.
const BLOCK_BYTES: usize = BLOCK_BYTES_MAX / 2;

/// A message that was read but for its columns.
pub(crate) struct Opened {
    pub(crate) message: Received,
    pub(crate) block: Result<Block, String>,
    /// What it tells of hosts that is not known yet.
    pub(crate) news: Vec<Description>,
}

/// What a commit will do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) intake: Intake,
    pub(crate) blocks: Vec<NewBlock>,
}

/// Reads a message but for its columns. One that is not what its key promises is dead: it would
/// break the count for ever. Dictionaries that `is_known` are not read again.
pub(crate) fn open(message: Received, is_known: impl Fn(&ClusterId, &Section) -> bool) -> Opened {
    let (block, news) = match read(&message, is_known) {
        Ok((block, news)) => (Ok(block), news),
        Err(reason) => (Err(reason), Vec::new()),
    };
    Opened { message, block, news }
}

fn read(
    message: &Received,
    is_known: impl Fn(&ClusterId, &Section) -> bool,
) -> Result<(Block, Vec<Description>), String> {
    let block = Block::decode(message.bytes.clone()).map_err(|e| e.to_string())?;
    let (held, promised) = (block.samples(), message.samples);
    if held != promised {
        return Err(format!("the key promises {promised} samples, the block holds {held}"));
    }
    let unknown = block.sections.iter().filter(|section| !is_known(&block.cluster, section));
    let news = unknown.map(|section| Description::of(&block.cluster, section));
    let news = news.collect::<Result<_, BlockError>>().map_err(|e| e.to_string())?;
    Ok((block, news))
}

/// How many of `opened`, in order, fit in one commit: at least one.
pub(crate) fn fitting(opened: &[Opened], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let mut hosts: BTreeSet<(ClusterId, HostName)> = BTreeSet::new();
    let mut lanes: BTreeSet<&Lane> = BTreeSet::new();
    let mut dead = 0;
    for (index, Opened { message, block, .. }) in opened.iter().enumerate() {
        bytes += message.bytes.len();
        lanes.insert(&message.lane);
        match block {
            Ok(block) => {
                let host = |s: &Section| (block.cluster.clone(), s.host().clone());
                hosts.extend(block.sections.iter().map(host));
            }
            Err(_) => dead += 1,
        }
        // A host may need a second block when its first is full.
        let blocks = hosts.len() + bytes / BLOCK_BYTES + dead;
        let over = bytes > bytes_max.min(INTAKE_BYTES_MAX)
            || blocks > COMMIT_BLOCKS_MAX
            || lanes.len() > COMMIT_LANES_MAX;
        if over && index > 0 {
            return index;
        }
    }
    opened.len()
}

/// A plan that would not keep every sample, which no commit may carry out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// A block could not be made.
    #[error("make a block of {host}")]
    Encode {
        host: HostName,
        #[source]
        source: EncodeError,
    },
    /// The sums differ.
    #[error("the messages hold {taken} samples, the blocks and dead letters {made}")]
    Unequal { taken: u64, made: u64 },
}

/// Makes per-host blocks of messages, and makes sure that no sample is left out.
pub(crate) fn plan(opened: Vec<Opened>) -> Result<Plan, PlanError> {
    let mut plan = Plan::default();
    let mut hosts: BTreeMap<(ClusterId, HostName), Vec<Section>> = BTreeMap::new();
    let mut dead_samples = 0;
    for (index, Opened { message, block, .. }) in opened.into_iter().enumerate() {
        match block {
            Ok(block) => {
                for section in block.sections {
                    let host = (block.cluster.clone(), section.host().clone());
                    hosts.entry(host).or_default().push(section);
                }
            }
            Err(reason) => {
                dead_samples += message.samples;
                plan.intake.dead.push((index, reason));
            }
        }
        plan.intake.messages.push(message);
    }
    for ((cluster, host), sections) in hosts {
        plan.blocks.extend(pack(&cluster, &host, together(sections))?);
    }
    let taken = plan.intake.messages.iter().map(|m| m.samples).sum();
    let made = plan.blocks.iter().map(|b| b.samples).sum::<u64>() + dead_samples;
    if taken == made { Ok(plan) } else { Err(PlanError::Unequal { taken, made }) }
}

/// Puts small sections of one host together into one; what cannot be put together stays as it
/// is, so that nothing is lost to an attempt to save space.
fn together(sections: Vec<Section>) -> Vec<Section> {
    let (small, mut kept): (Vec<Section>, Vec<Section>) =
        sections.into_iter().partition(|s| s.samples() < SMALL_SECTION_SAMPLES);
    match merged(&small) {
        Some(section) if small.len() > 1 => kept.push(section),
        _ => kept.extend(small),
    }
    kept
}

/// One section with all samples of `sections`, if that can be had and is not too large.
pub(crate) fn merged(sections: &[Section]) -> Option<Section> {
    let parts: Result<Vec<_>, BlockError> = sections.iter().map(Section::decode).collect();
    let encoded = match parts {
        Ok(parts) => Section::encode(&merge(parts)?),
        Err(error) => {
            tracing::warn!(%error, "a section that was checked cannot be decoded; it stays as it is");
            return None;
        }
    };
    let whole: u64 = sections.iter().map(Section::samples).sum();
    encoded.ok().filter(|s| s.samples() == whole && s.byte_len() <= BLOCK_BYTES)
}

/// Blocks of one host, each well below the largest size.
pub(crate) fn pack(
    cluster: &ClusterId,
    host: &HostName,
    sections: Vec<Section>,
) -> Result<Vec<NewBlock>, PlanError> {
    let mut blocks: Vec<Vec<Section>> = Vec::new();
    let mut room = 0;
    for section in sections {
        match blocks.last_mut() {
            Some(open) if section.byte_len() <= room => {
                room -= section.byte_len();
                open.push(section);
            }
            _ => {
                room = BLOCK_BYTES.saturating_sub(section.byte_len());
                blocks.push(vec![section]);
            }
        }
    }
    let encode = |sections| {
        new_block(cluster, host, sections)
            .map_err(|source| PlanError::Encode { host: host.clone(), source })
    };
    blocks.into_iter().map(encode).collect()
}

fn new_block(
    cluster: &ClusterId,
    host: &HostName,
    sections: Vec<Section>,
) -> Result<NewBlock, EncodeError> {
    let start = sections.iter().map(Section::start).min().unwrap_or_default();
    let end = sections.iter().map(Section::end).max().unwrap_or_default();
    let block = Block { cluster: cluster.clone(), sections };
    Ok(NewBlock {
        cluster: cluster.clone(),
        host: host.clone(),
        start,
        end,
        samples: block.samples(),
        bytes: block.encode()?,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use nexus_common::{
        limits::MESSAGE_HOSTS_MAX,
        model::{HostSamples, Labels, SeriesSamples, ShardId},
    };
    use proptest::prelude::*;

    use super::*;

    fn section(host: &str, from: i64, samples: usize) -> Section {
        let series = SeriesSamples {
            gpu: None,
            metric: "load".parse().unwrap(),
            labels: Labels::default(),
            timestamps: (from..from + samples as i64).collect(),
            values: (0..samples).map(|i| i as f64).collect(),
        };
        let host = HostSamples { host: host.parse().unwrap(), gpus: vec![], series: vec![series] };
        Section::encode(&host).unwrap()
    }

    fn message(lane: u32, seq: u64, sections: Vec<Section>) -> Received {
        let block = Block { cluster: "c".parse().unwrap(), sections };
        let lane = Lane { source: "s".parse().unwrap(), shard: ShardId(lane) };
        Received { lane, seq, samples: block.samples(), bytes: block.encode().unwrap() }
    }

    fn planned(messages: Vec<Received>) -> Plan {
        plan(messages.into_iter().map(|message| open(message, |_, _| false)).collect()).unwrap()
    }

    #[test]
    fn small_sections_of_a_host_become_one_and_large_ones_are_moved_as_they_are() {
        let large = section("a", 1000, SMALL_SECTION_SAMPLES as usize);
        let plan = planned(vec![
            message(0, 0, vec![section("a", 0, 10), section("b", 0, 5)]),
            message(0, 1, vec![section("a", 10, 10), large.clone()]),
        ]);
        let made: Vec<_> = plan.blocks.iter().map(|b| (b.host.as_str(), b.samples)).collect();
        assert_eq!(made, [("a", 20 + SMALL_SECTION_SAMPLES), ("b", 5)]);
        let block = Block::decode(plan.blocks[0].bytes.clone()).unwrap();
        let sizes: Vec<_> = block.sections.iter().map(Section::samples).collect();
        assert_eq!(sizes, [SMALL_SECTION_SAMPLES, 20]);
        assert_eq!(block.sections[0].byte_len(), large.byte_len());
        assert_eq!((plan.blocks[0].start.as_millis(), plan.blocks[0].end.as_millis()), (0, 5095));
    }

    #[test]
    fn what_is_not_what_its_key_promises_is_dead_and_counted() {
        let good = message(0, 0, vec![section("a", 0, 10)]);
        let garbage = Received { bytes: Bytes::from_static(b"garbage"), ..good.clone() };
        let lying = Received { samples: 11, ..good.clone() };
        let plan = planned(vec![good, garbage, lying]);
        let dead: Vec<_> =
            plan.intake.dead.iter().map(|(i, reason)| (*i, reason.as_str())).collect();
        assert_eq!(dead.len(), 2);
        assert_eq!(dead[1], (2, "the key promises 11 samples, the block holds 10"));
        assert_eq!(plan.blocks.len(), 1);
    }

    #[test]
    fn a_commit_takes_what_fits_and_at_least_one_message() {
        let hosts = |from: usize, count: usize| {
            (from..from + count).map(|i| section(&format!("h{i}"), 0, 1)).collect::<Vec<_>>()
        };
        let check = |messages: Vec<Received>, bytes_max: usize, expected: usize| {
            let opened: Vec<Opened> =
                messages.into_iter().map(|message| open(message, |_, _| false)).collect();
            assert_eq!(fitting(&opened, bytes_max), expected);
        };
        let wide = message(0, 0, hosts(0, MESSAGE_HOSTS_MAX));
        check(vec![wide.clone()], usize::MAX, 1);
        check(vec![wide.clone(), message(0, 1, hosts(0, 96))], usize::MAX, 2);
        check(vec![wide.clone(), message(0, 1, hosts(96, 1))], usize::MAX, 1);
        check(vec![wide.clone(), wide.clone()], 1, 1);
        let lanes = (0..20).map(|lane| message(lane, 0, hosts(0, 1))).collect();
        check(lanes, usize::MAX, COMMIT_LANES_MAX);
    }

    proptest! {
        #[test]
        fn no_sample_is_left_out(
            shape in prop::collection::vec(prop::collection::vec((0u8..4, 1usize..6000), 1..5), 1..6),
        ) {
            let messages: Vec<_> = (0..)
                .zip(shape)
                .map(|(seq, sections)| {
                    let sections = sections.into_iter().map(|(h, n)| section(&format!("h{h}"), 0, n));
                    message(0, seq, sections.collect())
                })
                .collect();
            let whole: u64 = messages.iter().map(|m| m.samples).sum();
            let plan = planned(messages);
            let stored = plan.blocks.iter().map(|b| Block::decode(b.bytes.clone()).unwrap().samples());
            prop_assert_eq!(stored.sum::<u64>(), whole);
        }
    }
}
