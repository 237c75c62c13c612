//! What is measured: identities, time, metrics, samples. Pure: no I/O, no clock.

mod id;
mod metric;
mod sample;
mod time;

pub use id::{
    ClusterId, GpuId, HostName, IdError, InstanceId, Lane, MetricName, PartitionId, Role, ShardId,
    SourceId,
};
pub use metric::{Blank, METRICS, Metric, metric_by_dcgm, metric_by_name};
pub use sample::{Gpu, HostSamples, Labels, LabelsError, SeriesSamples};
pub use time::{BucketId, Timestamp, TimestampError};
