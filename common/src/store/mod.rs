//! The store: blocks by host and ingest-time bucket, the inventory, and what retention left.

mod inventory;
mod reader;
mod retention;
mod writer;

pub use inventory::{Description, Inventory};
pub use reader::{Reader, StoredBlock};
pub use retention::{Policy, Retention, Swept};
pub use writer::{NewBlock, Writer};
