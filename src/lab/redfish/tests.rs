//! The BMC over its socket, with TLS, as any client sees it.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::lab::BootDevice;

const SYSTEM: &str = "/redfish/v1/Systems/1";
const RESET: &str = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";

struct Peer {
    bmc: Simulated,
    client: Client,
}

impl Peer {
    async fn new() -> Self {
        let bmc = start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let client = Client::builder()
            .danger_accept_invalid_certs(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        Self { bmc, client }
    }

    fn plain(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.bmc.server.url()))
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.plain(method, path).basic_auth("root", Some("calvin"))
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.call(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    async fn status(&self, method: Method, path: &str, body: Value) -> StatusCode {
        self.call(method, path).json(&body).send().await.unwrap().status()
    }

    async fn patch(&self, path: &str, body: Value) -> StatusCode {
        self.status(Method::PATCH, path, body).await
    }

    async fn post(&self, path: &str, body: Value) -> StatusCode {
        self.status(Method::POST, path, body).await
    }

    async fn reset(&self, how: &str) -> StatusCode {
        self.post(RESET, json!({ "ResetType": how })).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_open_and_the_rest_is_not() {
    let peer = Peer::new().await;
    let root = peer.plain(Method::GET, "/redfish/v1/").send().await.unwrap();
    assert_eq!(root.headers()["odata-version"], "4.0");
    let root: Value = root.json().await.unwrap();
    assert_eq!(root["Links"]["Sessions"]["@odata.id"], "/redfish/v1/SessionService/Sessions");
    let closed = peer.plain(Method::GET, SYSTEM).send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::UNAUTHORIZED);
    assert!(closed.headers().contains_key("www-authenticate"));
    let wrong = peer.plain(Method::GET, SYSTEM).basic_auth("root", Some("x")).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
}

/// Whatever is linked to is there, and says where it is.
#[tokio::test(flavor = "multi_thread")]
async fn every_link_leads_somewhere() {
    fn links(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value {
                Value::String(path) if key == "@odata.id" || key.ends_with("nextLink") => found.push(path.clone()),
                _ => links(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| links(item, found)),
            _ => {}
        }
    }
    let peer = Peer::new().await;
    let (mut open, mut seen) = (vec!["/redfish/v1".to_owned()], std::collections::BTreeSet::new());
    while let Some(path) = open.pop() {
        // Parts of Thermal and Power are named by a fragment.
        if path.contains('#') || !seen.insert(path.clone()) {
            continue;
        }
        let document = peer.get(&path).await;
        assert_eq!(document["@odata.id"], path, "{document}");
        assert!(document["@odata.type"].is_string() && document["Name"].is_string(), "{path}");
        links(&document, &mut open);
    }
    assert!(seen.len() > 50, "{}: {seen:?}", seen.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lasts_until_it_is_closed_or_silent() {
    let peer = Peer::new().await;
    let log_in = || {
        let body = json!({ "UserName": "root", "Password": "calvin" });
        peer.plain(Method::POST, "/redfish/v1/SessionService/Sessions").json(&body).send()
    };
    let opened = log_in().await.unwrap();
    assert_eq!(opened.status(), StatusCode::CREATED);
    let token = opened.headers()["x-auth-token"].to_str().unwrap().to_owned();
    let location = opened.headers()["location"].to_str().unwrap().to_owned();
    let status = async |method: Method, path: &str| {
        peer.plain(method, path).header("X-Auth-Token", &token).send().await.unwrap().status()
    };
    assert_eq!(status(Method::GET, SYSTEM).await, StatusCode::OK);
    assert_eq!(status(Method::DELETE, &location).await, StatusCode::NO_CONTENT);
    assert_eq!(status(Method::GET, SYSTEM).await, StatusCode::UNAUTHORIZED);
    peer.bmc.controls.behave(|b| b.max_sessions = 1);
    assert_eq!(log_in().await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(log_in().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    peer.bmc.controls.behave(|b| b.session_timeout = Duration::ZERO);
    assert_eq!(log_in().await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_device_for_one_start_is_gone_after_it() {
    let peer = Peer::new().await;
    let once = json!({ "Boot": { "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Hdd" } });
    assert_eq!(peer.patch(SYSTEM, once).await, StatusCode::OK);
    assert_eq!(peer.get(SYSTEM).await["Boot"]["BootSourceOverrideEnabled"], "Once");
    assert_eq!(peer.reset("On").await, StatusCode::NO_CONTENT);
    let system = peer.get(SYSTEM).await;
    assert_eq!(
        (&system["PowerState"], &system["Boot"]["BootSourceOverrideEnabled"]),
        (&json!("On"), &json!("Disabled"))
    );
    let always = json!({ "Boot": { "BootSourceOverrideEnabled": "Continuous", "BootSourceOverrideTarget": "Pxe" } });
    assert_eq!(peer.patch(SYSTEM, always).await, StatusCode::OK);
    peer.reset("ForceRestart").await;
    assert_eq!(peer.get(SYSTEM).await["Boot"]["BootSourceOverrideTarget"], "Pxe");
    let order = json!({ "Boot": { "BootSourceOverrideEnabled": "Disabled", "BootOrder": ["Boot0002", "Boot0001"] } });
    assert_eq!(peer.patch(SYSTEM, order).await, StatusCode::OK);
    peer.reset("PowerCycle").await;
    assert_eq!(peer.bmc.hardware.booted(), [BootDevice::Disk, BootDevice::Pxe, BootDevice::Disk]);
    let unknown = json!({ "Boot": { "BootSourceOverrideTarget": "Floppy" } });
    assert_eq!(peer.patch(SYSTEM, unknown).await, StatusCode::BAD_REQUEST);
    assert_eq!(peer.reset("Nmi").await, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn power_may_lag_and_a_hung_system_does_not_go_down() {
    let peer = Peer::new().await;
    peer.bmc.controls.behave(|b| b.power_lag = Duration::from_millis(300));
    peer.reset("On").await;
    assert!(peer.bmc.hardware.is_on().unwrap());
    assert_eq!(peer.get(SYSTEM).await["PowerState"], "Off");
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(peer.get(SYSTEM).await["PowerState"], "On");
    peer.bmc.controls.behave(|b| b.power_lag = Duration::ZERO);
    peer.bmc.hardware.hang(true);
    peer.reset("GracefulShutdown").await;
    assert_eq!(peer.get(SYSTEM).await["PowerState"], "On");
    peer.bmc.controls.behave(|b| b.strict_power = true);
    assert_eq!(peer.reset("On").await, StatusCode::CONFLICT);
    assert_eq!(peer.reset("ForceOff").await, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_changes_under_its_entity_tag() {
    let peer = Peer::new().await;
    let path = "/redfish/v1/AccountService/Accounts/2";
    peer.bmc.controls.behave(|b| b.tags_required = true);
    let read = peer.call(Method::GET, path).send().await.unwrap();
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    let change = async |tag: Option<&str>, password: &str| {
        let request = peer.call(Method::PATCH, path).json(&json!({ "Password": password }));
        let request = tag.into_iter().fold(request, |request, tag| request.header("If-Match", tag));
        request.send().await.unwrap().status()
    };
    assert_eq!(change(None, "much better").await, StatusCode::PRECONDITION_REQUIRED);
    assert_eq!(change(Some("W/\"0\""), "much better").await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(change(Some(&tag), "short").await, StatusCode::BAD_REQUEST);
    assert_eq!(change(Some(&tag), "much better").await, StatusCode::OK);
    assert_eq!(change(Some(&tag), "and again").await, StatusCode::UNAUTHORIZED);
    // As from the factory: nothing works but the change.
    peer.bmc.accounts.change("2", |a| (a.password, a.must_change) = ("calvin".into(), true));
    let refused = peer.call(Method::GET, SYSTEM).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.text().await.unwrap().contains("PasswordChangeRequired"));
    assert_eq!(change(Some("*"), "much better").await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_comes_in_pages() {
    let peer = Peer::new().await;
    (0..7).for_each(|i| peer.bmc.machine.log("Warning", &format!("event {i}")));
    peer.bmc.controls.behave(|b| b.page = 3);
    let (mut next, mut found) = (Some("/redfish/v1/Managers/1/LogServices/Log/Entries".to_owned()), Vec::new());
    while let Some(path) = next {
        let page = peer.get(&path).await;
        assert_eq!(page["Members@odata.count"], 7);
        let messages = page["Members"].as_array().unwrap().iter().map(|m| m["Message"].as_str().unwrap().to_owned());
        found.extend(messages);
        next = page["Members@odata.nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!(found, (0..7).map(|i| format!("event {i}")).collect::<Vec<_>>());
    let two = peer.get("/redfish/v1/Managers/1/LogServices/Log/Entries?$skip=5&$top=1").await;
    assert_eq!((&two["Members"][0]["Message"], two["Members"].as_array().unwrap().len()), (&json!("event 5"), 1));
    let inventory = peer.get("/redfish/v1/UpdateService/FirmwareInventory?$expand=.($levels=1)").await;
    assert_eq!(inventory["Members"][0]["Version"], "9.8.0");
    let clear = "/redfish/v1/Managers/1/LogServices/Log/Actions/LogService.ClearLog";
    assert_eq!(peer.post(clear, json!({})).await, StatusCode::NO_CONTENT);
    let log = peer.get("/redfish/v1/Managers/1/LogServices/Log/Entries").await;
    assert_eq!(log["Members@odata.count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensor_beyond_a_threshold_is_logged_once() {
    let peer = Peer::new().await;
    for raw in [97, 98, 42] {
        peer.bmc.hardware.set_reading(1, raw);
        peer.get("/redfish/v1/Chassis/1/Thermal").await;
    }
    let log = peer.get("/redfish/v1/Managers/1/LogServices/Log/Entries").await;
    let found: Vec<_> = log["Members"].as_array().unwrap().iter().map(|e| (&e["Severity"], &e["Message"])).collect();
    let (hot, fine) = ("CPU0 Temp is beyond a threshold: 97.", "CPU0 Temp is within its thresholds again: 42.");
    assert_eq!(found, [(&json!("Critical"), &json!(hot)), (&json!("OK"), &json!(fine))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bios_settings_wait_for_the_next_start() {
    let peer = Peer::new().await;
    let (bios, settings) = ("/redfish/v1/Systems/1/Bios", "/redfish/v1/Systems/1/Bios/Settings");
    let change = json!({
        "Attributes": { "ProcCStates": "Disabled", "SysProfile": "PerfOptimized" },
        "@Redfish.SettingsApplyTime": { "ApplyTime": "OnReset" },
    });
    assert_eq!(peer.patch(settings, change).await, StatusCode::OK);
    assert_eq!(peer.get(bios).await["Attributes"]["ProcCStates"], "Enabled");
    assert_eq!(peer.get(settings).await["Attributes"]["ProcCStates"], "Disabled");
    peer.reset("On").await;
    assert_eq!(peer.get(bios).await["Attributes"]["ProcCStates"], "Disabled");
    assert_eq!(peer.get(settings).await["Attributes"], json!({}));
    let unknown = json!({ "Attributes": { "Turbo": "On" } });
    assert_eq!(peer.patch(settings, unknown).await, StatusCode::BAD_REQUEST);
    let wrong = json!({ "Attributes": { "ProcCStates": "Maybe" } });
    assert_eq!(peer.patch(settings, wrong).await, StatusCode::BAD_REQUEST);
    assert_eq!(
        peer.patch("/redfish/v1/Systems/1/SecureBoot", json!({ "SecureBootEnable": true })).await,
        StatusCode::OK
    );
    assert_eq!(peer.get("/redfish/v1/Systems/1/SecureBoot").await["SecureBootCurrentBoot"], "Disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn firmware_is_pushed_and_the_task_tells_how_far_it_is() {
    let peer = Peer::new().await;
    let push = async |component: &str, model: &str| {
        let (image, mut form) = (firmware_image(component, "9.9.9", model), Vec::new());
        for (name, content) in [("UpdateParameters", &br#"{"Targets":[]}"#[..]), ("UpdateFile", &image)] {
            form.extend(format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").bytes());
            form.extend(content);
            form.extend(b"\r\n");
        }
        form.extend(b"--b--\r\n");
        let request = peer.call(Method::POST, "/redfish/v1/UpdateService/upload").body(form);
        let accepted = request.header("content-type", "multipart/form-data; boundary=b").send().await.unwrap();
        assert_eq!(accepted.status(), StatusCode::ACCEPTED);
        let monitor = accepted.headers()["location"].to_str().unwrap().to_owned();
        (monitor, accepted.json::<Value>().await.unwrap())
    };
    let ended = async |monitor: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = peer.call(Method::GET, monitor).send().await.unwrap().status();
            if status != StatusCode::ACCEPTED {
                return status;
            }
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let version = async |id: &str| {
        peer.get(&format!("/redfish/v1/UpdateService/FirmwareInventory/{id}")).await["Version"].clone()
    };
    peer.bmc.controls.behave(|b| b.task = Some(Duration::from_millis(200)));
    let (monitor, task) = push("BIOS", "LW-R1").await;
    assert_eq!(task["TaskState"], "Running");
    assert_eq!(ended(&monitor).await, StatusCode::NO_CONTENT);
    assert_eq!(version("BIOS").await, "2.4.1", "it waits for the next start");
    peer.reset("On").await;
    assert_eq!(version("BIOS").await, "9.9.9");
    assert_eq!(ended(&push("BIOS", "LW-R2").await.0).await, StatusCode::BAD_REQUEST);
    peer.bmc.controls.behave(|b| b.task = None);
    let task = push("BIOS", "LW-R1").await.1;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(peer.get(task["@odata.id"].as_str().unwrap()).await["TaskState"], "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_come_as_they_are_planted() {
    let peer = Peer::new().await;
    let controls = &peer.bmc.controls;
    let get = || peer.call(Method::GET, SYSTEM).send();
    controls.fault_times("GET /redfish/v1/Systems/1", 1, Fault::Unavailable(3));
    let busy = get().await.unwrap();
    assert_eq!(
        (busy.status(), &busy.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"3".parse().unwrap())
    );
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);

    controls.fault("PATCH", Fault::Ignored);
    assert_eq!(peer.patch(SYSTEM, json!({ "AssetTag": "x" })).await, StatusCode::NO_CONTENT);
    controls.heal();
    assert_eq!(peer.get(SYSTEM).await["AssetTag"], "");

    controls.fault_times("/redfish/v1/Systems*", 1, Fault::Reset);
    assert!(get().await.is_err());
    controls.fault_times(SYSTEM, 1, Fault::Truncated);
    let cut = get().await.unwrap();
    assert_eq!(cut.status(), StatusCode::OK);
    assert!(cut.bytes().await.is_err());
    controls.fault_times(SYSTEM, 1, Fault::Garbage);
    let garbage = get().await.unwrap().bytes().await.unwrap();
    assert!(garbage.len() == 65_536 && serde_json::from_slice::<Value>(&garbage).is_err());
    controls.fault_times(SYSTEM, 1, Fault::Redirect("https://192.0.2.1".into()));
    let moved = get().await.unwrap();
    assert_eq!(moved.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(moved.headers()["location"], "https://192.0.2.1/redfish/v1/Systems/1");
    controls.fault_times(SYSTEM, 1, Fault::Odd(Oddity::NoId));
    assert!(peer.get(SYSTEM).await.get("@odata.id").is_none());
    controls.fault(SYSTEM, Fault::Drip(Duration::from_millis(100)));
    let mut slow = get().await.unwrap();
    assert_eq!(slow.chunk().await.unwrap().unwrap().len(), 1);
    controls.heal();
    assert_eq!(controls.count("PATCH "), 1);

    controls.away(Duration::from_millis(300));
    assert!(get().await.is_err());
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);
}
