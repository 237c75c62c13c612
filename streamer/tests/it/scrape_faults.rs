//! Targets that are asked as they demand, and those that do not answer as they should: each is up
//! or down, says why once, and keeps nobody else from being asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use nexus_common::testing::TestEtcd;
use tokio::time::sleep;

use crate::{
    faulty::{Authority, Faulty},
    live::{queued, source},
    process::{Case, LOOK, SOON, Streamer},
};

const FLAGS: [&str; 2] = ["--backlog-max", "100000"];

/// By target: how often it was up and how often down, and the names of what it told.
type Told = BTreeMap<String, (usize, usize, BTreeSet<String>)>;

async fn told(case: &Case) -> Told {
    let mut told = Told::new();
    for ((_, _, metric, _), value) in queued(case).await {
        let (name, labels) = metric.split_once('[').unwrap();
        let target = labels.split('"').nth(3).unwrap_or_default().to_owned();
        let (up, down, names) = told.entry(target).or_default();
        match (name, value) {
            ("up", 1.0) => *up += 1,
            ("up", _) => *down += 1,
            _ if name.starts_with("scrape_") => {}
            _ => drop(names.insert(name.to_owned())),
        }
    }
    told
}

/// Waits until every one of these was asked three times: then it was either up or down.
async fn settled(case: &Case, streamer: &Streamer, expected: &[(String, bool, &str)]) -> Told {
    let since = Instant::now();
    loop {
        let told = told(case).await;
        let asked = |url: &String| told.get(url).is_some_and(|(up, down, _)| up + down >= 3);
        if expected.iter().all(|(url, ..)| asked(url)) {
            for (url, is_up, reason) in expected {
                let (up, down, _) = &told[url];
                assert_eq!((*up > 0, *down > 0), (*is_up, !*is_up), "{url}\n{}", streamer.log());
                let log = streamer.log();
                let mut lines = log.lines().filter(|line| line.contains(&format!("{url}\"")));
                if reason.is_empty() {
                    assert_eq!(lines.next(), None, "{url}");
                } else {
                    let line = lines.next().unwrap_or_default();
                    assert!(line.contains(reason), "{url}: {line}");
                    assert_eq!(lines.next(), None, "{url}: told once");
                }
            }
            return told;
        }
        assert!(since.elapsed() < SOON, "{told:#?}\n{}", streamer.log());
        sleep(LOOK).await;
    }
}

fn apply(case: &Case, sources: &str) {
    let file = case.write("s.yaml", format!("sources: [{sources}]"));
    let (good, said) = source(case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
}

#[tokio::test]
async fn a_target_that_does_not_answer_as_it_should_is_down_and_disturbs_nobody() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/faulty").await;
    let server = Faulty::start();
    let url = |path: &str| format!("http://{}/{path}", server.address);
    let expected = [
        ("good", true, ""),
        ("gzip", true, ""),
        ("many", true, "too many series"),
        ("hang", false, "timeout"),
        ("half", false, "timeout"),
        ("large", false, "more than 4096 bytes"),
        ("bomb", false, "more than 4096 bytes"),
        ("moved", false, "it answered 302, to /good; redirects are not followed"),
        ("broken", false, "it answered 500"),
        ("who", false, "it answered 401"),
    ]
    .map(|(path, up, reason)| (url(path), up, reason));
    let targets: Vec<String> =
        expected.iter().map(|(url, ..)| format!("{{url: \"{url}\"}}")).collect();
    let scrape = format!(
        "interval: 500ms, timeout: 200ms, shards: 1, series_max: 5, body_bytes_max: 4096, \
         targets: [{}]",
        targets.join(", ")
    );
    apply(&case, &format!("{{name: faulty, scrape: {{{scrape}}}}}"));
    let streamer = case.start(&FLAGS);
    let told = settled(&case, &streamer, &expected).await;
    streamer.terminate().await;
    let names = |path: &str| told[&url(path)].2.iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(names("gzip"), ["metric_0", "metric_1"]);
    assert_eq!(names("many").len(), 5, "as many as may be");
    assert!(names("half").is_empty() && names("moved").is_empty() && names("broken").is_empty());
}

#[tokio::test]
async fn targets_that_hang_leave_room_for_the_others() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/hung").await;
    let server = Faulty::start();
    // Many more than a shard asks at a time; each lets wait as long as the interval is.
    let hung = (0..200).map(|n| format!("{{url: \"http://{}/hang?{n}\"}}", server.address));
    let good = format!("http://{}/good", server.address);
    let targets: Vec<String> = hung.chain([format!("{{url: \"{good}\"}}")]).collect();
    let scrape =
        format!("interval: 400ms, timeout: 400ms, shards: 1, targets: [{}]", targets.join(", "));
    apply(&case, &format!("{{name: hung, scrape: {{{scrape}}}}}"));
    let streamer = case.start(&FLAGS);
    // At first nobody knows who hangs; without room of its own it would be asked one time in six.
    let since = Instant::now();
    while told(&case).await.get(&good).is_none_or(|(up, ..)| *up < 15) {
        assert!(since.elapsed() < SOON, "{:?}", told(&case).await.get(&good));
        sleep(LOOK).await;
    }
    let down: usize = told(&case).await.values().map(|(_, down, _)| down).sum();
    assert!(down >= 40, "the others are asked, too: {down}");
    streamer.terminate().await;
}

#[tokio::test]
async fn targets_are_asked_as_they_demand() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/demanding").await;
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    ours.sign("client");
    theirs.sign("client");
    let plain = Faulty::start();
    let secured = Faulty::secured(ours.server(None));
    let mutual = Faulty::secured(ours.server(Some(&ours)));
    let foreign = Faulty::secured(theirs.server(None));
    let secret = case.write("secrets/token", "secret\n");
    let wrong = case.write("secrets/wrong", "wrong\n");
    let key = case.write("secrets/client.key", std::fs::read(ours.path("client.key")).unwrap());
    let other = case.write("secrets/other.key", std::fs::read(theirs.path("client.key")).unwrap());
    let (ca, shown) = (ours.path("ca.pem"), ours.path("client.pem"));
    let (ca, shown, key) = (ca.display(), shown.display(), key.display());
    let mut sources = Vec::new();
    let mut add = |name: &str, url: &str, more: &str| {
        let scrape = format!("interval: 300ms, shards: 1, targets: [{{url: \"{url}\"}}]{more}");
        sources.push(format!("{{name: {name}, scrape: {{{scrape}}}}}"));
        url.to_owned()
    };
    let login = |file: &std::path::Path| {
        format!(", basic: {{user: ada, password_file: {}}}", file.display())
    };
    let token = |file: &std::path::Path| format!(", bearer: {{token_file: {}}}", file.display());
    let http = |path: &str| format!("http://{}/{path}", plain.address);
    let https = |server: &Faulty| format!("https://{}/good", server.address);
    let tls = format!(", ca_file: {ca}");
    let both = format!("{tls}, cert_file: {shown}, key_file: {key}");
    let expected = [
        (add("basic", &http("basic"), &login(&secret)), true, ""),
        (add("wrong", &http("basic?wrong"), &login(&wrong)), false, "it answered 401"),
        (add("bearer", &http("bearer"), &token(&secret)), true, ""),
        (add("tls", &https(&secured), &tls), true, ""),
        (add("foreign", &https(&foreign), &tls), false, "UnknownIssuer"),
        (add("mutual", &https(&mutual), &both), true, ""),
        (add("nobody", &format!("{}?nobody", https(&mutual)), &tls), false, "CertificateRequired"),
    ];
    // With a key that is another one's, or that lies elsewhere, nobody is asked.
    let odd = format!("{tls}, cert_file: {shown}, key_file: {}", other.display());
    let odd = add("odd", &format!("{}?odd", https(&secured)), &odd);
    let outside =
        format!("{tls}, cert_file: {shown}, key_file: {}", ours.path("client.key").display());
    let outside = add("outside", &format!("{}?outside", https(&secured)), &outside);
    apply(&case, &sources.join(", "));
    let secrets = case.path("secrets").display().to_string();
    let streamer = case.start(&[&FLAGS[..], &["--scrape-secrets-dir", &secrets]].concat());
    let told = settled(&case, &streamer, &expected).await;
    assert!(!told.contains_key(&odd) && !told.contains_key(&outside));
    streamer.wait_for_log("with the key of").await;
    streamer.wait_for_log("a secret must lie in").await;
    streamer.terminate().await;
}
