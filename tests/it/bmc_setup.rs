//! A BMC set up as the site wants it when its machine is commissioned: time servers and address, looked at first, read back,
//! told, and never in the way.

use rackline::bmc::{Access, AddressFrom, Answer, Command, Doors, Fleet, Network, SetNetwork, Settings};
use rackline::engine::{BmcAddress, BmcSetup};
use rackline::lifecycle::{Machine, State};
use rackline::machine::Secret;

use super::baseline::{Rack, told, until};

const NO_BASELINE: &str = "name = \"others\"\nvendor = \"Nobody\"\nmodels = [\"X\"]\n[attributes]\nA = \"B\"\n";
const INTERFACE: &str = "PATCH /redfish/v1/Managers/1/EthernetInterfaces";

fn wanted() -> BmcSetup {
    BmcSetup { ntp: vec!["10.77.0.1".into(), "ntp.example".into()], address: BmcAddress::Static }
}

fn ready(machine: &Machine) -> bool {
    machine.state == State::Ready
}

async fn of_bmc(rack: &Rack, command: Command) -> Answer {
    let access = Access {
        doors: Doors::redfish(rack.bmc.server.address),
        user: "root".into(),
        password: Secret::new("calvin"),
        machine: Default::default(),
    };
    Fleet::new(Settings::default()).run(&access, command).await.unwrap()
}

async fn network(rack: &Rack) -> Network {
    match of_bmc(rack, Command::Network).await {
        Answer::Network(network) => network,
        other => panic!("{other:?}"),
    }
}

async fn commissioned(rack: &Rack) -> String {
    let (engine, stop) = rack.engine_with(wanted()).await;
    let id = rack.commission(&engine).await;
    until(&engine, id, "ready", ready).await;
    let said = told(&engine, id).await;
    stop.cancel();
    said.into_iter().find(|sentence| sentence.starts_with("set up the BMC: ")).expect("nothing is told of the BMC")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_servers_and_address_are_set_once_and_told() {
    let rack = Rack::new(NO_BASELINE).await;
    // As a BMC that has its address by DHCP.
    let ours = AddressFrom::Static { address: [127, 0, 0, 1].into(), prefix: 8, gateway: None };
    for from in [ours, AddressFrom::Dhcp] {
        of_bmc(&rack, Command::SetNetwork(SetNetwork { address: Some(from), ntp: None })).await;
    }
    assert_eq!(network(&rack).await.source.as_deref(), Some("DHCP"));
    assert_eq!(
        commissioned(&rack).await,
        "set up the BMC: its time is from 10.77.0.1, ntp.example; it keeps the address 127.0.0.1 without DHCP"
    );
    let now = network(&rack).await;
    assert_eq!((now.ntp, now.source.as_deref(), now.prefix), (Some(wanted().ntp), Some("static"), Some(8)));
    let patches = rack.bmc.controls.count("PATCH");
    let again = Rack { state: "again", ..rack };
    assert_eq!(commissioned(&again).await, "set up the BMC: was as the site wants it");
    assert_eq!(again.bmc.controls.count("PATCH"), patches, "what is so is left alone");
}

/// The BMC says that it has another address than the one of the list: nobody knows by which way it is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_cannot_be_set_up_is_told_and_in_nobodys_way() {
    let rack = Rack::new(NO_BASELINE).await;
    let elsewhere = AddressFrom::Static { address: [10, 9, 9, 9].into(), prefix: 24, gateway: None };
    for from in [elsewhere, AddressFrom::Dhcp] {
        of_bmc(&rack, Command::SetNetwork(SetNetwork { address: Some(from), ntp: None })).await;
    }
    let patches = rack.bmc.controls.count(INTERFACE);
    let said = commissioned(&rack).await;
    assert!(
        said.contains("failed: the BMC of kvm-1 says that its address is 10.9.9.9")
            && said.contains("expected 127.0.0.1"),
        "{said}"
    );
    assert_eq!(rack.bmc.controls.count(INTERFACE), patches);
    assert_eq!(network(&rack).await.ntp, Some(wanted().ntp), "what could be done is done");
}
