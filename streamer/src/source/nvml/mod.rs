//! The GPUs of this host, asked through NVIDIA's management library.
//!
//! A call into the library may never come back: a GPU that hangs keeps whoever asks it. So every
//! GPU has a thread, and so has the library itself (`keeper`: it opens, looks for GPUs that come and
//! go, waits for XIDs). A thread that does not come back is left alone, and no other takes its
//! [`seat`]. `ask` is what one GPU is asked for, `names` how that is called, `gpus` puts together
//! what all of them told.

mod ask;
mod gpus;
mod keeper;
mod names;
mod seat;
mod told;
mod worker;

pub(crate) use gpus::Gpus;
pub(crate) use keeper::{OpenError, probe};
