//! Many BMCs at once, some of them dead, slow, forgetful or rude: nobody waits for another's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rackline::bmc::sweep::{Roster, Sweep};
use rackline::bmc::{Access, Answer, Command, Fleet, Power, Settings};
use rackline::machine::{MachineId, PowerAction};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::bmc::{access, address, settings, until};
use super::bmc_sim::records::Sensor;
use super::bmc_sim::{Manner, Sim, State};

const MS: Duration = Duration::from_millis(1);

async fn sim(change: impl FnOnce(&mut State)) -> Sim {
    Sim::with((address(), 0).into(), change).await.unwrap()
}

fn sensors(count: u8) -> Vec<Sensor> {
    (1..=count).map(|n| Sensor { name: format!("Temp {n}"), raw: 40 + n % 40 }).collect()
}

fn code<T>(result: rackline::error::Result<T>) -> &'static str {
    result.err().map_or("ok", |e| e.code())
}

#[tokio::test]
async fn dead_bmcs_do_not_take_the_places_of_living_ones() {
    let fleet = Fleet::new(Settings { parallel: 4, place: 20 * MS, ..settings() });
    let (mut dead, mut living) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        dead.push(sim(|bmc| bmc.manner.dead = true).await);
        living.push(sim(|_| ()).await);
    }
    let ask = |sim: &Sim| {
        let (fleet, access) = (fleet.clone(), access(sim.address));
        tokio::spawn(async move { fleet.run(&access, Command::PowerStatus).await })
    };
    let hopeless: Vec<_> = dead.iter().map(ask).collect();
    sleep(5 * MS).await;
    let asked: Vec<_> = living.iter().map(ask).collect();
    for answer in asked {
        assert_eq!(code(answer.await.unwrap()), "ok");
    }
    assert!(hopeless.iter().all(|task| !task.is_finished()), "a dead BMC is waited for longer than this takes");
    hopeless.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_command_goes_before_a_look_that_is_under_way() {
    let slow = sim(|bmc| {
        bmc.manner.latency = 60 * MS;
        bmc.records.sensors = sensors(40);
    })
    .await;
    let fleet = Fleet::new(settings());
    let access = access(slow.address);
    let look = |fleet: Fleet, access| async move { fleet.look(&access, Command::Sensors, Duration::ZERO).await };
    let looking = tokio::spawn(look(fleet.clone(), access.clone()));
    until("the look is under way", || slow.state.lock().unwrap().requests > 3).await;
    let command = fleet.run(&access, Command::Power { action: PowerAction::On });
    let (command, refused) = tokio::join!(command, look(fleet.clone(), access.clone()));
    assert_eq!((code(command), code(refused)), ("ok", "bmc.gave-way"));
    assert_eq!(code(looking.await.unwrap()), "bmc.gave-way");
    assert!(slow.state.lock().unwrap().records.readings < 40, "the look was not finished first");
    let Answer::Sensors { sensors } = look(fleet.clone(), access).await.unwrap() else { panic!() };
    assert_eq!((sensors.len(), sensors[3].name.as_str(), sensors[3].value), (40, "Temp 4", Some(44.0)));
    assert_eq!(slow.state.lock().unwrap().opened, 1, "in the session that the look had");
}

#[tokio::test]
async fn a_silent_bmc_is_left_alone_told_of_and_tried_by_one() {
    let dead = sim(|bmc| bmc.manner.dead = true).await;
    let mut quick = settings();
    quick.pace.open = 200 * MS;
    let fleet = Fleet::new(quick);
    let access = access(dead.address);
    for _ in 0..3 {
        assert_eq!(fleet.open_circuit(&access.doors), None);
        assert_eq!(code(fleet.run(&access, Command::PowerStatus).await), "bmc.unreachable");
    }
    let open = fleet.open_circuit(&access.doors).expect("three silences open the circuit");
    assert!(open.silences == 3 && open.why.contains("did not answer within") && open.next_try > 4000 * MS, "{open:?}");
    let heard = || dead.state.lock().unwrap().heard;
    let before = heard();
    let refused = fleet.run(&access, Command::PowerStatus).await.unwrap_err();
    assert!(refused.next_step().is_some_and(|hint| hint.contains("asked again in")), "{refused:?}");
    assert_eq!(heard(), before, "nothing was sent");
    // Half open: of many, one tries, and the others are told at once.
    sleep(open.next_try).await;
    let many = futures::future::join_all((0..10).map(|_| fleet.run(&access, Command::PowerStatus))).await;
    let tried = many.into_iter().filter(|r| r.as_ref().unwrap_err().message().contains("within")).count();
    assert_eq!(tried, 1);
    let open = fleet.open_circuit(&access.doors).unwrap();
    assert!(open.silences == 4 && open.next_try > 8000 * MS, "{open:?}");
}

#[tokio::test]
async fn a_bmc_with_one_session_serves_many_commands() {
    let poor = sim(|bmc| {
        bmc.sessions_max = 1;
        bmc.manner.latency = 5 * MS;
    })
    .await;
    let (fleet, access) = (Fleet::new(settings()), access(poor.address));
    let asked = (0..20).map(|_| fleet.run(&access, Command::PowerStatus));
    assert!(futures::future::join_all(asked).await.iter().all(Result::is_ok));
    fleet.close().await;
    assert_eq!(code(fleet.run(&access, Command::PowerStatus).await), "ok", "the session was given back");
    let state = poor.state.lock().unwrap();
    assert_eq!((state.most, state.opened), (1, 2));
}

#[tokio::test]
async fn rude_bmcs_are_understood() {
    let fleet = Fleet::new(settings());
    let mut sims = Vec::new();
    for n in 0..10 {
        let manner = Manner { latency: 3 * MS, loss: 30, doubled: 30, misled: 30, ..Manner::default() };
        sims.push(sim(|bmc| (bmc.manner, bmc.records.sensors, bmc.power) = (manner, sensors(20), n % 2 == 0)).await);
    }
    let all = sims.iter().enumerate().map(|(n, sim)| {
        let (fleet, access) = (fleet.clone(), access(sim.address));
        async move {
            let Answer::PowerStatus(chassis) = fleet.run(&access, Command::PowerStatus).await.unwrap() else {
                panic!()
            };
            assert_eq!(chassis.power, if n % 2 == 0 { Power::On } else { Power::Off });
            let Answer::Sensors { sensors } = fleet.run(&access, Command::Sensors).await.unwrap() else { panic!() };
            let values: Vec<_> = sensors.iter().filter_map(|s| s.value).collect();
            assert_eq!(values, (1..=20).map(|n| f64::from(40 + n)).collect::<Vec<_>>());
        }
    });
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn a_session_is_kept_alive_until_the_next_look_and_no_longer() {
    let bmc = sim(|bmc| bmc.records.sensors = sensors(2)).await;
    let fleet = Fleet::new(Settings { idle: 100 * MS, ..settings() });
    let access = access(bmc.address);
    fleet.look(&access, Command::PowerStatus, 1000 * MS).await.unwrap();
    sleep(700 * MS).await;
    {
        let state = bmc.state.lock().unwrap();
        assert!(state.requests >= 5, "kept alive: {} requests", state.requests);
        assert_eq!((state.opened, state.closed), (1, 0));
    }
    until("nobody came, and the session is closed", || bmc.state.lock().unwrap().closed == 1).await;
    let after = bmc.state.lock().unwrap().requests;
    sleep(300 * MS).await;
    assert_eq!(bmc.state.lock().unwrap().requests, after);
}

/// A site with these BMCs, which writes down what it is told.
struct Site {
    machines: BTreeMap<MachineId, Access>,
    told: Mutex<Vec<(MachineId, String)>>,
}

impl Roster for Site {
    fn machines(&self) -> Vec<MachineId> {
        self.machines.keys().copied().collect()
    }

    async fn access(&self, machine: MachineId) -> rackline::error::Result<Access> {
        Ok(self.machines[&machine].clone())
    }

    fn changed(&self, machine: MachineId, sentence: String) {
        self.told.lock().unwrap().push((machine, sentence));
    }
}

#[tokio::test]
async fn a_sweep_keeps_the_latest_and_tells_what_changed_once() {
    let good = sim(|bmc| {
        bmc.records.sensors = sensors(3);
        bmc.records.log_event(1);
    })
    .await;
    let dead = sim(|bmc| bmc.manner.dead = true).await;
    let (of_good, of_dead) = (MachineId::generate(), MachineId::generate());
    let machines = BTreeMap::from([(of_good, access(good.address)), (of_dead, access(dead.address))]);
    let site = Arc::new(Site { machines, told: Mutex::default() });
    let told = |machine| -> Vec<String> {
        site.told.lock().unwrap().iter().filter(|(m, _)| *m == machine).map(|(_, sentence)| sentence.clone()).collect()
    };
    let mut quick = settings();
    quick.pace.open = 200 * MS;
    let fleet = Fleet::new(quick);
    let sweep = Sweep::new(fleet.clone(), 150 * MS);
    let stop = CancellationToken::new();
    let running = tokio::spawn(sweep.clone().run(site.clone(), stop.clone()));

    until("the first look", || sweep.health(of_good).is_some()).await;
    let first = sweep.health(of_good).unwrap();
    let records_read = good.state.lock().unwrap().records.records_read;
    assert_eq!((first.power, first.sensors.len(), first.problem.clone()), (Some(Power::Off), 3, None));
    assert!(told(of_good).is_empty(), "nothing has changed yet");
    {
        let mut bmc = good.state.lock().unwrap();
        bmc.power = true;
        bmc.records.sensors[1].raw = 97;
        bmc.records.log_event(2);
    }
    until("both changes are told", || told(of_good).len() == 2).await;
    let mut both = told(of_good);
    both.sort();
    assert!(both[0].starts_with("BMC log: ") && both[0].contains("Temp 2"), "{both:?}");
    assert_eq!(both[1], "sensor Temp 2 is critical (97 °C)");
    let later = sweep.health(of_good).unwrap();
    assert_eq!((later.power, later.alarms.len()), (Some(Power::On), 1));
    assert!(later.at > first.at);
    until("silence is told", || told(of_dead).len() == 1).await;
    assert!(told(of_dead)[0].starts_with("its BMC cannot be looked at: "), "{:?}", told(of_dead));
    let looks = good.state.lock().unwrap().records.readings;
    until("two more looks", || good.state.lock().unwrap().records.readings >= looks + 6).await;
    assert_eq!(told(of_good).len(), 2, "told once");
    stop.cancel();
    running.await.unwrap();
    {
        let bmc = good.state.lock().unwrap();
        assert_eq!(
            (bmc.opened, bmc.records.records_read),
            (1, records_read),
            "one session, one reading of the records"
        );
    }
    fleet.close().await;
}

/// The simulator's sensors and log, as somebody else reads them.
#[tokio::test]
async fn ipmitool_reads_the_simulated_records() {
    let bmc = sim(|bmc| {
        bmc.records.sensors = sensors(3);
        bmc.records.sensors[1].raw = 96;
        bmc.records.log_event(2);
    })
    .await;
    for (words, expected) in [
        (
            &["sdr", "list"][..],
            ["Temp 1           | 41 degrees C      | ok", "Temp 2           | 96 degrees C      | cr"],
        ),
        (&["sel", "list"][..], ["Temperature #0x02", "Upper Critical going high"]),
    ] {
        let mut tool = tokio::process::Command::new("ipmitool");
        tool.args(["-I", "lanplus", "-C", "17", "-U", "admin", "-P", "calvin-lab"]);
        tool.args(["-H", &bmc.address.ip().to_string(), "-p", &bmc.address.port().to_string()]);
        let output = tool.args(words).output().await.expect("ipmitool of the Debian package ipmitool");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in expected {
            assert!(text.contains(part), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
