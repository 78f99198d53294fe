//! A member's word to the appliance, each second: where it is; and the answer: whom to follow.
//!
//! An appliance that is gone changes nothing: the last plan holds, and the standbys in it. What it did not hear is told
//! again. The request itself is the caller's, who knows address and token.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::BackOff;
use crate::link::{SWARM_SECONDS, SwarmPlan, SwarmReport};
use crate::machine::Secret;

/// Garbage peers that are kept for an appliance that does not answer.
const UNSAID: usize = 64;

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Plan(SwarmPlan),
    /// Heard; the last plan holds (204).
    Same,
    /// Not heard: no answer, or a passing refusal.
    Lost,
    /// There are no swarms here, or not of this image (404): asking again is of no use.
    Never,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    every: Duration,
    /// For one request. The planner takes a member for gone after three seconds.
    answer: Duration,
    /// Between two tries. An appliance that comes back is to know its swarms within seconds.
    pause: Duration,
}

const PACE: Pace =
    Pace { every: Duration::from_secs(SWARM_SECONDS), answer: Duration::from_secs(2), pause: Duration::from_secs(4) };

/// The sending side of the plans; the receiving one goes to the relay.
pub struct Announcer {
    plans: watch::Sender<SwarmPlan>,
    seat: Option<u64>,
    unsaid: Vec<SocketAddr>,
    pace: Pace,
}

/// Until the first answer there is nobody to follow, and no key that anybody would know.
pub fn announcer() -> (Announcer, watch::Receiver<SwarmPlan>) {
    let none = SwarmPlan { predecessors: Vec::new(), key: Secret::new(""), upload_limit: None, needed: false, seat: 0 };
    let (plans, plan) = watch::channel(none);
    (Announcer { plans, seat: None, unsaid: Vec::new(), pace: PACE }, plan)
}

impl Announcer {
    /// Reports until `leave`, and then once more that it leaves; or until there is nobody to report to. `report` is told
    /// whether it is the last; `apply` sees each plan that differs from the one before, ahead of all receivers.
    pub async fn run<F: Future<Output = Answer> + Send>(
        mut self,
        leave: CancellationToken,
        report: impl Fn(bool) -> SwarmReport + Send,
        tell: impl Fn(SwarmReport) -> F + Send,
        apply: impl Fn(&SwarmPlan) + Send,
    ) {
        let mut lost = BackOff::default();
        while !leave.is_cancelled() {
            let answer = tokio::select! {
                answer = self.once(report(false), &tell) => answer,
                () = leave.cancelled() => break,
            };
            let pause = match answer {
                Answer::Never => return,
                Answer::Lost => lost.next_wait().min(self.pace.pause),
                Answer::Plan(_) | Answer::Same => {
                    lost.reset();
                    self.pace.every
                }
            };
            if let Answer::Plan(plan) = answer {
                self.take(plan, &apply);
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = leave.cancelled() => {}
            }
        }
        self.once(report(true), &tell).await;
    }

    async fn once<F: Future<Output = Answer>>(
        &mut self,
        mut report: SwarmReport,
        tell: &impl Fn(SwarmReport) -> F,
    ) -> Answer {
        report.seat = self.seat;
        for peer in std::mem::take(&mut report.garbage) {
            if self.unsaid.len() < UNSAID && !self.unsaid.contains(&peer) {
                self.unsaid.push(peer);
            }
        }
        report.garbage = self.unsaid.clone();
        let answer = timeout(self.pace.answer, tell(report)).await.unwrap_or(Answer::Lost);
        if matches!(answer, Answer::Plan(_) | Answer::Same) {
            self.unsaid.clear();
        }
        answer
    }

    fn take(&mut self, plan: SwarmPlan, apply: &impl Fn(&SwarmPlan)) {
        self.seat = Some(plan.seat);
        self.plans.send_if_modified(|last| {
            let differs = *last != plan;
            if differs {
                apply(&plan);
                *last = plan;
            }
            differs
        });
    }
}

/// Stays while others need this machine, at most so long. False where somebody still did.
pub async fn linger(plan: &mut watch::Receiver<SwarmPlan>, at_most: Duration) -> bool {
    let released = plan.wait_for(|plan| !plan.needed);
    matches!(timeout(at_most, released).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::machine::Digest;

    fn plan(seat: u64, needed: bool) -> SwarmPlan {
        let predecessors = vec![SocketAddr::from(([10, 0, 0, 1], 7070))];
        SwarmPlan { predecessors, key: Secret::new("k"), upload_limit: None, needed, seat }
    }

    fn garbage(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 4000))
    }

    /// Gives these answers one after the other, then the last one for ever; what was told is kept.
    struct Appliance {
        answers: Mutex<VecDeque<Answer>>,
        told: Mutex<Vec<SwarmReport>>,
    }

    impl Appliance {
        fn of(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
            Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), told: Mutex::default() })
        }

        async fn hear(self: Arc<Self>, report: SwarmReport) -> Answer {
            self.told.lock().unwrap().push(report);
            let mut answers = self.answers.lock().unwrap();
            match answers.len() {
                1 => answers[0].clone(),
                _ => answers.pop_front().unwrap(),
            }
        }
    }

    /// A hundredth of the time.
    fn quick() -> (Announcer, watch::Receiver<SwarmPlan>) {
        let (announcer, plan) = announcer();
        let pace = Pace { every: PACE.every / 100, answer: PACE.answer / 100, pause: PACE.pause / 100 };
        (Announcer { pace, ..announcer }, plan)
    }

    /// Each report names another peer as garbage.
    fn reports() -> impl Fn(bool) -> SwarmReport + Send {
        let count = std::sync::atomic::AtomicU8::new(0);
        move |leaving| SwarmReport {
            image: Digest([0; 32]),
            port: 4000,
            frames: 1,
            bytes: 10,
            lacking: 3,
            from: Vec::new(),
            garbage: vec![garbage(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed))],
            starved_ms: 0,
            leaving,
            seat: None,
        }
    }

    #[tokio::test]
    async fn the_last_plan_holds_while_the_appliance_is_gone_and_what_it_missed_is_told_again() {
        let answers =
            [Answer::Plan(plan(7, true)), Answer::Lost, Answer::Lost, Answer::Same, Answer::Plan(plan(8, true))];
        let appliance = Appliance::of(answers);
        let (announcer, plans) = quick();
        let (leave, hears) = (CancellationToken::new(), appliance.clone());
        let applied = Arc::new(Mutex::new(Vec::new()));
        let seen = applied.clone();
        let running = tokio::spawn(announcer.run(
            leave.clone(),
            reports(),
            move |report| hears.clone().hear(report),
            move |plan| seen.lock().unwrap().push(plan.seat),
        ));
        let mut heard = plans.clone();
        heard.changed().await.unwrap();
        assert_eq!((plans.borrow().seat, plans.borrow().predecessors.len()), (7, 1));
        heard.changed().await.unwrap();
        assert_eq!(plans.borrow().seat, 8, "nothing but a new plan took the place of the old one");
        leave.cancel();
        running.await.unwrap();
        let told = appliance.told.lock().unwrap();
        assert_eq!(told[..5].iter().map(|r| r.seat).collect::<Vec<_>>(), [None, Some(7), Some(7), Some(7), Some(7)]);
        assert_eq!(told[1].garbage, [garbage(1)]);
        assert_eq!(told[3].garbage, [garbage(1), garbage(2), garbage(3)], "none of the lost ones is forgotten");
        assert_eq!(told[4].garbage, [garbage(4)]);
        assert!(told.last().unwrap().leaving && told[..told.len() - 1].iter().all(|r| !r.leaving));
        assert_eq!(*applied.lock().unwrap(), [7, 8], "each plan once");
    }

    #[tokio::test]
    async fn an_appliance_that_hangs_is_left_alone_after_a_moment() {
        let (announcer, plans) = quick();
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let tell = move |_| {
            *count.lock().unwrap() += 1;
            std::future::pending()
        };
        let leave = CancellationToken::new();
        let running = tokio::spawn(announcer.run(leave.clone(), reports(), tell, |_| {}));
        sleep(Duration::from_millis(500)).await;
        leave.cancel();
        timeout(Duration::from_secs(2), running).await.expect("it leaves all the same").unwrap();
        assert!((2..=26).contains(&*asked.lock().unwrap()) && plans.borrow().predecessors.is_empty());
    }

    #[tokio::test]
    async fn without_swarms_nothing_more_is_asked() {
        let appliance = Appliance::of([Answer::Never]);
        let (announcer, mut plans) = quick();
        let hears = appliance.clone();
        announcer.run(CancellationToken::new(), reports(), move |r| hears.clone().hear(r), |_| {}).await;
        assert_eq!(appliance.told.lock().unwrap().len(), 1);
        assert!(plans.changed().await.is_err(), "whoever waits for a plan is told that none will come");
    }

    #[tokio::test]
    async fn it_lingers_while_it_is_needed_and_no_longer_than_allowed() {
        let (plans, mut plan_of) = watch::channel(plan(1, true));
        assert!(!linger(&mut plan_of, Duration::from_millis(20)).await);
        let releases = async {
            sleep(Duration::from_millis(20)).await;
            plans.send_replace(plan(1, false));
        };
        let (stayed, ()) = tokio::join!(linger(&mut plan_of, Duration::from_secs(60)), releases);
        assert!(stayed && linger(&mut plan_of, Duration::ZERO).await);
    }
}
