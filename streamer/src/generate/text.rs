//! Rows as text. What repeats is rendered once a GPU; a row is put together from it.

use std::io;

use csv::{QuoteStyle, WriterBuilder};

use super::model::{FIELDS, Field, Readings};

/// First line of the long layout.
pub(super) const LONG_HEADER: &str = "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,\
                                      container,pod,namespace,value,labels_raw\n";
/// First line of the wide layout.
pub(super) const WIDE_HEADER: &str = "timestamp,gpu_id,hostname,uuid,device,modelname,gpu_utilization,memory_utilization,\
     memory_used_mb,memory_free_mb,temperature,power_draw,sm_clock_mhz,memory_clock_mhz\n";
/// Columns of the wide layout that hold values.
const WIDE_VALUES: usize = 8;

const MODEL: &str = "NVIDIA H100 80GB HBM3";
const DRIVER: &str = "535.129.03";
/// Stands for the metric's name while labels are rendered; no other label contains it.
const METRIC_MARK: &str = "@";

/// Which GPU a row is about.
#[derive(Debug, Clone)]
pub(super) struct Gpu {
    pub(super) host: String,
    pub(super) index: u64,
    pub(super) uuid: String,
}

fn render(fields: &[&str], style: QuoteStyle) -> io::Result<String> {
    let mut writer = WriterBuilder::new().quote_style(style).from_writer(Vec::new());
    writer.write_record(fields)?;
    let bytes = writer.into_inner().map_err(|e| io::Error::other(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Rows of one GPU in the long layout.
#[derive(Debug)]
pub(super) struct LongRows {
    identity: String,
    labels_head: String,
    labels_tail: String,
}

impl LongRows {
    pub(super) fn new(gpu: &Gpu) -> io::Result<Self> {
        let Gpu { host, index, uuid } = gpu;
        let index = index.to_string();
        let device = format!("nvidia{index}");
        let identity = [&index, &device, uuid, MODEL, host, "", "", ""];
        let labels = format!(
            "DCGM_FI_DRIVER_VERSION=\"{DRIVER}\",Hostname=\"{host}\",UUID=\"{uuid}\",\
             __name__=\"{METRIC_MARK}\",device=\"{device}\",gpu=\"{index}\",\
             instance=\"{host}:9400\",job=\"dgx_dcgm_exporter\",modelName=\"{MODEL}\""
        );
        let labels = render(&[&labels], QuoteStyle::Always)?;
        let (head, tail) = labels.split_once(METRIC_MARK).unwrap_or((&labels, ""));
        Ok(Self {
            identity: render(&identity, QuoteStyle::Always)?,
            labels_head: head.to_owned(),
            labels_tail: tail.to_owned(),
        })
    }

    /// Appends one row.
    pub(super) fn write(&self, out: &mut Vec<u8>, time: &str, field: &Field, reading: i64) {
        let push = |out: &mut Vec<u8>, text: &str| out.extend_from_slice(text.as_bytes());
        push(out, "\"");
        push(out, time);
        push(out, "\",\"");
        push(out, field.dcgm);
        push(out, "\",");
        push(out, &self.identity);
        push(out, ",\"");
        write_reading(out, field, reading);
        push(out, "\",");
        push(out, &self.labels_head);
        push(out, field.dcgm);
        push(out, &self.labels_tail);
        push(out, "\n");
    }
}

/// Rows of one GPU in the wide layout.
#[derive(Debug)]
pub(super) struct WideRows {
    identity: String,
}

impl WideRows {
    pub(super) fn new(gpu: &Gpu) -> io::Result<Self> {
        let index = gpu.index.to_string();
        let device = format!("nvidia{index}");
        let fields = [&*index, &gpu.host, &gpu.uuid, &device, MODEL];
        Ok(Self { identity: render(&fields, QuoteStyle::Necessary)? })
    }

    /// Appends one row with the fields that `due` says; none if it would be empty. Returns how
    /// many values it has.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        time: &str,
        readings: &Readings,
        due: impl Fn(usize, &Field) -> bool,
    ) -> u64 {
        let mut cells: [Option<(&Field, i64)>; WIDE_VALUES] = [None; WIDE_VALUES];
        for (nth, (field, reading)) in FIELDS.iter().zip(readings).enumerate() {
            let cell = field.column.and_then(|column| cells.get_mut(column));
            if let Some(cell) = cell.filter(|_| due(nth, field)) {
                *cell = Some((field, *reading));
            }
        }
        let values = cells.iter().flatten().count() as u64;
        if values == 0 {
            return 0;
        }
        out.extend_from_slice(time.as_bytes());
        out.push(b',');
        out.extend_from_slice(self.identity.as_bytes());
        for cell in cells {
            out.push(b',');
            if let Some((field, reading)) = cell {
                write_reading(out, field, reading);
            }
        }
        out.push(b'\n');
        values
    }
}

fn write_reading(out: &mut Vec<u8>, field: &Field, reading: i64) {
    if !field.milli {
        return write_number(out, reading.unsigned_abs());
    }
    write_number(out, (reading / 1000).unsigned_abs());
    let thousandths = (reading % 1000).unsigned_abs();
    // Each below 10, so each is one digit.
    let digit = |n: u64| b'0' + (n % 10) as u8;
    out.extend([b'.', digit(thousandths / 100), digit(thousandths / 10), digit(thousandths)]);
}

/// Decimal digits; readings are never negative.
fn write_number(out: &mut Vec<u8>, number: u64) {
    let start = out.len();
    let mut rest = number;
    loop {
        out.push(b'0' + (rest % 10) as u8); // below 10, so one digit
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        let uuid = "GPU-00000000-1111-2222-3333-444444444444".to_owned();
        Gpu { host: "dgx-001".to_owned(), index: 0, uuid }
    }

    #[test]
    fn a_long_row_is_what_the_exporter_writes() {
        let expected = r#""2025-07-18T20:42:34Z","DCGM_FI_DEV_GPU_UTIL","0","nvidia0","GPU-00000000-1111-2222-3333-444444444444","NVIDIA H100 80GB HBM3","dgx-001","","","","97","DCGM_FI_DRIVER_VERSION=""535.129.03"",Hostname=""dgx-001"",UUID=""GPU-00000000-1111-2222-3333-444444444444"",__name__=""DCGM_FI_DEV_GPU_UTIL"",device=""nvidia0"",gpu=""0"",instance=""dgx-001:9400"",job=""dgx_dcgm_exporter"",modelName=""NVIDIA H100 80GB HBM3""""#;
        let mut out = Vec::new();
        let rows = LongRows::new(&gpu()).unwrap();
        rows.write(&mut out, "2025-07-18T20:42:34Z", &FIELDS[0], 97);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn a_wide_row_leaves_out_what_is_not_due() {
        let rows = WideRows::new(&gpu()).unwrap();
        let readings = [97, 40, 412_007, 61, 70_000, 11_559, 0, 0, 1980, 2619];
        let write = |due: fn(usize, &Field) -> bool| {
            let mut out = Vec::new();
            let values = rows.write(&mut out, "T", &readings, due);
            (values, String::from_utf8(out).unwrap())
        };
        let identity = "T,0,dgx-001,GPU-00000000-1111-2222-3333-444444444444,nvidia0,\
                        NVIDIA H100 80GB HBM3";
        let full = format!("{identity},97,40,70000,11559,61,412.007,1980,2619\n");
        assert_eq!(write(|_, _| true), (8, full));
        let some = format!("{identity},97,40,,,,412.007,,\n");
        assert_eq!(write(|_, f| f.family == 0), (3, some));
        assert_eq!(write(|_, f| f.family == 2), (0, String::new()));
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        let check = |number: u64| {
            let mut out = b"x".to_vec();
            write_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{number}"));
        };
        for number in [0, 7, 10, 81_559, u64::MAX] {
            check(number);
        }
    }
}
