//! `rackline console NAME`: the serial console of a machine in this terminal, or what was recorded of it.

mod escape;
mod terminal;

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

use self::escape::{Escape, Key};
use self::terminal::Terminal;
use super::remote::Remote;
use super::show;
use crate::api::client::{Client, Live, segment};
use crate::api::view::{ConsoleAsks, ConsoleLine, ConsoleLines, ConsoleSays, ConsoleView};
use crate::bmc::sol::hub::Status;
use crate::error::{Error, Kind, OrFail, Result};

/// How often a recording is looked at that goes on.
const FOLLOW: Duration = Duration::from_millis(700);

/// Live unless --log or --boots is given. On a terminal what you type goes to the machine; `~.` at the beginning of a line
/// ends it, `~?` shows what else there is.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    machine: String,
    /// Look on, type nothing.
    #[arg(long)]
    read_only: bool,
    /// Take the console from whoever has it, and the keys from whoever types.
    #[arg(long, conflicts_with = "read_only")]
    force: bool,
    /// Print what was recorded, as lines.
    #[arg(long, conflicts_with_all = ["read_only", "force"])]
    log: bool,
    /// With --log: go on as more is recorded.
    #[arg(long, requires = "log", conflicts_with = "boot")]
    follow: bool,
    /// With --log: the time before each line.
    #[arg(long, requires = "log")]
    times: bool,
    /// With --log: another boot than the newest.
    #[arg(long, requires = "log")]
    boot: Option<i64>,
    /// List the boots that were recorded.
    #[arg(long, conflicts_with_all = ["log", "read_only", "force"])]
    boots: bool,
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?;
    let path = format!("/api/v1/machines/{}/console", segment(&args.machine));
    if args.boots {
        let view: ConsoleView = client.get(&path).await?;
        show::print(args.remote.json, &view, || boots(&view));
        return Ok(());
    }
    match args.log {
        true => log(&client, &path, &args).await,
        false => attach(&client, &path, &args).await,
    }
}

fn boots(view: &ConsoleView) -> String {
    let mut table = show::table(&["BOOT", "BEGAN", "LAST", "PRINTED", "ON DISK"]);
    let date = |millis| show::date(millis);
    for boot in &view.boots {
        table.add_row([
            boot.boot.to_string(),
            date(boot.boot),
            date(boot.last),
            format!("{} B", boot.printed),
            format!("{} B", boot.stored),
        ]);
    }
    let now = if view.recorded { "It is recorded now." } else { "It is not recorded now." };
    format!("{table}\n{now} {}", state(&view.state))
}

fn state(state: &Status) -> String {
    match state {
        Status::Idle => "Nobody has the console open.".into(),
        Status::Connecting => "Connecting to the BMC.".into(),
        Status::Connected => "The console is connected.".into(),
        Status::Waiting { why, hint: Some(hint) } => format!("No console: {why}. Hint: {hint}."),
        Status::Waiting { why, hint: None } => format!("No console: {why}."),
    }
}

async fn log(client: &Client, path: &str, args: &Args) -> Result<()> {
    let boot = args.boot.map_or(String::new(), |boot| format!("&boot={boot}"));
    let mut offset = 0;
    // A note between two answers is in both.
    let mut noted = HashSet::new();
    loop {
        let lines: ConsoleLines = match client.get(&format!("{path}/lines?offset={offset}{boot}")).await {
            Err(e) if args.follow && e.code() == "console.empty" => {
                tokio::time::sleep(FOLLOW).await;
                continue;
            }
            lines => lines?,
        };
        if lines.end < offset {
            // The next boot has begun.
            offset = 0;
            continue;
        }
        let more = lines.next > lines.offset;
        let tail = lines.tail.filter(|_| !more && !args.follow);
        let new = lines.lines.into_iter().filter(|line| !line.note || noted.insert((line.at, line.text.clone())));
        for line in new.chain(tail) {
            if !print(&line, args) {
                return Ok(());
            }
        }
        offset = lines.next;
        match (more, args.follow) {
            (true, _) => {}
            (false, true) => tokio::time::sleep(FOLLOW).await,
            (false, false) => return Ok(()),
        }
    }
}

/// False where nobody reads any more (`| head`).
fn print(line: &ConsoleLine, args: &Args) -> bool {
    let mut out = std::io::stdout();
    if args.remote.json {
        return writeln!(out, "{}", serde_json::to_string(line).unwrap_or_default()).is_ok();
    }
    let time = if args.times { show::date(line.at) + " " } else { String::new() };
    match line.note {
        true => writeln!(out, "{time}[rackline: {}]", line.text).is_ok(),
        false => writeln!(out, "{time}{}", line.text).is_ok(),
    }
}

/// What ends a process that sits at a terminal, and would leave it raw.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        let [a, b, c] = kinds.map(|kind| signal(kind).or_fail(Kind::Internal, "console.signal", || "no signals"));
        Ok(Self([a?, b?, c?]))
    }

    async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

async fn attach(client: &Client, path: &str, args: &Args) -> Result<()> {
    let types = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !args.read_only;
    if args.force && !types {
        return Err(Error::input("console.terminal", "--force needs a terminal to type at"));
    }
    let mut ends = Ends::listen()?;
    let live = client.live(&format!("{path}/live?types={types}&force={}", args.force)).await?;
    // Put back when this is dropped: at the end, an error or a panic.
    let terminal = Terminal::open(types)?;
    terminal.say(&format!("console of {}{}", args.machine, if types { "; ~. ends it, ~? helps" } else { "" }));
    let outcome = tokio::select! {
        outcome = converse(live, &terminal, types) => outcome,
        () = ends.any() => Ok(()),
    };
    terminal.say("closed");
    drop(terminal);
    outcome
}

async fn converse(live: Live, terminal: &Terminal, types: bool) -> Result<()> {
    let lost = |e: tokio_tungstenite::tungstenite::Error| {
        Error::unreachable("client.unreachable", "the appliance is gone").because(e).hint("see its log")
    };
    let (mut to, mut from) = live.split();
    let mut keys = types.then(terminal::keys);
    let mut escape = Escape::default();
    loop {
        tokio::select! {
            message = from.next() => match message {
                Some(Ok(Message::Binary(text))) => {
                    if !terminal.print(&text) {
                        return Ok(());
                    }
                }
                Some(Ok(Message::Text(say))) => {
                    if let Ok(say) = serde_json::from_str(&say) {
                        tell(terminal, say, types);
                    }
                }
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(lost(e)),
            },
            typed = async { match &mut keys {
                Some(keys) => keys.recv().await,
                None => std::future::pending().await,
            } } => {
                // The end of the terminal.
                let Some(typed) = typed else { return Ok(()) };
                for key in escape.feed(&typed) {
                    match key {
                        Key::Text(text) => to.send(Message::Binary(text.into())).await.map_err(lost)?,
                        Key::Break => {
                            let ask = serde_json::to_string(&ConsoleAsks::Break).unwrap_or_default();
                            to.send(Message::Text(ask.into())).await.map_err(lost)?;
                            terminal.say("break sent");
                        }
                        Key::Help => terminal.say(escape::HELP),
                        Key::End => {
                            let _ = to.close().await;
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

fn tell(terminal: &Terminal, say: ConsoleSays, types: bool) {
    match say {
        ConsoleSays::State(now @ (Status::Connected | Status::Waiting { .. })) => terminal.say(&state(&now)),
        ConsoleSays::State(_) => {}
        ConsoleSays::Note(note) => terminal.say(&note),
        ConsoleSays::Types(false) if types => {
            terminal.say("somebody else types here; what you type is not taken (--force takes the keys)");
        }
        ConsoleSays::Types(_) => {}
    }
}
