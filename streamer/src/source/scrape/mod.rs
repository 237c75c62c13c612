//! Exporters: what they answer, and what of it is ours.
//!
//! `line` reads the format, [`Answered`] is one answer as samples, `fetch` asks.

pub(crate) mod discover;
pub(crate) mod fetch;
pub mod line;
pub(crate) mod target;

use std::collections::BTreeMap;

use memchr::memchr;
use nexus_common::{
    keyspace::live::Rules,
    model::{Gpu, HostName, HostSamples, Labels, MetricName, SeriesSamples},
    sources::series::{Book, Refused},
};

pub use self::line::Format;
use self::line::parse_line;

/// How an answer is read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What is taken.
    pub rules: Rules,
    /// Most series.
    pub series_max: usize,
    /// Take the exporter's own times.
    pub honour_times: bool,
}

/// One answer, as samples.
#[derive(Debug, Default)]
pub struct Answered {
    /// By host.
    pub hosts: Vec<HostSamples>,
    /// Samples taken.
    pub samples: u64,
    /// Lines with a sample that meant "not measured".
    pub absent: u64,
    /// Lines refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// One host of an answer: only GPUs that it tells something of.
#[derive(Debug, Default)]
struct Building {
    gpus: Vec<Gpu>,
    series: Vec<SeriesSamples>,
    /// Where each GPU that was ever met stands in `gpus`.
    places: Vec<Option<u32>>,
}

impl Building {
    /// Adds a series whose GPU is the position in `met`.
    fn add(&mut self, mut series: SeriesSamples, met: &[Gpu]) {
        if let Some(nth) = series.gpu.and_then(|gpu| usize::try_from(gpu).ok()) {
            self.places.resize(met.len().max(self.places.len()), None);
            if let Some((place, gpu)) = self.places.get_mut(nth).zip(met.get(nth)) {
                series.gpu = Some(*place.get_or_insert_with(|| {
                    self.gpus.push(gpu.clone());
                    self.gpus.len() as u32 - 1
                }));
            }
        }
        self.series.push(series);
    }
}

/// Reads one target's answers, each faster than the first: it remembers the series it met.
#[derive(Debug)]
pub struct Reader {
    host: HostName,
    url: String,
    book: Book,
    answers: u64,
}

impl Reader {
    /// A reader of the target at `url`, on this host.
    pub fn new(host: HostName, url: &str) -> Self {
        Self { host, url: url.to_owned(), book: Book::default(), answers: 0 }
    }

    /// Whether no answer was read yet.
    pub fn is_new(&self) -> bool {
        self.answers == 0
    }

    /// Reads an answer of the instant `at`, in milliseconds since the epoch.
    pub fn read(&mut self, body: &[u8], format: Format, at: i64, how: &Reading) -> Answered {
        if self.book.is_full() {
            self.book = Book::default();
            self.answers = 0;
        }
        let first = self.is_new();
        self.answers += 1;
        let mut answer = Answered::default();
        let mut building: Vec<Building> = Vec::new();
        let (mut rest, mut place) = (body, 0);
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let (text, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            let line = match parse_line(text, self.book.expected(place), format) {
                Ok(Some(line)) => line,
                Ok(None) => continue,
                Err(_) => {
                    answer.refuse("bad line");
                    continue;
                }
            };
            let found = self.book.find(place, line.series, (&self.host, &self.url), &how.rules);
            place += 1;
            let own = line.at.filter(|_| how.honour_times);
            match self.take(found, line.value, own, first, answer.samples, how.series_max) {
                Ok((nth, true)) => {
                    let Some(known) = self.book.series.get(nth) else { continue };
                    if building.len() <= known.host {
                        building.resize_with(known.host + 1, Building::default);
                    }
                    let place = self.book.hosts.get(known.host);
                    if let Some((host, place)) = building.get_mut(known.host).zip(place) {
                        host.add(known.sample(own.unwrap_or(at), line.value), &place.gpus);
                        answer.samples += 1;
                    }
                }
                Ok((_, false)) => answer.absent += 1,
                Err(Some(reason)) => answer.refuse(reason),
                Err(None) => {}
            }
        }
        for (place, Building { gpus, series, .. }) in self.book.hosts.iter().zip(building) {
            if !series.is_empty() {
                answer.hosts.push(HostSamples { host: place.host.clone(), gpus, series });
            }
        }
        answer
    }

    /// Whether a line's sample is taken: true, or false if it means "not measured". Not if it is
    /// dropped, with a reason if that is worth counting.
    fn take(
        &mut self,
        found: Result<usize, Refused>,
        value: f64,
        own: Option<i64>,
        first: bool,
        taken: u64,
        series_max: usize,
    ) -> Result<(usize, bool), Option<&'static str>> {
        let nth = found.map_err(|refused| match refused {
            Refused::Rule => None,
            Refused::Bad => Some("bad series"),
            Refused::TooMany => Some("too many series"),
        })?;
        let known = self.book.series.get_mut(nth).ok_or(None)?;
        if known.met == self.answers {
            return Err(Some("series twice"));
        }
        known.met = self.answers;
        if let Some(own) = own {
            // What somebody took before us we cannot know: the first answer only tells how far
            // the exporter's times are. And a time that was taken is not taken again.
            let newer = known.newest.is_none_or(|newest| own > newest);
            let fresh = known.newest.is_some() || !first;
            known.newest = known.newest.max(Some(own));
            if !newer || !fresh {
                return Err(None);
            }
        }
        if known.absent.is(value) {
            return Ok((nth, false));
        }
        if taken >= series_max as u64 {
            return Err(Some("too many series"));
        }
        Ok((nth, true))
    }
}

impl Answered {
    fn refuse(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// Adds what every question tells, answered or not: `up`, how long it took, how many samples.
    pub(crate) fn add_up(
        &mut self,
        host: &HostName,
        target: &str,
        at: i64,
        up: bool,
        seconds: f64,
    ) {
        let labels = Labels::new([("target", target)]).unwrap_or_default();
        let values = [
            ("up", f64::from(u8::from(up))),
            ("scrape_duration_seconds", seconds),
            ("scrape_samples", self.samples as f64),
        ];
        let series = values.into_iter().filter_map(|(name, value)| {
            let metric = MetricName::new(name).ok()?;
            let (timestamps, values) = (vec![at], vec![value]);
            Some(SeriesSamples { gpu: None, metric, labels: labels.clone(), timestamps, values })
        });
        self.samples += 3;
        self.hosts.push(HostSamples {
            host: host.clone(),
            gpus: Vec::new(),
            series: series.collect(),
        });
    }
}

#[cfg(test)]
mod tests;
