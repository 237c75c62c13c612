//! Every bound of the system in one place, each with its reason.
//!
//! A bound that depends on another is checked against it at compile time (see the bottom).

/// Longest identifier (cluster, host, GPU, source, instance), in bytes: ids become key segments.
pub const ID_BYTES_MAX: usize = 128;
/// Longest metric or label name, in bytes: longer ones are attacks or mistakes.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest label value, in bytes: labels go to logs, answers and dictionaries.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Most extra labels a series may carry.
pub const LABELS_MAX: usize = 32;

/// etcd's default `--max-txn-ops`, counted for compares and for operations separately.
pub const TXN_OPS_MAX: usize = 128;
/// Largest transaction we send, in bytes: etcd's default request limit is 1.5 MiB, less framing.
pub const TXN_BYTES_MAX: usize = 1_280 * 1024;

/// Most hosts in one message, so that committing one message (a block a host, a delete, a
/// cursor, a summary) always fits in one transaction.
pub const MESSAGE_HOSTS_MAX: usize = 96;
/// Most samples in one message: bounds the memory of whoever decodes it (16 bytes a sample).
pub const MESSAGE_SAMPLES_MAX: usize = 1 << 18;
/// Most messages in one enqueue transaction: a put each, plus the progress.
pub const ENQUEUE_MESSAGES_MAX: usize = 100;
/// Size to aim at for one message: above it etcd's raft log and backend fragment (values above
/// 128 KiB cost more memory than they save puts).
pub const MESSAGE_BYTES_TARGET: usize = 96 * 1024;
/// Largest block, in bytes, that is written or accepted.
pub const BLOCK_BYTES_MAX: usize = 512 * 1024;
/// Most samples one host's section may hold.
pub const SECTION_SAMPLES_MAX: usize = 1 << 20;
/// Most series one host's section may hold.
pub const SECTION_SERIES_MAX: usize = 1 << 16;
/// Most GPUs (or MIG instances) one host's section may name.
pub const SECTION_GPUS_MAX: usize = 1 << 12;
/// Longest text that describes a GPU (model, driver, ...), in bytes: DCGM's own are below 100.
pub const GPU_TEXT_BYTES_MAX: usize = 256;
/// Largest dictionary of a section before compression, in bytes: what a decompressor may be made
/// to allocate. Text that repeats stands once, so [`SECTION_SERIES_MAX`] label sets fit.
pub const DICTIONARY_BYTES_MAX: usize = 4 << 20;
/// Most bytes of text a dictionary may unfold to, 16 more for each text: a label or a model is
/// written once and may be named by every series or GPU, so the size before unfolding does not
/// bound the one after. Enough for [`SECTION_SERIES_MAX`] sets of eight usual labels.
pub const DICTIONARY_TEXT_BYTES_MAX: usize = 32 << 20;

/// Most block puts in one commit: with the lanes below it stays within a transaction.
pub const COMMIT_BLOCKS_MAX: usize = 96;
/// Most lanes one commit may move: a compare, a delete and a cursor each.
pub const COMMIT_LANES_MAX: usize = 12;

/// Partitions of a new keyspace: enough for 64 collectors, few enough to list at once.
pub const PARTITIONS_DEFAULT: u16 = 64;
/// Most partitions a keyspace may be created with.
pub const PARTITIONS_MAX: u16 = 1024;

/// Shortest lease, in seconds: etcd raises anything below 2 s by itself.
pub const LEASE_TTL_SECONDS_MIN: i64 = 3;
/// Longest lease, in seconds: longer only delays takeover.
pub const LEASE_TTL_SECONDS_MAX: i64 = 300;

const _: () = {
    assert!(COMMIT_BLOCKS_MAX + 2 * COMMIT_LANES_MAX + 2 <= TXN_OPS_MAX);
    assert!(MESSAGE_HOSTS_MAX <= COMMIT_BLOCKS_MAX);
    assert!(ENQUEUE_MESSAGES_MAX + 2 <= TXN_OPS_MAX);
    assert!(MESSAGE_BYTES_TARGET <= BLOCK_BYTES_MAX && 2 * BLOCK_BYTES_MAX <= TXN_BYTES_MAX);
    assert!(MESSAGE_SAMPLES_MAX <= SECTION_SAMPLES_MAX);
};
