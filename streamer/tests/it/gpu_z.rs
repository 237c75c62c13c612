//! Logs of GPU-Z and mapped columns, through the real streamer.

use nexus_common::{audit::AuditReport, testing::TestEtcd};

use crate::process::Case;

fn session(sensors: &str, hour: u32, rows: u32, value: &str) -> String {
    let row = |n| format!("2024-01-31 {hour:02}:{:02}:{:02} , {value}\r\n", n / 60, n % 60);
    format!("        Date        , {sensors}\r\n{}", (0..rows).map(row).collect::<String>())
}

fn done(report: &AuditReport) -> bool {
    report.lanes > 0 && report.lanes == report.lanes_done
}

#[tokio::test]
async fn sessions_of_gpu_z_are_shards_with_columns_of_their_own() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/gpu-z").await;
    let first = session("GPU Clock [MHz] , GPU Load [%] ,", 10, 300, "210.0 , - ,");
    let second = session("GPU Load [%] ,", 11, 200, "97 ,");
    let path = case.write("GPU-Z Sensor Log.txt", first + &second);
    let refused = case.start(&["--csv-file", path.to_str().unwrap()]);
    refused.wait_for_log("--csv-host and --csv-gpu").await;
    assert!(!refused.wait().await.success());
    let flags = ["--csv-file", path.to_str().unwrap(), "--csv-host", "pc-7", "--csv-gpu", "0"];
    let more = ["--csv-utc-offset", "-05:30", "--batch-size", "100"];
    let flags = [flags.as_slice(), &more].concat();
    // Left in the middle of either, and gone on with.
    let few = ["--backlog-max", "1", "--parallel-shards", "2"];
    let streamer = case.start(&[&flags[..], &few].concat());
    case.audited_until("both are begun", |r| r.rows.accepted >= 200).await;
    streamer.terminate().await;
    let streamer = case.start(&flags);
    let report = case.audited_until("all is read", done).await;
    assert_eq!((report.rows.offered, report.rows.accepted, report.lanes), (500, 500, 2));
    assert_eq!(report.samples.accepted, 500);
    streamer.terminate().await;
}

#[tokio::test]
async fn a_log_of_gpu_z_is_followed_into_the_next_session() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/gpu-z-follow").await;
    let first = session("GPU Clock [MHz] , GPU Load [%] ,", 10, 50, "210.0 , - ,");
    let path = case.write("log.txt", &first);
    let flags = ["--csv-file", path.to_str().unwrap(), "--follow", "--csv-host", "pc-7"];
    let flags = [flags.as_slice(), &["--csv-gpu", "0"]].concat();
    let streamer = case.start(&flags);
    case.audited_until("the first is read", |r| r.rows.accepted == 50).await;
    let second = session("GPU Load [%] , GPU Temperature [°C]", 11, 30, "97 , 40");
    case.write("log.txt", format!("{first}{second}"));
    case.audited_until("the second is read", |r| r.rows.accepted == 80).await;
    streamer.kill();
    // Whoever goes on is in the second session.
    let third = "2024-01-31 12:00:00 , 98 , 41\r\n";
    case.write("log.txt", format!("{first}{second}{third}"));
    let streamer = case.start(&flags);
    let report = case.audited_until("it goes on", |r| r.rows.offered == 81).await;
    assert_eq!((report.rows.accepted, report.samples.accepted), (81, 50 + 2 * 31));
    streamer.terminate().await;
}
