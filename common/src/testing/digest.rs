//! Whether two multitudes of samples are the same, in memory that does not grow with them.

use std::{
    io::{BufRead, BufReader},
    path::Path,
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::{
    block::Block,
    etcd::{Etcd, RangeRead},
    keyspace::KeyRange,
    model::{Timestamp, metric_by_dcgm},
};

/// How many samples, and the sum of a hash of each: their order does not matter, how often each
/// one is there does. Two that differ are told apart but for one chance in 2^128.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// Samples.
    pub samples: u64,
    sum: u128,
}

impl Digest {
    fn add(&mut self, series: u64, at: i64, value: f64) {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&series.to_le_bytes());
        bytes[8..16].copy_from_slice(&at.to_le_bytes());
        bytes[16..].copy_from_slice(&value.to_bits().to_le_bytes());
        self.samples += 1;
        self.sum = self.sum.wrapping_add(xxh3_128(&bytes));
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        let sum = self.sum.wrapping_add(other.sum);
        Self { samples: self.samples + other.samples, sum }
    }
}

fn series(host: &str, gpu: &str, metric: &str) -> u64 {
    xxh3_64(format!("{host}\0{gpu}\0{metric}").as_bytes())
}

/// All samples below `blocks/`, decoded.
pub async fn stored(etcd: &Etcd) -> Digest {
    // Names first: values are fetched a few at a time and dropped.
    let names = RangeRead { keys_only: true, ..RangeRead::default() };
    let listing = etcd.range(&etcd.keyspace().prefix("blocks/"), names).await.unwrap();
    let mut digest = Digest::default();
    for entry in &listing.entries {
        // At the revision of the names: what is merged meanwhile is still there then.
        let how = RangeRead { revision: Some(listing.revision), ..RangeRead::default() };
        let range = KeyRange { start: entry.key.clone(), end: [&entry.key[..], b"\0"].concat() };
        let mut found = etcd.range(&range, how).await.unwrap().entries;
        let value = found.pop().expect("a block that is listed").value;
        for section in Block::decode(value).unwrap().sections {
            let host = section.decode().unwrap();
            for s in &host.series {
                let gpu = s.gpu.map_or("", |gpu| host.gpus[gpu as usize].id.as_str());
                let series = series(host.host.as_str(), gpu, s.metric.as_str());
                let samples = s.timestamps.iter().zip(&s.values);
                samples.for_each(|(at, value)| digest.add(series, *at, *value));
            }
        }
    }
    digest
}

/// All samples of a generated file, read in another way than the streamer does.
pub fn source(file: &Path) -> Digest {
    let mut lines = BufReader::with_capacity(1 << 20, std::fs::File::open(file).unwrap()).lines();
    let header = lines.next().unwrap().unwrap();
    let columns: Vec<&str> = header.split(',').collect();
    let at = |name: &str| columns.iter().position(|column| *column == name);
    match (at("gpu_utilization"), at("hostname"), at("uuid")) {
        (Some(first), Some(host), Some(uuid)) => wide(lines, &columns, first, host, uuid),
        _ => long(lines),
    }
}

type Lines = std::io::Lines<BufReader<std::fs::File>>;

/// A row a point: values from column `first` on.
fn wide(lines: Lines, columns: &[&str], first: usize, host: usize, uuid: usize) -> Digest {
    let mut digest = Digest::default();
    let mut time = (String::new(), 0);
    let mut known: std::collections::HashMap<String, Vec<u64>> = std::collections::HashMap::new();
    for line in lines {
        let line = line.unwrap();
        let fields: Vec<&str> = line.split(',').collect();
        if time.0 != fields[0] {
            time = (fields[0].to_owned(), fields[0].parse::<Timestamp>().unwrap().as_millis());
        }
        if !known.contains_key(fields[uuid]) {
            let of = |metric: &&str| series(fields[host], fields[uuid], metric);
            known.insert(fields[uuid].to_owned(), columns[first..].iter().map(of).collect());
        }
        for (series, value) in known[fields[uuid]].iter().zip(&fields[first..]) {
            // What is empty was not measured.
            if !value.is_empty() {
                digest.add(*series, time.1, value.parse().unwrap());
            }
        }
    }
    digest
}

/// A row a sample.
fn long(lines: Lines) -> Digest {
    let mut digest = Digest::default();
    for line in lines {
        let line = line.unwrap();
        // Every field is quoted, and only the last, which is not looked at, holds quotes.
        let fields: Vec<&str> = line[1..].splitn(12, "\",\"").collect();
        let [time, field, _, _, uuid, _, host, _, _, _, value, _] = fields[..] else {
            panic!("{line}");
        };
        let metric = metric_by_dcgm(field).map_or(field, |metric| metric.name);
        let at = time.parse::<Timestamp>().unwrap().as_millis();
        digest.add(series(host, uuid, metric), at, value.parse().unwrap());
    }
    digest
}
