//! Why a block cannot be written or read.

use crate::limits::GPU_TEXT_BYTES_MAX;
use crate::model::{IdError, LabelsError, MetricName};

/// Why samples cannot become a section, or sections a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// There is no sample.
    #[error("section without a sample")]
    Empty,
    /// More of something than a bound of [`crate::limits`] allows.
    #[error("{what}: {value}, at most {max} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        value: usize,
        /// How many there may be.
        max: usize,
    },
    /// A series whose columns differ in length.
    #[error("series of {metric} has {timestamps} timestamps but {values} values")]
    Lengths {
        /// Metric of the series.
        metric: MetricName,
        /// Length of the one column.
        timestamps: usize,
        /// Length of the other.
        values: usize,
    },
    /// A series that refers to a GPU which is not there.
    #[error("series of {metric} refers to GPU {index} of {count}")]
    Gpu {
        /// Metric of the series.
        metric: MetricName,
        /// The position it names.
        index: u32,
        /// How many GPUs there are.
        count: usize,
    },
    /// A timestamp that RFC 3339 cannot write, in milliseconds since the epoch.
    #[error("timestamp of {0} ms is out of range")]
    Timestamp(i64),
    /// A description of a GPU that is too long.
    #[error("{field} of a GPU has {bytes} bytes, at most {GPU_TEXT_BYTES_MAX} are allowed")]
    Text {
        /// Which text.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The compressor refused.
    #[error("compressing a section: {0}")]
    Codec(String),
}

/// Why bytes are not a block, or not a section. No bytes, however hostile, cause anything else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Does not begin as a block does.
    #[error("not a block")]
    NotABlock,
    /// Written by a later Nexus (or never).
    #[error("block or section of unknown version {0}")]
    Version(u8),
    /// Ends too early.
    #[error("block ends within {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Bytes are not those that were written.
    #[error("checksum of the {what} is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// Header or section.
        what: &'static str,
        /// As written.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// More of something than a bound of [`crate::limits`] allows.
    #[error("{what}: {value}, at most {max} are allowed")]
    TooLarge {
        /// What is measured.
        what: &'static str,
        /// Its size.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// Checksums agree, contents do not: a writer at fault.
    #[error("corrupt block: {0}")]
    Corrupt(&'static str),
    /// A decompressor refused.
    #[error("decompressing a section: {0}")]
    Codec(String),
    /// An identity that is none.
    #[error("block with a bad identity")]
    Id(#[from] IdError),
    /// A label set that is none.
    #[error("block with a bad label set")]
    Labels(#[from] LabelsError),
}
