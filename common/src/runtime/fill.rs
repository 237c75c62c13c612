//! How full etcd is: intake pauses in time.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{interval, timeout};

use super::process::Life;

/// How often etcd is asked how full it is.
const FILL_EVERY: Duration = Duration::from_secs(2);
/// Part of etcd's quota at which intake pauses: the rest is for draining what is queued.
const FILL_MAX: f64 = 0.8;

/// Keeps `full` up to date, for as long as it is polled. A size that cannot be had (a managed etcd
/// may refuse) counts as unknown: then only the depth of the queue holds back.
pub async fn watch_fill(life: &Life, quota_bytes: u64, full: &AtomicBool) {
    let mut tick = interval(FILL_EVERY);
    loop {
        tick.tick().await;
        let asked = timeout(FILL_EVERY, life.process.etcd.used_bytes()).await;
        if let Ok(Ok(used)) = asked {
            let fill = used as f64 / quota_bytes as f64;
            life.process.metrics.database_fill.set(fill);
            full.store(fill >= FILL_MAX, Relaxed);
        }
    }
}
