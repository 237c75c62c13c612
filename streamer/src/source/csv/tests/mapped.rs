//! Files whose header does not say all: logs of GPU-Z, and columns that are mapped.

use nexus_common::keyspace::Mapping;

use super::*;

/// Every sample of every shard, in order of time.
fn read_as(text: impl AsRef<[u8]>, mapping: Mapping) -> (Vec<String>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in.csv");
    std::fs::write(&path, text).unwrap();
    let file = CsvFile::open_as(&path, Some(Box::new(mapping))).unwrap();
    let (mut all, mut rejected) = (Vec::new(), 0);
    for range in file.shards(None).unwrap() {
        let file = file.clone().at_shard(range.start).unwrap();
        let from = range.start;
        let mut reader = ShardReader::open(&path, file.layout.clone(), range, from).unwrap();
        let batch = reader.read_batch(&BatchLimits::default()).unwrap();
        assert!(batch.done);
        rejected += batch.rows_rejected();
        all.extend(lines(&batch.hosts));
    }
    all.sort();
    (all, rejected)
}

fn of_pc() -> Mapping {
    Mapping {
        host_is: Some("pc-7".to_owned()),
        gpu_is: Some("0".to_owned()),
        utc_offset_seconds: 7200,
        ..Mapping::default()
    }
}

#[test]
fn a_log_of_gpu_z_is_read_session_by_session() {
    // As it writes it: padded, a comma at each end, the degree in CP1252, nothing measured as -.
    let first =
        b"        Date        , GPU Clock [MHz]   , GPU Temperature [\xb0C] , GPU Load [%] ,\r\n\
        1970-01-01 02:00:01 ,   210.0           ,   45.5   ,  -  ,\r\n\
        1970-01-01 02:00:02 ,   1980.0          ,   46.0   ,  97  ,\r\n";
    // Another card, and the next version: other columns, in another order, no last comma.
    let second = "Date , GPU Load [%] , Fan Speed (%) [%] , Fan Speed (%) [%] , GPU Temperature [°C]\r\n\
        1970-01-01 02:00:03 , 5 , 30 , 31 , 40 ,\r\n\
        1970-01-01 02:00:04 , 6 , 30";
    let (lines, rejected) = read_as([&first[..], second.as_bytes()].concat(), of_pc());
    let expected = [
        "pc-7 pc-7:0 fan_speed_percent 3000 30",
        "pc-7 pc-7:0 fan_speed_percent_2 3000 31",
        "pc-7 pc-7:0 gpu_clock_mhz 1000 210",
        "pc-7 pc-7:0 gpu_clock_mhz 2000 1980",
        "pc-7 pc-7:0 gpu_utilization 2000 97",
        "pc-7 pc-7:0 gpu_utilization 3000 5",
        "pc-7 pc-7:0 temperature 1000 45.5",
        "pc-7 pc-7:0 temperature 2000 46",
        "pc-7 pc-7:0 temperature 3000 40",
    ];
    assert_eq!((lines, rejected), (expected.map(str::to_owned).to_vec(), 1));
}

#[test]
fn a_log_of_gpu_z_is_of_nobody_unless_that_is_said() {
    let fixture = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(fixture.path(), "Date , GPU Load [%] ,\n").unwrap();
    let check = |mapping: Mapping| {
        let error = CsvFile::open_as(fixture.path(), Some(Box::new(mapping))).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("--csv-host and --csv-gpu"), "{cause}");
    };
    check(Mapping::default());
    check(Mapping { gpu_is: None, ..of_pc() });
    check(Mapping { host_is: None, ..of_pc() });
}

#[test]
fn columns_of_any_name_are_mapped() {
    let named = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let text = |name: &str| Some(name.to_owned());
    let wide = Mapping {
        time: text("When"),
        utc_offset_seconds: -3600,
        host: text("Computer"),
        gpu: text("Card"),
        metrics: named(&[("Hot [C]", "temperature"), ("Fan, rpm", "fan_rpm")]),
        labels: named(&[("Rack", "rack")]),
        ..Mapping::default()
    };
    let rows = "When,\"Fan, rpm\",Card,Hot [C],Computer,Rack,Note\n\
                1970-01-01 00:00:00,900,GPU-1,50,a,r1,x\n\
                1970-01-01T00:00:07Z,901,3,51,b,r2,y\n";
    let (lines, rejected) = read_as(rows, wide);
    let expected = [
        "a GPU-1 fan_rpm rack=r1 3600000 900",
        "a GPU-1 temperature rack=r1 3600000 50",
        "b b:3 fan_rpm rack=r2 7000 901",
        "b b:3 temperature rack=r2 7000 51",
    ];
    assert_eq!((lines, rejected), (expected.map(str::to_owned).to_vec(), 0));

    let long = Mapping {
        time: text("t"),
        host: text("h"),
        gpu_is: text("0"),
        metric: text("what"),
        value: text("much"),
        ..Mapping::default()
    };
    let rows = "what,much,h,t\nDCGM_FI_DEV_GPU_TEMP,50,a,1970-01-01T00:00:01Z\nmine,,a,1970-01-01T00:00:01Z\n";
    let (lines, rejected) = read_as(rows, long.clone());
    assert_eq!((lines, rejected), (vec!["a a:0 temperature 1000 50".to_owned()], 0));

    let fixture = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(fixture.path(), "what,much,host,t\n").unwrap();
    let error = CsvFile::open_as(fixture.path(), Some(Box::new(long))).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("\"h\", which is not there: saw [what, much, host, t]"), "{cause}");
}
