//! DCGM telemetry in CSV: the long layout (a row a sample) and the wide one (a row a point).
//!
//! [`Layout`] says what the columns mean, [`ShardReader`] turns a byte range into [`Batch`]es.
//! Every record is either accepted or rejected with a [`RejectReason`]; none vanishes.

mod batch;
mod clock;
mod reader;
mod records;
mod series;
mod template;
mod value;

pub use batch::{Batch, BatchLimits, Reject, RejectReason};
pub(crate) use clock::parse_local;
pub use clock::{Restamp, parse_timestamp};
pub use nexus_common::sources::{
    header::{HeaderError, Kind, Layout},
    label_text::{LabelTextError, parse_labels},
};
pub use reader::{Next, ReadError, ShardReader};
pub use series::SeriesCache;

#[cfg(test)]
mod tests;
