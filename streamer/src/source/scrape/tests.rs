use proptest::prelude::*;

use super::*;

fn reading() -> Reading {
    Reading { rules: Rules::default(), series_max: 1000, honour_times: false }
}

fn reader() -> Reader {
    Reader::new("node-1".parse().unwrap(), "t")
}

/// What was read, a line a sample: `host gpu metric labels time value`.
fn told(answer: &Answered) -> Vec<String> {
    let mut lines = Vec::new();
    for host in &answer.hosts {
        for series in &host.series {
            let gpu = series.gpu.map_or("-", |nth| host.gpus[nth as usize].id.as_str());
            let labels: Vec<String> =
                series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let (at, value) = (series.timestamps[0], series.values[0]);
            let (host, metric, labels) = (&host.host, &series.metric, labels.join(","));
            lines.push(format!("{host} {gpu} {metric} {{{labels}}} {at} {value}"));
        }
    }
    lines
}

const NEW: &str = r#"# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",pci_bus_id="00:01",device="nvidia0",modelName="H100",Hostname="dgx-1",DCGM_FI_DRIVER_VERSION="535",container="",pod="train-0"} 61
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",device="nvidia0",modelName="H100",Hostname="dgx-1",GPU_I_ID="3",GPU_I_PROFILE="1g.10gb"} 62
DCGM_FI_DEV_XID_ERRORS{gpu="1",UUID="GPU-b",Hostname="dgx-1"} 9223372036854775794
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="1",UUID="GPU-b",Hostname="dgx-1"} 0.25
"#;

#[test]
fn a_dcgm_exporter_of_today_tells_of_its_gpus() {
    let answer = reader().read(NEW.as_bytes(), Format::Text, 7, &reading());
    let expected = [
        "dgx-1 GPU-a temperature {pod=train-0} 7 61",
        "dgx-1 GPU-a:3 temperature {} 7 62",
        "dgx-1 GPU-b DCGM_FI_PROF_PIPE_TENSOR_ACTIVE {} 7 0.25",
    ];
    assert_eq!(told(&answer), expected);
    assert_eq!((answer.samples, answer.absent, answer.refused.len()), (3, 1, 0));
    let gpu = &answer.hosts[0].gpus[0];
    assert_eq!((&*gpu.index, &*gpu.model, &*gpu.driver), ("0", "H100", "535"));
    assert_eq!(answer.hosts[0].gpus[1].mig_profile, "1g.10gb");
}

#[test]
fn an_old_one_and_any_other_exporter_do_too() {
    let check = |line: &str, expected: &str| {
        let answer = reader().read(line.as_bytes(), Format::Text, 7, &reading());
        assert_eq!(told(&answer), [expected], "{line}");
    };
    check("dcgm_gpu_temp{gpu=\"0\",uuid=\"GPU-a\"} 50", "node-1 GPU-a temperature {} 7 50");
    check("dcgm_gpu_temp{gpu=\"0\"} 50", "node-1 node-1:0 temperature {} 7 50");
    check("DCGM_FI_DEV_X 1", "node-1 - DCGM_FI_DEV_X {target=t} 7 1");
    check("node_disk_io{device=\"sda\"} 1", "node-1 - node_disk_io {device=sda,target=t} 7 1");
    check("node_load1 0.5 1700000000000", "node-1 - node_load1 {target=t} 7 0.5");
    let node = "slurm_node_cpu_alloc{node=\"dgx-7\",status=\"mixed\"} 16";
    check(node, "dgx-7 - slurm_node_cpu_alloc {status=mixed,target=t} 7 16");
    check("slurm_gpus_alloc 61", "node-1 - slurm_gpus_alloc {target=t} 7 61");
}

#[test]
fn lines_that_cannot_be_taken_are_counted() {
    let text = "a 1\na 2\nb{x=\"1\" 3\nc x\n9d 1\ne NaN\nf{l=\"\\u\"} 1\ng 1";
    let answer = reader().read(text.as_bytes(), Format::Text, 7, &reading());
    assert_eq!(told(&answer), ["node-1 - a {target=t} 7 1", "node-1 - g {target=t} 7 1"]);
    assert_eq!(answer.absent, 1);
    let refused: Vec<_> = answer.refused.into_iter().collect();
    assert_eq!(refused, [("bad line", 2), ("bad series", 2), ("series twice", 1)]);
    let few = Reading { series_max: 2, ..reading() };
    let answer = reader().read(b"a 1\nb 1\nc 1\nd 1\n", Format::Text, 7, &few);
    assert_eq!((answer.samples, answer.refused.get("too many series")), (2, Some(&2)));
}

#[test]
fn rules_drop_and_rename() {
    let rules = Rules {
        keep: vec!["node_*".to_owned()],
        drop: vec!["*_total".to_owned()],
        rename: [("node_load1".to_owned(), "load".to_owned())].into(),
    };
    let how = Reading { rules, ..reading() };
    let text = "node_load1 1\nnode_x_total 2\ngo_goroutines 3\nnode_y{device=\"sda\"} 4\n";
    let answer = reader().read(text.as_bytes(), Format::Text, 7, &how);
    assert_eq!(
        told(&answer),
        ["node-1 - load {target=t} 7 1", "node-1 - node_y {device=sda,target=t} 7 4"]
    );
    assert!(answer.refused.is_empty());
}

#[test]
fn times_of_the_exporter_are_taken_once_and_only_when_asked_for() {
    let mut reader = reader();
    let how = Reading { honour_times: true, ..reading() };
    let mut check = |text: &str, expected: &[&str]| {
        let answer = reader.read(text.as_bytes(), Format::Text, 7, &how);
        assert_eq!(told(&answer), expected, "{text}");
    };
    // Who asked before us may have taken the first already.
    check("a 1 100\nb 1\n", &["node-1 - b {target=t} 7 1"]);
    check("a 1 100\nb 1\n", &["node-1 - b {target=t} 7 1"]);
    check("a 2 200\n", &["node-1 - a {target=t} 200 2"]);
    check("a 2 150\n", &[]);
    check("new 5 250\n", &["node-1 - new {target=t} 250 5"]);
    let plain =
        Reader::new("n".parse().unwrap(), "t").read(b"a 1 100\n", Format::Text, 7, &reading());
    assert_eq!(told(&plain), ["n - a {target=t} 7 1"]);
}

proptest! {
    #[test]
    fn no_answer_makes_it_fail_and_memory_changes_nothing(
        first in proptest::collection::vec("[ab]\\{?[ab=\",]{0,8}\\}? [0-9]{1,3}", 0..12),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let text = first.join("\n");
        let mut warm = reader();
        warm.read(&bytes, Format::Text, 1, &reading());
        warm.read(text.as_bytes(), Format::Text, 1, &reading());
        let again = warm.read(text.as_bytes(), Format::Text, 7, &reading());
        let fresh = reader().read(text.as_bytes(), Format::Text, 7, &reading());
        let sorted = |answer: &Answered| { let mut all = told(answer); all.sort(); all };
        prop_assert_eq!(sorted(&again), sorted(&fresh));
        prop_assert_eq!(again.refused, fresh.refused);
    }
}
