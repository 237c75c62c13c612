//! What the flags say of a file whose header does not say it.

use nexus_common::keyspace::Mapping;

use crate::args::Args;

impl Args {
    /// The mapping that the flags make; none if they say nothing.
    pub(crate) fn mapping(&self) -> Option<Box<Mapping>> {
        let mapping = Mapping {
            host_is: self.csv_host.as_ref().map(ToString::to_string),
            gpu_is: self.csv_gpu.as_ref().map(ToString::to_string),
            utc_offset_seconds: self.csv_utc_offset,
            ..Mapping::default()
        };
        (mapping != Mapping::default()).then(|| Box::new(mapping))
    }
}
