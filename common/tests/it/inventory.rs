//! Hosts and GPUs are described once, and again when what is told of them changes.

use nexus_common::{
    block::Section,
    etcd::Etcd,
    keyspace::{GpuRecord, Key, from_json},
    model::{Gpu, HostSamples, Labels, SeriesSamples},
    store::{Description, Inventory},
    testing::TestEtcd,
};

use crate::given::{cluster, host};

fn told(driver: &str, metric: &str) -> Section {
    let gpu = Gpu {
        id: "GPU-a".parse().unwrap(),
        uuid: "GPU-a".to_owned(),
        index: "0".to_owned(),
        device: String::new(),
        model: "H100".to_owned(),
        driver: driver.to_owned(),
        mig_profile: String::new(),
    };
    let series = SeriesSamples {
        gpu: Some(0),
        metric: metric.parse().unwrap(),
        labels: Labels::default(),
        timestamps: vec![1],
        values: vec![1.0],
    };
    let told = HostSamples { host: host("a"), gpus: vec![gpu], series: vec![series] };
    Section::encode(&told).unwrap()
}

async fn driver(etcd: &Etcd) -> String {
    let key = Key::Gpu(cluster(), host("a"), "GPU-a".parse().unwrap());
    let entry = etcd.get(&etcd.keyspace().key(&key)).await.unwrap().unwrap();
    from_json::<GpuRecord>(&entry.key, &entry.value).unwrap().driver
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_described_is_known_until_something_of_the_host_changes() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let inventory = Inventory::open(etcd.clone()).await.unwrap();
    let describe = async |section: &Section| {
        let description = Description::of(&cluster(), section).unwrap();
        inventory.describe(&description).await.unwrap();
    };
    let known = |section: &Section| inventory.is_described(&cluster(), section);
    let (old, also_old, new) =
        (told("535", "temperature"), told("535", "load"), told("550", "load"));
    assert!(!known(&old));
    describe(&old).await;
    assert!(known(&old) && !known(&also_old));
    describe(&also_old).await;
    assert!(known(&old) && known(&also_old), "they say the same of the GPU");
    describe(&new).await;
    assert_eq!(driver(&etcd).await, "550");
    assert!(known(&new) && !known(&old), "what comes again has to be written again");
    describe(&old).await;
    assert_eq!(driver(&etcd).await, "535");
    assert!(!known(&new));
    let elsewhere = "elsewhere".parse().unwrap();
    assert!(!inventory.is_described(&elsewhere, &old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_series_keep_changing_is_remembered_within_bounds() {
    let server = TestEtcd::start();
    let inventory = Inventory::open(server.connect().await).await.unwrap();
    let sections: Vec<Section> = (0..70).map(|i| told("535", &format!("metric_{i}"))).collect();
    for section in &sections {
        let description = Description::of(&cluster(), section).unwrap();
        inventory.describe(&description).await.unwrap();
        assert!(inventory.is_described(&cluster(), section));
    }
    let known = sections.iter().filter(|section| inventory.is_described(&cluster(), section));
    assert_eq!(known.count(), 6, "of 70, 64 were forgotten together");
}
