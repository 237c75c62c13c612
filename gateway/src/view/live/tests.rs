//! What waits for a subscriber, and what is kept for who was away: synchronously.

use std::{sync::atomic::AtomicI64, task::Waker};

use nexus_common::model::{Gpu, HostSamples, Labels, SeriesSamples};

use super::{
    super::arrival::Arrived,
    seat::{SAMPLES_MAX, UPDATES_MAX, WAIT_MAX},
    window::Next,
    *,
};

fn section(host: &str, samples: usize) -> nexus_common::block::Section {
    let gpu = Gpu {
        id: "GPU-1:7".parse().unwrap(),
        uuid: "GPU-1".to_owned(),
        index: "0".to_owned(),
        device: String::new(),
        model: String::new(),
        driver: String::new(),
        mig_profile: String::new(),
    };
    let metric = |name: &str| SeriesSamples {
        gpu: Some(0),
        metric: name.parse().unwrap(),
        labels: Labels::default(),
        timestamps: (0..samples as i64).collect(),
        values: vec![1.5; samples],
    };
    let series = vec![metric("power_draw"), metric("temperature")];
    let samples = HostSamples { host: host.parse().unwrap(), gpus: vec![gpu], series };
    nexus_common::block::Section::encode(&samples).unwrap()
}

fn update(revision: i64, host: &str, samples: usize) -> Arc<Update> {
    let sections = vec![section(host, samples)].into();
    let (cluster, host) = ("c".parse().unwrap(), host.parse().unwrap());
    Arc::new(Update::new(revision, cluster, host, sections))
}

fn any() -> LiveFilter {
    LiveFilter::default()
}

fn of(cluster: Option<&str>, host: Option<&str>, gpu: Option<&str>) -> LiveFilter {
    let text = |text: Option<&str>| text.map(str::to_owned);
    LiveFilter { cluster: text(cluster), host: text(host), gpu: text(gpu), metrics: None }
}

fn revisions(taken: &[Arc<Update>]) -> Vec<i64> {
    taken.iter().map(|update| update.revision).collect()
}

#[test]
fn updates_come_a_whole_revision_at_a_time_and_each_once() {
    let seat = Seat::new(any(), 4);
    let now = Instant::now();
    for (revision, host) in [(4, "a"), (5, "a"), (5, "b"), (6, "a")] {
        let update = update(revision, host, 1);
        // By id and by UUID, say.
        assert!(!seat.push(&update, now) && !seat.push(&update, now));
    }
    let ready = |dispatched: i64| {
        let mut cx = std::task::Context::from_waker(Waker::noop());
        seat.poll_ready(&mut cx, &AtomicI64::new(dispatched)).is_ready()
    };
    assert!(!ready(4), "revision 5 may not be whole yet");
    assert!(ready(5));
    assert_eq!(revisions(&seat.take(&AtomicI64::new(6)).unwrap()), [5, 5]);
    assert_eq!(revisions(&seat.take(&AtomicI64::new(6)).unwrap()), [6]);
    assert!(!ready(6));
}

#[test]
fn who_is_too_slow_loses_what_waits_and_is_told_how_much() {
    let check = |pushes: &[(Arc<Update>, Duration)], at: usize| {
        let seat = Seat::new(any(), 0);
        let begin = Instant::now();
        let lost: Vec<usize> = pushes
            .iter()
            .enumerate()
            .filter(|(_, (update, after))| seat.push(update, begin + *after))
            .map(|(index, _)| index)
            .collect();
        assert_eq!(lost, [at], "lost once, at one push");
        assert!(seat.take(&AtomicI64::new(i64::MAX)).is_err());
        let gap = seat.queue().take_lost().unwrap();
        let (from, to) = (pushes[0].0.revision, pushes[pushes.len() - 1].0.revision);
        let updates = Some(pushes.len() as u64);
        assert_eq!(gap, Gap { reason: GapReason::Slow, from, to, updates });
        // Then it begins anew.
        assert!(!seat.push(&update(99_999, "a", 1), begin));
        assert_eq!(seat.take(&AtomicI64::new(i64::MAX)).unwrap().len(), 1);
    };
    use std::time::Duration;
    let many = |count: usize| -> Vec<_> {
        let sections = update(1, "a", 1).sections.clone();
        let one = |revision: usize| {
            let (cluster, host) = ("c".parse().unwrap(), "a".parse().unwrap());
            Arc::new(Update::new(revision as i64, cluster, host, Arc::clone(&sections)))
        };
        (1..=count).map(|revision| (one(revision), Duration::ZERO)).collect()
    };
    check(&many(UPDATES_MAX + 3), UPDATES_MAX);
    let large = |revision| (update(revision, "a", (SAMPLES_MAX / 4) as usize), Duration::ZERO);
    check(&[large(1), large(2), large(3)], 2);
    let late = WAIT_MAX + Duration::from_millis(1);
    let small = |revision, after| (update(revision, "a", 1), after);
    check(&[small(1, Duration::ZERO), small(2, WAIT_MAX), small(3, late), small(4, late)], 2);
}

#[test]
fn an_update_finds_those_it_is_for_and_nobody_else() {
    let arrived = {
        let block = nexus_common::block::Block {
            cluster: "c".parse().unwrap(),
            sections: vec![section("a", 2)],
        };
        let lane = nexus_common::model::Lane {
            source: "s".parse().unwrap(),
            shard: nexus_common::model::ShardId(0),
        };
        let bytes = block.encode().unwrap();
        Arrived::read(nexus_common::queue::Received { lane, seq: 0, samples: 4, bytes })
    };
    let range = nexus_common::keyspace::FileRange { start: 0, end: 1 };
    let at = nexus_common::model::Timestamp::EPOCH;
    let progress = nexus_common::keyspace::Progress::untouched(range, at);
    let lane = arrived.lane.clone();
    let changes = vec![TruthChange::Progress(lane, Box::new(progress), vec![arrived])];
    let check = |filter: LiveFilter, expected: usize| {
        let live = Live::new(LiveMeters::default());
        let seat = Arc::new(Seat::new(filter.clone(), 0));
        live.state().list(&filter).push(Arc::clone(&seat));
        live.dispatch(7, news(7, &changes), || {});
        let taken = seat.take(&live.dispatched).unwrap();
        assert_eq!(taken.len(), expected, "{filter:?}");
        live.state().remove(&seat);
        assert_eq!(live.state().seats().count(), 0);
    };
    check(any(), 1);
    check(of(Some("c"), None, None), 1);
    check(of(Some("other"), None, None), 0);
    check(of(None, Some("a"), None), 1);
    check(of(Some("other"), Some("a"), None), 0);
    check(of(None, Some("b"), None), 0);
    check(of(None, None, Some("GPU-1")), 1);
    check(of(None, None, Some("GPU-1:7")), 1);
    check(of(None, Some("b"), Some("GPU-1")), 0);
    check(of(None, None, Some("GPU-2")), 0);
}

#[test]
fn points_of_one_section_are_those_of_several() {
    let gpu = |id: &str| Gpu {
        id: id.parse().unwrap(),
        uuid: id.to_owned(),
        index: "0".to_owned(),
        device: String::new(),
        model: String::new(),
        driver: String::new(),
        mig_profile: String::new(),
    };
    let one =
        |gpu: Option<u32>, metric: &str, pod: &str, timestamps: &[i64], value: f64| SeriesSamples {
            gpu,
            metric: metric.parse().unwrap(),
            labels: Labels::new([("pod", pod)]).unwrap(),
            timestamps: timestamps.to_vec(),
            values: (0..timestamps.len()).map(|n| value + n as f64).collect(),
        };
    let series = vec![
        one(Some(1), "temperature", "", &[1, 2, 3], 10.0),
        one(Some(0), "temperature", "b", &[2, 2, 1], 20.0),
        one(None, "load", "", &[2], 30.0),
        one(Some(0), "power_draw", "", &[2, 3], 40.0),
        one(Some(0), "temperature", "a", &[1, 2], 50.0),
        // Once more, and of a GPU that is not there.
        one(Some(0), "temperature", "b", &[2], 60.0),
        one(Some(7), "temperature", "", &[2], 70.0),
    ];
    let host =
        |series| HostSamples { host: "h".parse().unwrap(), gpus: vec![gpu("B"), gpu("A")], series };
    let (samples, nothing) = (Arc::new(host(series)), Arc::new(host(Vec::new())));
    let of = |decoded: &[Arc<HostSamples>]| -> Vec<_> {
        let points = point::points_in(decoded, &"c".parse().unwrap(), 9);
        let told = |p: &Arc<LivePoint>| (p.key.clone(), p.gpu.clone(), p.values.clone());
        points.iter().map(told).collect()
    };
    let expected = of(&[Arc::clone(&samples), nothing]);
    assert_eq!(of(&[samples]), expected);
    assert_eq!(expected.iter().map(|(_, _, values)| values.len()).sum::<usize>(), 10);
}

#[test]
fn points_are_of_one_gpu_at_one_instant_with_all_metrics() {
    let points = point::points_of(&[section("a", 2)], &"c".parse().unwrap(), 9);
    let short: Vec<_> =
        points.iter().map(|p| (p.key.at, p.revision, p.snapshot, p.values.len())).collect();
    assert_eq!(short, [(0, 9, false, 2), (1, 9, false, 2)]);
    let gpu = points[0].gpu.as_ref().unwrap();
    assert_eq!((gpu.uuid.as_str(), gpu.id.as_str()), ("GPU-1", "GPU-1:7"));
    let check = |metric: &str, gpu: Option<&str>, expected: usize| {
        let metrics = Some([metric.parse().unwrap()].into());
        let filter = LiveFilter { metrics, ..of(None, None, gpu) };
        assert_eq!(point::wanted(&points, &filter).len(), expected, "{filter:?}");
    };
    check("temperature", None, 2);
    check("temperature", Some("GPU-1"), 2);
    check("temperature", Some("GPU-2"), 0);
    check("sm_clock_mhz", None, 0);
}

#[test]
fn the_window_gives_back_what_came_after_a_revision_until_it_is_too_old() {
    let mut window = Window::after(4);
    for (revision, host) in [(5, "a"), (5, "b"), (7, "b"), (8, "a")] {
        window.push(update(revision, host, 1));
    }
    let after =
        |filter: &LiveFilter, after: i64, until: i64| match window.next(filter, after, until) {
            Next::Updates(updates) => revisions(&updates),
            Next::End => vec![],
            other => panic!("{other:?}"),
        };
    assert_eq!(after(&any(), 4, 8), [5, 5]);
    assert_eq!(after(&any(), 5, 8), [7]);
    assert_eq!(after(&of(None, Some("a"), None), 5, 8), [8]);
    assert_eq!(after(&of(None, Some("a"), None), 5, 7), [0; 0]);
    assert_eq!(after(&any(), 8, 8), [0; 0]);
    assert!(matches!(window.next(&any(), 3, 8), Next::Gone));
}

#[test]
fn the_window_forgets_the_oldest_and_says_so() {
    let mut window = Window::after(0);
    let large = update(1, "a", 100_000);
    let each = large.sections[0].byte_len() + 256;
    let count = (32 << 20) / each + 2;
    for revision in 1..=count as i64 {
        let (cluster, host) = (large.cluster.clone(), large.host.clone());
        let sections = Arc::clone(&large.sections);
        window.push(Arc::new(Update::new(revision, cluster, host, sections)));
    }
    assert!(matches!(window.next(&any(), 0, 9), Next::Gone));
    let Next::Updates(updates) = window.next(&any(), count as i64 - 1, i64::MAX) else { panic!() };
    assert_eq!(revisions(&updates), [count as i64]);
}

#[test]
fn a_search_that_finds_nothing_is_cut_into_short_ones() {
    let mut window = Window::after(0);
    let one = update(1, "b", 1);
    for revision in 1..=5000 {
        let (cluster, host) = (one.cluster.clone(), one.host.clone());
        window.push(Arc::new(Update::new(revision, cluster, host, Arc::clone(&one.sections))));
    }
    let filter = of(None, Some("a"), None);
    let Next::More(read) = window.next(&filter, 0, 5000) else { panic!() };
    assert_eq!(read, 4096);
    assert!(matches!(window.next(&filter, read, 5000), Next::End));
}
