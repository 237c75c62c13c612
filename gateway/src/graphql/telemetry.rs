//! What was measured of one GPU (or of a host itself) at one instant.

use std::collections::BTreeMap;

use async_graphql::{Json, Object};

use super::scalars::Time;
use crate::{rest::Row, view};

/// The newest value of each series of a GPU, or of a host itself.
pub(super) fn latest(
    place: (&str, &str),
    gpu: Option<&nexus_common::model::Gpu>,
    latest: &view::Latest,
) -> Option<Telemetry> {
    let values = latest.iter().map(|(metric, labels, _, value)| (metric, labels, value));
    let gpu = gpu.map(|gpu| (gpu.index.clone(), Some(gpu)));
    Some(Row::new(place, gpu, latest.newest()?, values).into())
}

/// All that was measured of one GPU (or of a host itself) at one instant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Telemetry(pub(super) Row);

impl From<Row> for Telemetry {
    fn from(row: Row) -> Self {
        Self(row)
    }
}

/// All that was measured of one GPU (or of a host itself) at one instant. What was not measured
/// then is null
#[Object]
impl Telemetry {
    /// `{host}_{index of the GPU}_{seconds since the epoch}`
    async fn telemetry_id(&self) -> &str {
        &self.0.telemetry_id
    }

    /// The instant
    async fn timestamp(&self) -> Time {
        Time(self.0.timestamp)
    }

    /// Index of the GPU on its host; null in a row of the host itself
    async fn gpu_id(&self) -> Option<&str> {
        self.0.gpu_id.as_deref()
    }

    /// UUID of the GPU
    async fn uuid(&self) -> Option<&str> {
        self.0.uuid.as_deref()
    }

    /// Device name
    async fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// Model
    async fn model_name(&self) -> Option<&str> {
        self.0.model_name.as_deref()
    }

    /// The host
    async fn hostname(&self) -> &str {
        &self.0.hostname
    }

    /// Its cluster
    async fn cluster_id(&self) -> &str {
        &self.0.cluster_id
    }

    /// Time during which a kernel ran, in percent
    async fn gpu_utilization(&self) -> Option<f64> {
        self.0.gpu_utilization
    }

    /// Time during which the copy engine was busy, in percent
    async fn memory_utilization(&self) -> Option<f64> {
        self.0.memory_utilization
    }

    /// Frame buffer in use, in MiB
    async fn memory_used_mb(&self) -> Option<f64> {
        self.0.memory_used_mb
    }

    /// Frame buffer free, in MiB
    async fn memory_free_mb(&self) -> Option<f64> {
        self.0.memory_free_mb
    }

    /// GPU temperature, in degrees Celsius
    async fn temperature(&self) -> Option<f64> {
        self.0.temperature
    }

    /// Power drawn, in watts
    async fn power_draw(&self) -> Option<f64> {
        self.0.power_draw
    }

    /// SM clock, in MHz
    async fn sm_clock_mhz(&self) -> Option<f64> {
        self.0.sm_clock_mhz
    }

    /// Memory clock, in MHz
    async fn memory_clock_mhz(&self) -> Option<f64> {
        self.0.memory_clock_mhz
    }

    /// Every other metric by name
    async fn custom_metrics(&self) -> Json<&BTreeMap<String, f64>> {
        Json(&self.0.custom_metrics)
    }

    /// Labels of its series beyond host and GPU, where they agree
    async fn labels(&self) -> Json<&BTreeMap<String, String>> {
        Json(&self.0.labels)
    }
}
