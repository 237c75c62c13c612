//! What one request, and what waits, may hold.

use nexus_common::sources::label_text::PAIRS_MAX;

/// Largest body as it is sent: a quarter of what it may unpack to, which is what snappy makes of
/// the least compressible labels.
pub(crate) const PACKED_BYTES_MAX: usize = 4 << 20;
/// Largest body unpacked: twice what any sender makes by itself (vmagent 8 MiB, OpenTelemetry's
/// collector 3 MB, Prometheus about 1 MB).
pub(crate) const UNPACKED_BYTES_MAX: usize = 16 << 20;
/// Most samples of a request: with any labels that is more than fits in one transaction.
pub(crate) const SAMPLES_MAX: usize = 1 << 17;
/// Most series of a request: each has a sample, most often one.
pub(crate) const SERIES_MAX: usize = 1 << 16;
/// Most labels of a series, identity included: as many as a line of an exporter may have.
pub(crate) const LABELS_MAX: usize = PAIRS_MAX;
/// Bodies that are taken in and read at the same time: together with what they unpack to they
/// hold at most 160 MiB.
pub(crate) const READ_AT_ONCE: usize = 8;
/// Requests that wait for a transaction: each at most as large as one.
pub(crate) const WAITING_MAX: usize = 64;
