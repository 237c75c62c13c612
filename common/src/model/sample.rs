//! Samples, grouped the way they travel: by host, then by series.

use std::sync::Arc;

use super::{GpuId, HostName, MetricName};
use crate::limits::{LABEL_VALUE_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};

/// A GPU or a MIG instance as its telemetry describes it. Text that is not known is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gpu {
    /// Identity: the UUID (with `:{instance}` behind it for a MIG instance), or `{host}:{index}`
    /// where a source gives no UUID. The index alone is never an identity.
    pub id: GpuId,
    /// UUID of the physical GPU, as the source wrote it.
    pub uuid: String,
    /// Index on its host, as the source wrote it (`0`).
    pub index: String,
    /// Device name (`nvidia0`).
    pub device: String,
    /// Model (`NVIDIA H100 80GB HBM3`).
    pub model: String,
    /// Driver version (`535.129.03`).
    pub driver: String,
    /// MIG profile (`1g.10gb`), empty for a whole GPU.
    pub mig_profile: String,
}

/// Why a label set is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// More than [`LABELS_MAX`].
    #[error("{0} labels, at most {LABELS_MAX} are allowed")]
    TooMany(usize),
    /// An empty or overlong name.
    #[error("label name {0:?} is empty or longer than {NAME_BYTES_MAX} bytes")]
    Name(String),
    /// An overlong value, or one with a control character.
    #[error(
        "value of label {0:?} is longer than {LABEL_VALUE_BYTES_MAX} bytes or has a control character"
    )]
    Value(String),
    /// The same name twice.
    #[error("label {0:?} stands twice")]
    Twice(String),
}

/// Labels beyond host, GPU and metric, sorted by name. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// Sorts and checks. Pairs with an empty value are dropped: in Prometheus' model they do
    /// not exist.
    ///
    /// # Errors
    /// Names the label that cannot be taken.
    pub fn new<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, LabelsError> {
        let mut pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        pairs.sort_unstable();
        if pairs.len() > LABELS_MAX {
            return Err(LabelsError::TooMany(pairs.len()));
        }
        for (name, value) in &pairs {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(LabelsError::Name((*name).chars().take(64).collect()));
            }
            if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
                return Err(LabelsError::Value((*name).to_owned()));
            }
        }
        if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(LabelsError::Twice(pair[0].0.to_owned()));
        }
        Ok(Self(pairs.into_iter().map(|(n, v)| (Arc::from(n), Arc::from(v))).collect()))
    }

    /// Name and value, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// No labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The samples of one series: `timestamps` (milliseconds since the epoch) and `values`, of
/// equal length, in the order they were read. Neither order nor uniqueness is promised.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesSamples {
    /// Position in [`HostSamples::gpus`]; none for a series of the host itself.
    pub gpu: Option<u32>,
    /// What is measured.
    pub metric: MetricName,
    /// Anything else that tells the series apart.
    pub labels: Labels,
    /// Milliseconds since the epoch.
    pub timestamps: Vec<i64>,
    /// One value a timestamp. Not measured means not there, never 0.
    pub values: Vec<f64>,
}

/// Some samples of one host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSamples {
    /// The host.
    pub host: HostName,
    /// Its GPUs that series refer to.
    pub gpus: Vec<Gpu>,
    /// Its series, each (gpu, metric, labels) at most once.
    pub series: Vec<SeriesSamples>,
}

impl HostSamples {
    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.series.iter().map(|s| s.values.len()).sum()
    }
}
