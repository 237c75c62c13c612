//! What one commit takes and makes of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use nexus_common::{
    block::{Block, BlockError, EncodeError, Section, merge},
    limits::{BLOCK_BYTES_MAX, COMMIT_BLOCKS_MAX, COMMIT_LANES_MAX, TXN_BYTES_MAX},
    model::{ClusterId, HostName, Lane},
    queue::{Intake, Received},
    store::NewBlock,
};

/// Sections below this many samples are put together when they meet: their dictionaries cost
/// more than their values. Larger ones are moved as they are.
const SMALL_SECTION_SAMPLES: u64 = 4096;
/// Bytes of messages in one commit: with what they become, and keys, below a transaction.
const INTAKE_BYTES_MAX: usize = TXN_BYTES_MAX - 256 * 1024;
/// Blocks are kept well below the largest, so that merging has room.
const BLOCK_BYTES: usize = BLOCK_BYTES_MAX / 2;

/// A message whose header was read.
pub(crate) struct Opened {
    pub(crate) message: Received,
    pub(crate) block: Result<Block, String>,
}

/// What a commit will do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) intake: Intake,
    pub(crate) blocks: Vec<NewBlock>,
}

/// Reads the header of a message. A message that is not what its key promises is dead: it would
/// break the count for ever.
pub(crate) fn open(message: Received) -> Opened {
    let block = Block::decode(message.bytes.clone())
        .map_err(|e| e.to_string())
        .and_then(|block| {
            let held = block.samples();
            let promised = message.samples;
            if held == promised {
                Ok(block)
            } else {
                Err(format!("the key promises {promised} samples, the block holds {held}"))
            }
        })
        .and_then(|block| {
            let readable = |s: &Section| s.dictionary().map(drop);
            block.sections.iter().try_for_each(readable).map_err(|e| e.to_string())?;
            Ok(block)
        });
    Opened { message, block }
}

/// How many of `opened`, in order, fit in one commit: at least one.
pub(crate) fn fitting(opened: &[Opened], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let mut hosts: BTreeSet<(ClusterId, HostName)> = BTreeSet::new();
    let mut lanes: BTreeSet<&Lane> = BTreeSet::new();
    let mut dead = 0;
    for (index, Opened { message, block }) in opened.iter().enumerate() {
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
    for (index, Opened { message, block }) in opened.into_iter().enumerate() {
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
