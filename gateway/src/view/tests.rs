//! The fold and the points, synchronously.

use nexus_common::{
    block::{Block, Section},
    keyspace::{BlockName, CommitSummary, FileRange, LaneMove, Progress},
    model::{
        BucketId, Gpu, HostSamples, Labels, Lane, PartitionId, SeriesSamples, ShardId, Timestamp,
    },
    queue::Received,
};

use super::{
    arrival::Arrived,
    fold::{Fold, Lost, PlaceChange, TruthChange},
    points::{Bounds, PointKey, Points},
};

const P: PartitionId = PartitionId(3);

fn lane() -> Lane {
    Lane { source: "demo".parse().unwrap(), shard: ShardId(0) }
}

fn samples(host: &str, times: &[i64]) -> HostSamples {
    let gpu = Gpu {
        id: "GPU-1".parse().unwrap(),
        uuid: "GPU-1".to_owned(),
        index: "0".to_owned(),
        device: String::new(),
        model: String::new(),
        driver: String::new(),
        mig_profile: String::new(),
    };
    let series = SeriesSamples {
        gpu: Some(0),
        metric: "temperature".parse().unwrap(),
        labels: Labels::default(),
        timestamps: times.to_vec(),
        values: times.iter().map(|&t| t as f64).collect(),
    };
    HostSamples { host: host.parse().unwrap(), gpus: vec![gpu], series: vec![series] }
}

/// Message `seq` with ten samples of host `h`, at seconds `10 * seq` and on.
fn message(seq: u64) -> Arrived {
    let times: Vec<i64> = (0..10).map(|i| (seq as i64 * 10 + i) * 1000).collect();
    let sections = vec![Section::encode(&samples("h", &times)).unwrap()];
    let block = Block { cluster: "c".parse().unwrap(), sections };
    Arrived::read(Received { lane: lane(), seq, samples: 10, bytes: block.encode().unwrap() })
}

fn progress(seqs: std::ops::Range<u64>) -> TruthChange {
    let mut progress = Progress::untouched(FileRange { start: 0, end: 9 }, Timestamp::EPOCH);
    (progress.next, progress.samples) = (seqs.end, seqs.end * 10);
    TruthChange::Progress(lane(), Box::new(progress), seqs.map(message).collect())
}

fn bucket(hour: i64) -> BucketId {
    BucketId::holding(Timestamp::from_millis(hour * 3_600_000).unwrap(), 3600)
}

fn block(hour: i64, commit: u64, seconds: std::ops::Range<i64>) -> BlockName {
    let at = |s: i64| Timestamp::from_millis(s * 1000).unwrap();
    BlockName {
        bucket: bucket(hour),
        cluster: "c".parse().unwrap(),
        host: "h".parse().unwrap(),
        start: at(seconds.start),
        end: at(seconds.end - 1),
        partition: P,
        commit,
        ordinal: 0,
        samples: (seconds.end - seconds.start) as u64,
        bytes: 99,
    }
}

fn commit(number: u64, to: u64, added: &[BlockName], removed: &[BlockName]) -> PlaceChange {
    let lane = lane();
    let moved = LaneMove { source: lane.source, shard: lane.shard, from: 0, to };
    let names = |list: &[BlockName]| list.iter().map(BlockName::to_string).collect();
    let summary = CommitSummary {
        number,
        lanes: if to > 0 { vec![moved] } else { vec![] },
        added: names(added),
        removed: names(removed),
        claim: 1,
    };
    PlaceChange::Commit(P, summary)
}

/// Samples queued and stored.
fn counts(fold: &Fold) -> (u64, u64) {
    (fold.now().queue.samples, fold.now().stored_samples())
}

#[test]
fn a_commit_moves_samples_and_changes_their_number_at_no_time() {
    let mut fold = Fold::new(1);
    fold.truth(5, vec![progress(0..3)]).unwrap();
    assert_eq!((counts(&fold), fold.now().revision), ((30, 0), 5));
    fold.places(6, vec![commit(1, 2, &[block(1, 1, 0..20)], &[])]).unwrap();
    assert_eq!((counts(&fold), fold.now().revision), ((10, 20), 5));
    assert_eq!(fold.now().places_revision, 6);
    let (_, host) = fold.now().host("c", "h").unwrap();
    assert_eq!(host.queued_samples(), 10);
    assert_eq!(host.span(), Some((0, 29_000)));
}

#[test]
fn a_commit_that_is_ahead_of_its_progress_waits_and_so_do_those_behind_it() {
    let mut fold = Fold::new(1);
    let merged = block(1, 2, 0..20);
    fold.places(6, vec![commit(1, 2, &[block(1, 1, 0..20)], &[])]).unwrap();
    fold.places(7, vec![commit(2, 0, std::slice::from_ref(&merged), &[block(1, 1, 0..20)])])
        .unwrap();
    assert_eq!((fold.held(), counts(&fold)), (2, (0, 0)));
    fold.truth(4, vec![progress(0..1)]).unwrap();
    assert_eq!((fold.held(), counts(&fold)), (2, (10, 0)));
    fold.truth(5, vec![progress(1..3)]).unwrap();
    assert_eq!((fold.held(), counts(&fold)), (0, (10, 20)));
    let (_, host) = fold.now().host("c", "h").unwrap();
    assert_eq!(host.blocks.iter().map(|b| (**b).clone()).collect::<Vec<_>>(), [merged]);
}

#[test]
fn a_missed_commit_and_a_missed_message_ask_for_a_load() {
    let mut fold = Fold::new(1);
    fold.found_commit(P, 7);
    let missed = Lost::Commit { partition: P, expected: 8, found: 9 };
    assert_eq!(fold.places(2, vec![commit(9, 0, &[], &[])]), Err(missed));

    let mut fold = Fold::new(1);
    fold.truth(2, vec![progress(0..2)]).unwrap();
    let gap = Lost::Progress { lane: lane(), from: 2, to: 4, got: 1 };
    assert_eq!(fold.truth(3, vec![progress(3..4)]), Err(gap));
    let back = Lost::Progress { lane: lane(), from: 2, to: 1, got: 0 };
    assert_eq!(fold.truth(3, vec![progress(1..1)]), Err(back));
    let gone = Lost::Progress { lane: lane(), from: 2, to: 0, got: 2 };
    assert_eq!(fold.truth(3, vec![TruthChange::ShardGone(lane())]), Err(gone));
}

#[test]
fn what_lies_below_the_floor_is_not_served_nor_are_values_only_known_from_there() {
    let mut fold = Fold::new(1);
    fold.truth(5, vec![progress(0..3)]).unwrap();
    let blocks = [block(1, 1, 0..10), block(2, 1, 10..30)];
    fold.places(6, vec![commit(1, 3, &blocks, &[])]).unwrap();
    fold.truth(7, vec![TruthChange::Floor(bucket(2))]).unwrap();
    assert_eq!(counts(&fold), (0, 20));
    let (_, host) = fold.now().host("c", "h").unwrap();
    assert_eq!(host.span(), Some((10_000, 29_000)));
    let gpu = host.gpus.values().next().unwrap();
    assert_eq!(gpu.latest.newest(), Some(29_000));
    fold.truth(8, vec![TruthChange::Floor(bucket(3))]).unwrap();
    let (_, host) = fold.now().host("c", "h").unwrap();
    assert_eq!((counts(&fold), host.newest), ((0, 0), None));
    assert_eq!(host.gpus.values().next().unwrap().latest.newest(), None);
    // A block that comes late into a bucket that is over is not served either.
    fold.places(9, vec![commit(2, 0, &[block(2, 2, 0..5)], &[])]).unwrap();
    assert_eq!(counts(&fold), (0, 0));
}

#[test]
fn an_unreadable_message_is_counted_apart_until_it_is_set_aside() {
    let mut fold = Fold::new(1);
    let bytes = bytes::Bytes::from_static(b"not a block");
    let bad = Arrived::read(Received { lane: lane(), seq: 0, samples: 7, bytes });
    let mut change = progress(0..1);
    if let TruthChange::Progress(_, _, arrived) = &mut change {
        *arrived = vec![bad];
    }
    fold.truth(2, vec![change]).unwrap();
    assert_eq!((fold.now().queue.samples, fold.now().queue.unreadable_samples), (7, 7));
    fold.places(3, vec![commit(1, 1, &[], &[])]).unwrap();
    assert_eq!(fold.now().queue, super::QueueTotals::default());
}

#[test]
fn a_published_snapshot_never_changes() {
    let mut fold = Fold::new(1);
    fold.truth(2, vec![progress(0..2)]).unwrap();
    let before = fold.now().clone();
    fold.places(3, vec![commit(1, 2, &[block(1, 1, 0..20)], &[])]).unwrap();
    fold.truth(4, vec![progress(2..3)]).unwrap();
    let (_, host) = before.host("c", "h").unwrap();
    assert_eq!((host.queued_samples(), host.blocks.len(), before.queue.samples), (20, 0, 20));
    assert_eq!(host.gpus.values().next().unwrap().latest.newest(), Some(19_000));
}

fn points(newest: bool, limit: usize, after: Option<PointKey>) -> Points {
    Points::new(Bounds { start: 0, end: i64::MAX, after, newest, limit })
}

fn times(points: Points) -> Vec<i64> {
    points.finish().iter().map(|p| p.key.at).collect()
}

#[test]
fn the_limit_keeps_the_newest_or_the_oldest_in_whatever_order_they_come() {
    let cluster = "c".parse().unwrap();
    for parts in [[[1, 5, 9], [2, 4, 8]], [[9, 5, 1], [8, 4, 2]], [[2, 4, 8], [1, 5, 9]]] {
        for (newest, expected) in [(true, [8, 9]), (false, [1, 2])] {
            let mut points = points(newest, 2, None);
            for part in parts {
                points.add(&cluster, 1, &samples("h", &part));
            }
            assert_eq!(times(points), expected);
        }
    }
}

#[test]
fn reading_stops_exactly_when_nothing_better_can_come() {
    let (cluster, host) = ("c".parse().unwrap(), "h".parse().unwrap());
    let (before, behind) = ("a".parse().unwrap(), "z".parse().unwrap());
    let mut newest = points(true, 2, None);
    newest.add(&cluster, 1, &samples("h", &[5]));
    assert!(newest.can_use((&cluster, &host), 0, 1), "not full yet");
    newest.add(&cluster, 1, &samples("h", &[9]));
    assert!(newest.can_use((&cluster, &host), 0, 5), "the same instant of the same host");
    assert!(newest.can_use((&cluster, &behind), 0, 5));
    assert!(!newest.can_use((&cluster, &before), 0, 5));
    assert!(!newest.can_use((&cluster, &host), 0, 4));
    let mut oldest = points(false, 1, None);
    oldest.add(&cluster, 1, &samples("h", &[5]));
    assert!(oldest.can_use((&cluster, &before), 5, 9) && oldest.can_use((&cluster, &host), 4, 9));
    assert!(!oldest.can_use((&cluster, &behind), 5, 9));
}

#[test]
fn what_is_settled_is_what_no_further_part_can_add_to() {
    let (cluster, host) = ("c".parse().unwrap(), "h".parse().unwrap());
    for (newest, expected) in [(true, vec![7, 9]), (false, vec![1])] {
        let mut points = points(newest, 9, None);
        points.add(&cluster, 1, &samples("h", &[1, 5, 7, 9]));
        points.settle((&cluster, &host), 5, 5);
        assert_eq!(times(points), expected);
    }
}

#[test]
fn of_two_reads_of_one_sample_the_later_stays_whichever_comes_first() {
    let cluster = "c".parse().unwrap();
    let (mut first, mut second) = (samples("h", &[5]), samples("h", &[5]));
    (first.series[0].values, second.series[0].values) = (vec![1.0], vec![2.0]);
    for order in [[(1, &first), (2, &second)], [(2, &second), (1, &first)]] {
        let mut points = points(true, 9, None);
        order.iter().for_each(|(rank, part)| points.add(&cluster, *rank, part));
        assert_eq!(points.finish()[0].values[0].2, 2.0);
    }
}

#[test]
fn a_cursor_goes_on_behind_its_point_in_both_directions() {
    let cluster = "c".parse().unwrap();
    let key = |at: i64| {
        let (host, gpu) = ("h".parse().unwrap(), Some("GPU-1".parse().unwrap()));
        PointKey { at, cluster: "c".parse().unwrap(), host, gpu }
    };
    for (newest, expected) in [(true, vec![1, 2]), (false, vec![4, 5])] {
        let mut points = points(newest, 9, Some(key(3)));
        points.add(&cluster, 1, &samples("h", &[1, 2, 3, 4, 5]));
        assert_eq!(times(points), expected);
    }
    assert_eq!(PointKey::from_text(&key(3).to_text()), Some(key(3)));
    for bad in ["", "3~c~h", "3~c~h~g~x", "x~c~h~g", "3~c/d~h~g", "+3~c~h~g"] {
        assert_eq!(PointKey::from_text(bad), None, "{bad}");
    }
}
