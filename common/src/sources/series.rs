//! What a name and labels in Prometheus' model are of: which host, which GPU, which series.
//!
//! [`describe`] reads them. A [`Book`] remembers what it met: a line of text is read once from its
//! labels, then found again by its bytes, most often at the place where it stood last time.

use std::{borrow::Cow, collections::HashMap};

use super::label_text::parse_labels;
use crate::{
    keyspace::live::Rules,
    limits::{LABEL_VALUE_BYTES_MAX, SECTION_SERIES_MAX},
    model::{
        Blank, Gpu, GpuId, HostName, Labels, Metric, MetricName, SeriesSamples, metric_by_dcgm,
    },
};

/// Labels that say where a row was scraped or repeat its identity: they tell no series apart.
pub const DROPPED: [&str; 16] = [
    "__name__",
    "Hostname",
    "hostname",
    "UUID",
    "uuid",
    "gpu_uuid",
    "gpu",
    "gpu_id",
    "device",
    "modelName",
    "model_name",
    "instance",
    "job",
    "pci_bus_id",
    "DCGM_FI_DRIVER_VERSION",
    "driver_version",
];
/// The label that tells a GPU's MIG instances apart, and the one with the profile of each.
pub const MIG_INSTANCE: &str = "GPU_I_ID";
/// See [`MIG_INSTANCE`].
pub const MIG_PROFILE: &str = "GPU_I_PROFILE";

/// How metrics of SLURM's nodes begin, and the label that names the node: one exporter tells of
/// all.
const SLURM_NODE: &str = "slurm_node_";
/// See [`SLURM_NODE`].
const SLURM_NODE_LABEL: &str = "node";

/// What exporters before 2.0 called DCGM's fields.
const OLD_NAMES: [(&str, &str); 14] = [
    ("dcgm_sm_clock", "DCGM_FI_DEV_SM_CLOCK"),
    ("dcgm_memory_clock", "DCGM_FI_DEV_MEM_CLOCK"),
    ("dcgm_memory_temp", "DCGM_FI_DEV_MEMORY_TEMP"),
    ("dcgm_gpu_temp", "DCGM_FI_DEV_GPU_TEMP"),
    ("dcgm_power_usage", "DCGM_FI_DEV_POWER_USAGE"),
    ("dcgm_total_energy_consumption", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"),
    ("dcgm_pcie_replay_counter", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"),
    ("dcgm_gpu_utilization", "DCGM_FI_DEV_GPU_UTIL"),
    ("dcgm_mem_copy_utilization", "DCGM_FI_DEV_MEM_COPY_UTIL"),
    ("dcgm_enc_utilization", "DCGM_FI_DEV_ENC_UTIL"),
    ("dcgm_dec_utilization", "DCGM_FI_DEV_DEC_UTIL"),
    ("dcgm_xid_errors", "DCGM_FI_DEV_XID_ERRORS"),
    ("dcgm_fb_free", "DCGM_FI_DEV_FB_FREE"),
    ("dcgm_fb_used", "DCGM_FI_DEV_FB_USED"),
];

/// Most bytes of texts remembered: series whose labels never come again must not fill the memory.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// A text and the series it names, or why it is not taken.
type Met = (Box<[u8]>, Result<usize, Refused>);

/// Names and values of labels, as they were told.
pub type Pairs<'a> = [(&'a str, Cow<'a, str>)];

/// Why a series is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// A rule drops it: nothing is wrong with it.
    Rule,
    /// Not the format, or names, labels or a host that cannot be stored.
    Bad,
    /// More series than the target may have.
    TooMany,
}

/// What a series is of.
#[derive(Debug)]
pub struct Described {
    /// Its host.
    pub host: HostName,
    /// Its GPU; none if it is of the host itself.
    pub gpu: Option<Gpu>,
    /// What is measured, by the name that answers have.
    pub metric: MetricName,
    /// What else tells it apart.
    pub labels: Labels,
    /// Which values say that nothing was measured.
    pub absent: Absent,
}

/// Which values of a metric say that nothing was measured.
#[derive(Debug, Clone, Copy)]
pub struct Absent {
    blank: Blank,
    zero: bool,
}

impl Absent {
    fn of(known: Option<&Metric>) -> Self {
        Self {
            blank: known.map_or(Blank::Any, |m| m.blank),
            // Cards without the sensor report 0; no memory in use is at 0 degrees.
            zero: known.is_some_and(|m| m.dcgm == "DCGM_FI_DEV_MEMORY_TEMP"),
        }
    }

    /// Whether `value` is one of them.
    pub fn is(self, value: f64) -> bool {
        !value.is_finite() || self.blank.is_blank(value) || (self.zero && value == 0.0)
    }
}

/// A series that is taken.
#[derive(Debug)]
pub struct Known {
    /// Position in [`Book::hosts`].
    pub host: usize,
    /// Position among the GPUs of that host.
    pub gpu: Option<u32>,
    /// What is measured.
    pub metric: MetricName,
    /// What else tells it apart.
    pub labels: Labels,
    /// Which values say that nothing was measured.
    pub absent: Absent,
    /// The answer in which it was met last: twice in one is once too often.
    pub met: u64,
    /// Newest time that the exporter itself gave for it.
    pub newest: Option<i64>,
}

impl Known {
    /// It with one sample.
    pub fn sample(&self, at: i64, value: f64) -> SeriesSamples {
        SeriesSamples {
            gpu: self.gpu,
            metric: self.metric.clone(),
            labels: self.labels.clone(),
            timestamps: vec![at],
            values: vec![value],
        }
    }
}

/// A host with the GPUs that were met there.
#[derive(Debug)]
pub struct Place {
    /// The host.
    pub host: HostName,
    /// Its GPUs, in the order they were met.
    pub gpus: Vec<Gpu>,
}

/// What is known of one target's series.
#[derive(Debug, Default)]
pub struct Book {
    /// Hosts, in the order they were met.
    pub hosts: Vec<Place>,
    /// Series, in the order they were met.
    pub series: Vec<Known>,
    by_host: HashMap<HostName, usize>,
    by_text: HashMap<Box<[u8]>, Result<usize, Refused>>,
    text_bytes: usize,
    by_identity: HashMap<(usize, Option<u32>, MetricName, Labels), usize>,
    /// The texts in the order of the last answer.
    order: Vec<Met>,
}

impl Book {
    /// The text that stood at `place` last time; empty if there is none.
    pub fn expected(&self, place: usize) -> &[u8] {
        self.order.get(place).map_or(&[], |(text, _)| text)
    }

    /// The series that `text` names, told by the target of this host and URL.
    pub fn find(
        &mut self,
        place: usize,
        text: &[u8],
        target: (&HostName, &str),
        rules: &Rules,
    ) -> Result<usize, Refused> {
        if let Some((expected, found)) = self.order.get(place)
            && **expected == *text
        {
            return *found;
        }
        let found = match self.by_text.get(text) {
            Some(found) => *found,
            None => self.learn(text, target, rules),
        };
        let entry = (Box::from(text), found);
        match self.order.get_mut(place) {
            Some(slot) => *slot = entry,
            // Lines stand there one behind the other, so this is the next place.
            None => self.order.push(entry),
        }
        found
    }

    fn learn(
        &mut self,
        text: &[u8],
        target: (&HostName, &str),
        rules: &Rules,
    ) -> Result<usize, Refused> {
        if self.is_full() {
            return Err(Refused::TooMany);
        }
        let found = self.read(text, target, rules);
        self.text_bytes += text.len();
        self.by_text.insert(Box::from(text), found);
        found
    }

    /// Whether so many texts were met that it is better to begin a new one.
    pub fn is_full(&self) -> bool {
        self.by_text.len() >= SECTION_SERIES_MAX || self.text_bytes >= TEXT_BYTES_MAX
    }

    fn read(
        &mut self,
        text: &[u8],
        (target, url): (&HostName, &str),
        rules: &Rules,
    ) -> Result<usize, Refused> {
        let text = std::str::from_utf8(text).map_err(|_| Refused::Bad)?;
        let (name, inner) = text.split_once('{').unwrap_or((text, "}"));
        let name = name.trim_end();
        if !rules.takes(name) {
            return Err(Refused::Rule); // before its labels are read
        }
        let inner = inner.strip_suffix('}').ok_or(Refused::Bad)?;
        let raw = parse_labels(inner).map_err(|_| Refused::Bad)?;
        let described = describe(name, &raw, target, Some(url), rules)?;
        Ok(self.take(described))
    }

    /// The series that was described, whether it was met before or not.
    fn take(&mut self, described: Described) -> usize {
        let Described { host, gpu, metric, labels, absent } = described;
        let host = self.host(host);
        let gpu = gpu.and_then(|gpu| self.gpu(host, gpu));
        self.series(host, gpu, metric, labels, absent)
    }

    fn host(&mut self, host: HostName) -> usize {
        *self.by_host.entry(host).or_insert_with_key(|host| {
            self.hosts.push(Place { host: host.clone(), gpus: Vec::new() });
            self.hosts.len() - 1
        })
    }

    fn gpu(&mut self, host: usize, gpu: Gpu) -> Option<u32> {
        let gpus = &mut self.hosts.get_mut(host)?.gpus;
        let nth = gpus.iter().position(|known| known.id == gpu.id).unwrap_or(gpus.len());
        match gpus.get_mut(nth) {
            Some(known) => *known = gpu, // as it was last described
            None => gpus.push(gpu),
        }
        u32::try_from(nth).ok()
    }

    /// Labels that tell no series apart are gone by now: two texts may name the same series.
    fn series(
        &mut self,
        host: usize,
        gpu: Option<u32>,
        metric: MetricName,
        labels: Labels,
        absent: Absent,
    ) -> usize {
        let series = &mut self.series;
        *self.by_identity.entry((host, gpu, metric, labels)).or_insert_with_key(|key| {
            let (host, gpu, metric, labels) = key.clone();
            series.push(Known { host, gpu, metric, labels, absent, met: 0, newest: None });
            series.len() - 1
        })
    }
}

/// Reads what a series of this name with these labels is of. `host` is who told it, for what does
/// not say itself which host it is of. Several exporters of a host tell of the same things about
/// themselves: what is of no GPU gets `target` as a label, if there is one.
///
/// # Errors
/// [`Refused::Rule`] if it is not wanted, [`Refused::Bad`] if it cannot be stored.
pub fn describe(
    name: &str,
    labels: &Pairs<'_>,
    host: &HostName,
    target: Option<&str>,
    rules: &Rules,
) -> Result<Described, Refused> {
    if !rules.takes(name) {
        return Err(Refused::Rule);
    }
    let field = OLD_NAMES.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new);
    let known = metric_by_dcgm(field);
    let name = rules.rename.get(name).map_or(known.map_or(name, |m| m.name), String::as_str);
    let metric = MetricName::new(name).map_err(|_| Refused::Bad)?;
    let is_gpu = field.starts_with("DCGM_") || !get(labels, &["UUID", "gpu_uuid"]).is_empty();
    let is_node = !is_gpu && field.starts_with(SLURM_NODE);
    let told_host = match (is_gpu, is_node) {
        (true, _) => get(labels, &["Hostname", "hostname"]),
        (_, true) => get(labels, &[SLURM_NODE_LABEL]),
        _ => "",
    };
    let host = match told_host {
        "" => host.clone(),
        own => HostName::new(own).map_err(|_| Refused::Bad)?,
    };
    let gpu = if is_gpu { read_gpu(labels, &host)? } else { None };
    let own = labels.iter().filter(|(name, _)| gpu.is_none() || !is_identity(name));
    let own = own.filter(|(name, _)| !(is_node && *name == SLURM_NODE_LABEL));
    let own = own.map(|(name, value)| (*name, value.as_ref()));
    let target = target.filter(|_| gpu.is_none() && get(labels, &["target"]).is_empty());
    let labels = Labels::new(own.chain(target.map(|target| ("target", target))));
    let absent = Absent::of(known);
    Ok(Described { host, gpu, metric, labels: labels.map_err(|_| Refused::Bad)?, absent })
}

/// The host of an address, which may have a port: `dgx-1:9400`, `[::1]:9100`, `10.0.0.1`.
pub fn host_of_address(address: &str) -> &str {
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => address,
    };
    host.trim_matches(['[', ']'])
}

fn is_identity(name: &str) -> bool {
    DROPPED.contains(&name) || [MIG_INSTANCE, MIG_PROFILE].contains(&name)
}

/// The value of the first label that has one of these names and is not empty; else nothing.
pub fn get<'a>(raw: &'a Pairs<'_>, names: &[&str]) -> &'a str {
    let found = raw.iter().find(|(name, value)| names.contains(name) && !value.is_empty());
    found.map_or("", |(_, value)| value.as_ref())
}

/// None where a DCGM metric is of the host (or of a switch) and names no GPU.
fn read_gpu(raw: &Pairs<'_>, host: &HostName) -> Result<Option<Gpu>, Refused> {
    let uuid = get(raw, &["UUID", "uuid", "gpu_uuid"]);
    let index = get(raw, &["gpu", "gpu_id"]);
    let mut id = match (uuid, index) {
        ("", "") => return Ok(None),
        ("", index) => format!("{host}:{index}"),
        (uuid, _) => uuid.to_owned(),
    };
    // What describes a GPU is stored with it, and as bounded as a label.
    let long =
        |text: &str| text.len() > LABEL_VALUE_BYTES_MAX || text.chars().any(char::is_control);
    if raw.iter().any(|(name, value)| is_identity(name) && long(value)) {
        return Err(Refused::Bad);
    }
    let instance = get(raw, &[MIG_INSTANCE]);
    if !instance.is_empty() {
        id = format!("{id}:{instance}");
    }
    let text = |names: &[&str]| get(raw, names).to_owned();
    Ok(Some(Gpu {
        id: GpuId::new(&id).map_err(|_| Refused::Bad)?,
        uuid: uuid.to_owned(),
        index: index.to_owned(),
        device: text(&["device"]),
        model: text(&["modelName", "model_name"]),
        driver: text(&["DCGM_FI_DRIVER_VERSION", "driver_version"]),
        mig_profile: text(&[MIG_PROFILE]),
    }))
}
