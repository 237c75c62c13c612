//! What is counted of remote write.

use nexus_common::runtime::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::{Stored, Tally, ToldError, WriteError};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Counters of requests and of the samples in them.
#[derive(Debug, Default, Clone)]
pub(super) struct WriteMeters {
    requests: Family<OutcomeLabel, Counter>,
    samples: Family<ResultLabel, Counter>,
}

impl WriteMeters {
    /// Makes `/metrics` show them.
    pub(super) fn register(&self, metrics: &Metrics) {
        metrics.with_registry(|r| {
            let write = r.sub_registry_with_prefix("write");
            let help = "Remote write requests, by what became of them";
            write.register("requests", help, self.requests.clone());
            let help = "Samples of remote write requests that were answered with 204 or 400, by what became of them";
            write.register("samples", help, self.samples.clone());
        });
    }

    /// Counts one request.
    pub(super) fn count(&self, stored: &Result<(Tally, Stored), WriteError>) {
        let outcome = match stored {
            Ok((tally, _)) if tally.refused() > 0 => "partial",
            Ok((_, Stored::Now)) => "stored",
            Ok((_, Stored::Before)) => "stored-before",
            Err(WriteError::Told(ToldError::TooLarge { .. })) => "too-large",
            Err(WriteError::Told(_)) => "bad",
            Err(WriteError::Refused(refusal)) => refusal.word(),
        };
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
        let Ok((tally, stored)) = stored else { return };
        let result = match stored {
            Stored::Now => "stored",
            Stored::Before => "stored-before",
        };
        self.add(result, tally.samples);
        self.add("absent", tally.absent);
        self.add("repeated", tally.repeated);
        self.add("histogram", tally.histograms);
        for (reason, samples) in &tally.refused {
            self.add(reason, *samples);
        }
    }

    fn add(&self, result: &'static str, samples: u64) {
        if samples > 0 {
            self.samples.get_or_create(&ResultLabel { result }).inc_by(samples);
        }
    }
}
