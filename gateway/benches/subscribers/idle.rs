//! A pipeline with nothing else to do: one GPU's row at a time, from the moment it is due until it
//! is durable and until a client has it, beside what etcd takes for a write of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nexus_common::{
    etcd::{Etcd, Event, follow},
    keyspace::SourceKind,
    sources::SourceDesk,
    testing::TestEtcd,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    ALL, Process,
    client::{Clock, figures, subscriber},
    gateway, generate, setting,
};

/// Rows a second.
const PACE: u64 = 10;

/// Measures it and prints a line.
pub(crate) async fn idle() {
    let seconds = setting("SECONDS_EACH", 30);
    let etcd = TestEtcd::with_flags(&["--snapshot-count=2000"]);
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("idle.csv");
    generate(&csv, (1, 1), (seconds + 10) * PACE as usize);
    let _collector = Process::start("collector", &etcd, &[]);
    let (_gateway, address) = gateway(&etcd).await;
    let (path, pace) = (csv.to_str().unwrap(), PACE.to_string());
    let _streamer =
        Process::start("streamer", &etcd, &["--csv-file", path, "--replay-speed", &pace]);
    let (tell, begin) = watch::channel(false);
    let client = tokio::spawn(subscriber(address, ALL.to_owned(), Clock::of_timestamps(), begin));
    sleep(Duration::from_secs(6)).await;
    tell.send(true).unwrap();
    let own = etcd.connect().await;
    let ended = Arc::new(AtomicBool::new(false));
    let puts = tokio::spawn(puts(own.clone(), Arc::clone(&ended)));
    let durable = durable(own, seconds).await;
    ended.store(true, Relaxed);
    drop(tell);
    let reached = client.await.unwrap();
    let rows = seconds * PACE as usize;
    println!(
        "{PACE} rows a second, one at a time, from the moment it is due; durable: {}; at a \
         client: {}; a write of etcd's own: {}",
        figures(&[durable], rows),
        figures(&[reached], rows),
        figures(&[puts.await.unwrap()], rows)
    );
}

/// When progress came, in microseconds since the row it is of was due: rows are due on a grid that
/// the source tells.
async fn durable(etcd: Etcd, seconds: usize) -> Vec<u32> {
    let sources = SourceDesk::new(etcd.clone()).list().await.unwrap();
    let Some((_, source)) = sources.first() else { panic!("no source") };
    let SourceKind::Csv { replay: Some(replay), .. } = &source.kind else { panic!("no replay") };
    let grid = (1_000_000 / PACE) as u128;
    let begun = u128::try_from(replay.wall_start.as_millis()).unwrap() * 1000;
    let (tell, mut events) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let range = etcd.keyspace().prefix("shards/");
    let following = tokio::spawn(follow(etcd, range, tell, stop.clone()));
    let (mut took, since) = (Vec::new(), Instant::now());
    while since.elapsed() < Duration::from_secs(seconds as u64) {
        if let Some(Event::Changes { changes, .. }) = events.recv().await {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
            took.extend(changes.iter().map(|_| ((now - begun) % grid) as u32));
        }
    }
    stop.cancel();
    following.await.unwrap();
    took
}

/// How long etcd takes for a key of its own, while nothing else is due, in microseconds.
async fn puts(etcd: Etcd, ended: Arc<AtomicBool>) -> Vec<u32> {
    let place = String::from_utf8(etcd.keyspace().prefix("benchmark/").start).unwrap();
    let mut took = Vec::new();
    for number in 0.. {
        if ended.load(Relaxed) {
            break;
        }
        let key = format!("{place}{number}");
        let begun = Instant::now();
        assert!(etcd.create(&[(key, vec![b'x'; 512])]).await.unwrap());
        took.push(begun.elapsed().as_micros() as u32);
        sleep(Duration::from_micros(1_000_000 / PACE)).await;
    }
    took
}
