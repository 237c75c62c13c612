//! Where telemetry comes from. Each source splits into shards that can be replayed from a
//! position.

pub mod csv;
pub mod fetched;
pub mod file;
pub(crate) mod follow;
pub(crate) mod named;
pub(crate) mod nvml;
pub mod scrape;
pub(crate) mod sessions;
pub mod shards;
pub(crate) mod simulate;

pub use file::{CsvFile, FileError, FileIdentity};
