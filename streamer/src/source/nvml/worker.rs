//! The thread of one GPU: asked for a reading, it tells one, however long that takes.

use std::{
    io,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use nexus_common::model::HostName;
use nvml_wrapper::Nvml;
use tokio::sync::mpsc;

use super::{
    ask::Asked,
    seat::Seat,
    told::{Silent, Told, Trouble},
};

/// What became of a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) index: u32,
    /// Of the question: an answer that comes late is one to an older.
    pub(super) number: u64,
    pub(super) told: Result<Vec<Told>, Trouble>,
}

/// Who is asked, and what is known of all GPUs of the host.
#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) index: u32,
    pub(super) host: HostName,
    pub(super) driver: String,
    /// What it and its instances did not tell, however often they are looked for anew.
    pub(super) silent: Arc<Mutex<[Silent; 2]>>,
}

/// Starts the thread; it ends when the returned end of the questions is dropped. At most one
/// question is on its way, so both channels have room.
pub(super) fn start(
    seat: Seat,
    nvml: Arc<Nvml>,
    who: Who,
    answers: mpsc::Sender<Answer>,
) -> io::Result<SyncSender<u64>> {
    let (ask, asks) = sync_channel(1);
    let name = format!("gpu-{}", who.index);
    thread::Builder::new().name(name).spawn(move || {
        work(&nvml, &who, &asks, &answers);
        // Closing the library may hang, too: the seat is free when that is done.
        drop(nvml);
        drop(seat);
    })?;
    Ok(ask)
}

fn work(nvml: &Nvml, who: &Who, asks: &Receiver<u64>, answers: &mpsc::Sender<Answer>) {
    let mut found: Option<Asked<'_>> = None;
    while let Ok(number) = asks.recv() {
        let Ok(mut silent) = who.silent.lock() else { return };
        let told = tell(nvml, who, &mut found, &mut silent);
        if told.is_err() {
            found = None;
        }
        for (part, of) in silent.iter_mut().zip(["the GPU", "its instances"]) {
            if let Some(fields) = part.take() {
                tracing::info!(gpu = who.index, of, fields, "not told here, and left out");
            }
        }
        drop(silent);
        if answers.try_send(Answer { index: who.index, number, told }).is_err() {
            return; // nobody asks any more
        }
    }
}

fn tell<'n>(
    nvml: &'n Nvml,
    who: &Who,
    found: &mut Option<Asked<'n>>,
    silent: &mut [Silent; 2],
) -> Result<Vec<Told>, Trouble> {
    let asked = match found {
        Some(asked) => asked,
        None => found.insert(Asked::find(nvml, who.index, &who.host, &who.driver)?),
    };
    asked.tell(silent)
}
