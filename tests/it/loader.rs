//! Which boot file a machine gets, on real firmware: what stalls is found out and passed over, UEFI boots by HTTP, and with
//! Secure Boot. And `boot explain`, which says all of it beforehand and changes nothing.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use rackline::api::{self, Shared};
use rackline::bmc::{Fleet, Settings};
use rackline::boot::Policy;
use rackline::boot::config::BootConfig;
use rackline::boot::dhcp::Dhcp;
use rackline::boot::explain::{Explainer, Explanation};
use rackline::boot::firmware::Files;
use rackline::boot::loader::Loaders;
use rackline::boot::monitor::Monitor;
use rackline::boot::script::Scripts;
use rackline::boot::{BootAnswer, Sighting, Stage};
use rackline::engine::{Engine, SeedFacts, Site};
use rackline::image::{Catalogue, SigningKey};
use rackline::machine::{ClientArch, MacAddr};
use rackline::store::Db;
use rackline::store::seal::Seal;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

const CONFIG: &str = r#"
    url = "http://10.77.0.1"
    interfaces = [{ name = "lab0", address = "10.77.0.1" }]
    [[subnets]]
    network = "10.77.0.0/16"
    pools = ["10.77.2.0-10.77.2.255"]
    reservations = [{ mac = "52:54:00:77:00:01", address = "10.77.9.9" }]
"#;

async fn engine(dir: &Path) -> Engine {
    let site = Site {
        db: Db::open(dir).await.unwrap(),
        seal: Seal::load_or_make(&dir.join("site.key")).unwrap(),
        key: SigningKey::load_or_create(&dir.join("signing.key")).unwrap(),
        fleet: Fleet::new(Settings::default()),
        seed: SeedFacts { url: "http://10.77.0.1".into(), kernel_floor: "6.1".into() },
        boot_limit: 6,
        switches: Arc::default(),
    };
    Engine::start(site, CancellationToken::new()).await.unwrap()
}

/// The API for people, with a boot configuration and no sockets.
fn people(dir: &Path, engine: &Engine, config: &BootConfig) -> axum::Router {
    let key = SigningKey::load_or_create(&dir.join("signing.key")).unwrap().public();
    let scripts = Arc::new(Scripts::new(config, &key.to_string()).unwrap());
    let files = Arc::new(Files::installed().unwrap());
    let policy: Arc<dyn Policy> = Arc::new(engine.clone());
    let (learns, _) = tokio::sync::mpsc::channel(1);
    let loaders = Arc::new(Loaders::new(config, files, scripts, policy.clone(), vec![], learns).unwrap());
    let dhcp = Arc::new(Mutex::new(Dhcp::new(config, [], loaders.clone(), Arc::default(), policy.clone())));
    let monitor = Monitor::new(dhcp.clone(), config, Arc::default());
    let boot = Arc::new(Explainer { dhcp, loaders, policy, preview: Arc::new(engine.clone()) });
    let catalogue = Arc::new(Catalogue::open(&dir.join("images"), &[key]).unwrap());
    api::people(Shared { engine: engine.clone(), catalogue, boot, monitor, ssh_keys: Arc::new([]) })
}

async fn explain(people: &axum::Router, what: &str) -> Result<Explanation, String> {
    let request = Request::get(format!("/api/v1/boot/explain/{what}")).body(Body::empty()).unwrap();
    let answer = people.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    match status.is_success() {
        true => Ok(serde_json::from_slice(&body).unwrap()),
        false => Err(format!("{status} {}", String::from_utf8_lossy(&body))),
    }
}

#[tokio::test]
async fn explain_says_what_a_machine_would_get_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let people = people(dir.path(), &engine, &toml::from_str(CONFIG).unwrap());

    let stranger = explain(&people, "52-54-00-77-00-01").await.unwrap();
    assert_eq!((stranger.mac, stranger.machine.as_ref()), (MAC, None));
    assert_eq!(stranger.networks[0].address, Some("10.77.9.9".parse().unwrap()));
    assert_eq!(stranger.loaders.len(), 3);
    assert_eq!(stranger.answer.boots, "agent");
    assert!(stranger.answer.why.contains("nobody knows"));
    assert!(engine.machines().is_empty(), "asking for an explanation is not booting");

    // It boots as far as its script.
    let asking = Sighting {
        mac: MAC,
        uuid: None,
        arch: Some(ClientArch::UefiX64),
        address: "10.77.9.9".parse().ok(),
        stage: Stage::Ipxe,
        relay: None,
    };
    let BootAnswer::Agent { machine, token } = engine.boot_answer(asking).await.unwrap() else { panic!("no agent") };
    while engine.machine(machine).unwrap().served.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = engine.machine(machine).unwrap();
    let events = engine.db().events(machine, 0, 100).await.unwrap().len();
    let known = explain(&people, &MAC.to_string()).await.unwrap();
    let named = known.machine.as_ref().unwrap();
    assert_eq!((named.name.as_str(), named.state.as_str()), ("mac-525400770001", "seen"));
    assert_eq!(known.answer.why, "a machine that is seen boots the agent");
    let loader = &known.loaders[0];
    assert_eq!((loader.arch, loader.loader.as_deref()), (ClientArch::UefiX64, Some("snponly.efi")));
    assert_eq!(loader.candidates, ["snponly.efi", "ipxe.efi", "shimx64.efi"]);
    assert!(known.answer.script.contains("rackline.token=not-shown ") && !known.answer.script.contains(&token));
    let http = explain(&people, &format!("{MAC}?arch=http-x64")).await.unwrap();
    assert_eq!(http.loaders[0].candidates, ["snponly.efi", "ipxe.efi"]);
    assert_eq!(explain(&people, &MAC.to_string()).await.unwrap(), known);
    assert_eq!(engine.machine(machine).unwrap(), before);
    assert_eq!(engine.db().events(machine, 0, 100).await.unwrap().len(), events);

    for (what, status) in [("52:54", "422"), ("52-54-00-77-00-01?arch=vax", "422")] {
        assert!(explain(&people, what).await.unwrap_err().starts_with(status), "{what}");
    }
}
