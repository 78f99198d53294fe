//! The machines' way to delivery, as it is seen from outside: one line for each, kept up to date on a terminal, one line
//! for each change elsewhere.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Lab;
use super::appliance::Operator;
use super::text::plain;
use crate::api::view::MachineView;
use crate::error::Result;

const EVERY: Duration = Duration::from_millis(500);
/// On a busy host an answer may be late; more than this is an end.
const SILENT_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Delivered,
    Broken,
    Timeout,
}

impl End {
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
        }
    }
}

pub struct Watched {
    pub end: End,
    /// As last seen.
    pub views: Vec<MachineView>,
    /// From power-on to delivered, by name.
    pub seconds: HashMap<String, f64>,
    pub total: Duration,
}

/// Ends when all are delivered, one is broken, or the time is up.
pub async fn until_delivered(api: &Operator, lab: &mut Lab, powered: Instant, timeout: Duration) -> Result<Watched> {
    let mut screen = Screen::new(lab, powered);
    let mut seconds = HashMap::new();
    let mut heard = Instant::now();
    let mut views = Vec::new();
    loop {
        match api.machines().await {
            Ok(now) => {
                heard = Instant::now();
                views = now;
            }
            Err(_) if !lab.appliance.is_running() => return Err(lab.appliance.ended("the appliance has ended")),
            Err(e) if heard.elapsed() > SILENT_WITHIN => {
                return Err(lab.appliance.ended(&format!("the appliance does not answer any more: {e}")));
            }
            Err(_) => {}
        }
        views.retain(|v| lab.machines.iter().any(|m| m.name() == v.name));
        for view in &views {
            screen.show(view);
            if view.state == "delivered" {
                seconds.entry(view.name.clone()).or_insert_with(|| powered.elapsed().as_secs_f64());
            }
        }
        let end = match () {
            () if views.iter().any(|v| v.state == "broken") => Some(End::Broken),
            () if seconds.len() == lab.machines.len() => Some(End::Delivered),
            () if powered.elapsed() > timeout => Some(End::Timeout),
            () => None,
        };
        if let Some(end) = end {
            screen.close();
            return Ok(Watched { end, views, seconds, total: powered.elapsed() });
        }
        tokio::time::sleep(EVERY).await;
    }
}

struct Screen {
    powered: Instant,
    firmware: HashMap<String, String>,
    /// `None` off a terminal.
    bars: Option<(MultiProgress, HashMap<String, ProgressBar>)>,
    /// What was said last about a machine, to say only changes.
    said: HashMap<String, String>,
    rates: HashMap<String, Rate>,
}

/// How fast a step counts, from what two looks at it differ by.
struct Rate {
    step: String,
    since: Instant,
    from: u64,
}

impl Screen {
    fn new(lab: &Lab, powered: Instant) -> Self {
        let target = ProgressDrawTarget::stderr();
        let bars = (!target.is_hidden()).then(|| {
            let all = MultiProgress::with_draw_target(target);
            let style =
                ProgressStyle::with_template("{prefix:8} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let bars = lab.machines.iter().map(|m| {
                let bar = all.add(ProgressBar::no_length().with_style(style.clone()).with_prefix(m.name()));
                (m.name(), bar)
            });
            let bars = bars.collect();
            (all, bars)
        });
        Self {
            powered,
            firmware: lab.machines.iter().map(|m| (m.name(), m.spec.firmware.to_string())).collect(),
            bars,
            said: HashMap::new(),
            rates: HashMap::new(),
        }
    }

    fn show(&mut self, view: &MachineView) {
        let rate = self.rate(view);
        let firmware = self.firmware.get(&view.name).map_or("", String::as_str);
        let seconds = self.powered.elapsed().as_secs_f64();
        if let Some((_, bars)) = &self.bars {
            if let Some(bar) = bars.get(&view.name) {
                bar.set_message(format!("{firmware:4} {:13} {}", view.state, live(view, rate)));
            }
            return;
        }
        let change = change(view);
        if self.said.get(&view.name) != Some(&change) {
            eprintln!("{seconds:6.1} s  {} {firmware} {change}", view.name);
            self.said.insert(view.name.clone(), change);
        }
    }

    fn rate(&mut self, view: &MachineView) -> Option<f64> {
        let progress = view.progress.as_ref()?;
        let known = self.rates.get(&view.name).filter(|r| r.step == progress.step && r.from <= progress.done);
        let Some(rate) = known else {
            let rate = Rate { step: progress.step.clone(), since: Instant::now(), from: progress.done };
            self.rates.insert(view.name.clone(), rate);
            return None;
        };
        let seconds = rate.since.elapsed().as_secs_f64();
        (seconds > 0.4).then(|| (progress.done - rate.from) as f64 / seconds)
    }

    fn close(&self) {
        if let Some((_, bars)) = &self.bars {
            bars.values().for_each(ProgressBar::abandon);
            // The last bar's line is open.
            eprintln!();
        }
    }
}

/// What changes rarely: state, step, reason of the wait.
fn change(view: &MachineView) -> String {
    let what = match (&view.problem, &view.waiting, &view.progress) {
        (Some(problem), ..) => problem.title.clone(),
        (_, Some(waiting), _) => waiting.reason.clone(),
        (.., Some(progress)) => progress.step.clone(),
        _ => String::new(),
    };
    plain(format!("{:13} {what}", view.state).trim_end()).replace('\n', " ")
}

/// The same with what changes all the time: bytes and rate, or the time left.
fn live(view: &MachineView, rate: Option<f64>) -> String {
    let text = match (&view.problem, &view.waiting, &view.progress) {
        (Some(problem), ..) => problem.title.clone(),
        (_, Some(waiting), _) => match waiting.deadline {
            Some(deadline) => format!("{} ({} s left)", waiting.reason, (deadline - now()).max(0) / 1000),
            None => waiting.reason.clone(),
        },
        (.., Some(progress)) => {
            let total = if progress.total > 0 { format!("/{}", mib(progress.total)) } else { String::new() };
            let rate = rate.map_or_else(String::new, |r| format!("  {:.0} MB/s", r / 1e6));
            format!("{} {}{total} MiB{rate}", progress.step, mib(progress.done))
        }
        _ => String::new(),
    };
    plain(&text).replace('\n', " ")
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
