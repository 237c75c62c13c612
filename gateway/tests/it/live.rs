//! Subscribing to what the view learns, without any protocol.

use std::time::Duration;

use nexus_common::{model::Lane, testing::TestEtcd};
use nexus_gateway::view::{GapReason, LiveEvent, LiveFilter, Since, Subscription};
use tokio::time::timeout;

use crate::{
    pipeline::{Pipeline, T0, samples, uuid},
    serve::Gateway,
};

const SOON: Duration = Duration::from_secs(10);

/// Two metrics of `gpus` GPUs of a host at second `second`.
pub(crate) async fn tick(
    pipeline: &mut Pipeline,
    lane: &Lane,
    host: &str,
    gpus: usize,
    second: i64,
) {
    let metrics = ["gpu_utilization", "temperature"];
    let at = T0 + second * 1000;
    let told = samples(host, gpus, &metrics, &[at], |gpu, at| (at - T0) as f64 + gpu as f64);
    pipeline.enqueue(lane, &[told]).await;
}

/// What a subscription gives until `count` points came: seconds and GPU ids of the new ones, those
/// of a snapshot, gaps.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    new: Vec<(i64, String)>,
    snapshot: Vec<(i64, String)>,
    gaps: Vec<(GapReason, Option<u64>)>,
    revision: i64,
}

async fn seen(subscription: &mut Subscription, count: usize) -> Seen {
    let mut seen = Seen::default();
    while seen.new.len() + seen.snapshot.len() < count {
        let next = timeout(SOON, subscription.next()).await;
        match next.unwrap_or_else(|_| panic!("{count} points did not come: {seen:?}")) {
            LiveEvent::Gap(gap) => seen.gaps.push((gap.reason, gap.updates)),
            LiveEvent::Points(points) => {
                for point in points {
                    assert!(point.revision >= seen.revision, "revisions never go back");
                    seen.revision = point.revision;
                    let list = if point.snapshot { &mut seen.snapshot } else { &mut seen.new };
                    let gpu = point.key.gpu.as_ref().unwrap().to_string();
                    list.push(((point.key.at - T0) / 1000, gpu));
                }
            }
        }
    }
    seen
}

fn of_gpu(gpu: &str) -> LiveFilter {
    LiveFilter { gpu: Some(gpu.to_owned()), ..LiveFilter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_keeps_up_gets_each_point_once_wherever_it_lies() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 2, 0).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let mut all = gateway.view().live(LiveFilter::default(), Since::Now).unwrap();
    let mut one = gateway.view().live(of_gpu(&uuid("a", 1)), Since::Latest).unwrap();
    for second in 1..=20 {
        tick(&mut pipeline, &lane, "a", 2, second).await;
        if second % 5 == 0 {
            pipeline.commit(&lane, 100).await;
        }
    }
    pipeline.merge("a").await;
    tick(&mut pipeline, &lane, "b", 1, 21).await;
    let seen_all = seen(&mut all, 41).await;
    let mut expected: Vec<(i64, String)> =
        (1..=20).flat_map(|s| [(s, uuid("a", 0)), (s, uuid("a", 1))]).collect();
    expected.push((21, uuid("b", 0)));
    assert_eq!((seen_all.new, seen_all.snapshot, seen_all.gaps), (expected, vec![], vec![]));
    let seen_one = seen(&mut one, 21).await;
    let expected: Vec<_> = (1..=20).map(|s| (s, uuid("a", 1))).collect();
    assert_eq!((seen_one.new, seen_one.snapshot), (expected, vec![(0, uuid("a", 1))]));
    assert_eq!(seen_one.gaps, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_goes_on_from_a_revision_while_it_is_kept_and_from_the_latest_after_that() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 1, 0).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let loaded = gateway.view().snapshot().unwrap().revision;
    let mut first = gateway.view().live(LiveFilter::default(), Since::Now).unwrap();
    for second in 1..=3 {
        tick(&mut pipeline, &lane, "a", 1, second).await;
    }
    let until = seen(&mut first, 2).await.revision;
    drop(first);
    gateway.caught_up(8).await;
    tick(&mut pipeline, &lane, "a", 1, 4).await;
    let mut again = gateway.view().live(LiveFilter::default(), Since::After(until)).unwrap();
    let rest = seen(&mut again, 2).await;
    assert_eq!(rest.new, [(3, uuid("a", 0)), (4, uuid("a", 0))]);
    assert_eq!((rest.gaps, rest.snapshot), (vec![], vec![]));

    let old = Since::After(loaded - 1);
    let mut late = gateway.view().live(of_gpu(&uuid("a", 0)), old).unwrap();
    let came = seen(&mut late, 1).await;
    assert_eq!((came.gaps, came.snapshot.len()), (vec![(GapReason::Window, None)], 1));
    tick(&mut pipeline, &lane, "a", 1, 5).await;
    let last = seen(&mut late, 1).await;
    assert!(last.new.iter().all(|(second, _)| *second == 5), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_told_what_it_missed_while_others_miss_nothing() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 1, 0).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let mut stuck = gateway.view().live(LiveFilter::default(), Since::Now).unwrap();
    let mut quick = gateway.view().live(LiveFilter::default(), Since::Now).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::channel(1 << 16);
    let reading = tokio::spawn(async move {
        loop {
            let seen = seen(&mut quick, 1).await;
            assert_eq!((seen.gaps, seen.snapshot), (vec![], vec![]));
            for point in seen.new {
                tell.send(point.0).await.unwrap();
            }
        }
    });
    let began = std::time::Instant::now();
    // Longer than anything may wait.
    let mut second = 0;
    while began.elapsed() < Duration::from_millis(2500) {
        second += 1;
        tick(&mut pipeline, &lane, "a", 1, second).await;
    }
    for expected in 1..=second {
        assert_eq!(timeout(SOON, told.recv()).await.unwrap(), Some(expected));
    }
    reading.abort();
    let missed = seen(&mut stuck, 1).await;
    let [(GapReason::Slow, Some(updates))] = missed.gaps[..] else { panic!("{missed:?}") };
    assert!(updates <= second as u64 && updates > 0, "{updates} of {second}");
    assert_eq!((missed.new.len(), missed.snapshot), (0, vec![(second, uuid("a", 0))]));
    tick(&mut pipeline, &lane, "a", 1, second + 1).await;
    assert_eq!(seen(&mut stuck, 1).await.new, [(second + 1, uuid("a", 0))]);
}
