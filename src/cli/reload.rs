//! The configuration while the appliance runs: a file that changes, or SIGHUP, is read, checked as a whole and taken over
//! at once, or refused with the reason while the old one goes on.
//!
//! Subnets, reservations, options, rules of boot files, the list of expected machines and `[[switches]]` are taken over. What
//! holds sockets or keys stays until a restart, and is named when it differs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::boot::monitor::Monitor;
use crate::boot::switch::{Listed, Switches};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Kind, OrFail, Result};

/// An editor writes a file in several steps.
const SETTLE: Duration = Duration::from_millis(300);

/// What a new configuration is handed to.
pub struct Reload {
    pub path: PathBuf,
    pub current: Config,
    pub monitor: Monitor,
    pub engine: Engine,
    pub switches: Arc<Switches>,
}

impl Reload {
    /// Runs until cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let (changed, mut changes) = mpsc::channel(1);
        // Kept alive as long as the loop: dropping it ends the watching.
        let _watching = self.watch(changed).map_err(|e| warn!(error = %e, "changes are taken over on SIGHUP only"));
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => info!("SIGHUP: reading the configuration"),
                changed = changes.recv() => match changed {
                    Some(()) => tokio::time::sleep(SETTLE).await,
                    None => std::future::pending().await,
                },
            }
            while changes.try_recv().is_ok() {}
            self.take_over().await;
        }
    }

    /// Folders are watched, not files: editors and configuration management put a new file in the place of the old one.
    fn watch(&self, changed: mpsc::Sender<()>) -> Result<notify::RecommendedWatcher> {
        let files: Vec<PathBuf> =
            [Some(&self.path), self.current.site.expected.as_ref()].into_iter().flatten().cloned().collect();
        let names: Vec<_> = files.iter().filter_map(|f| f.file_name().map(ToOwned::to_owned)).collect();
        let failed = || format!("cannot watch {}", self.path.display());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let ours = event.is_ok_and(|e| {
                (e.kind.is_create() || e.kind.is_modify())
                    && e.paths.iter().any(|p| p.file_name().is_some_and(|n| names.iter().any(|own| own == n)))
            });
            if ours {
                let _ = changed.try_send(());
            }
        })
        .or_fail(Kind::Internal, "reload.watch", failed)?;
        for file in &files {
            let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            watcher.watch(folder, RecursiveMode::NonRecursive).or_fail(Kind::Internal, "reload.watch", failed)?;
        }
        Ok(watcher)
    }

    async fn take_over(&mut self) {
        match self.try_take_over().await {
            Ok(true) => info!(file = %self.path.display(), "the new configuration is in use"),
            Ok(false) => info!(file = %self.path.display(), "the configuration says what it said before"),
            Err(e) => {
                let hint = e.next_step().unwrap_or("correct it and save it again").to_owned();
                error!(error = %e, hint, "the new configuration is not taken over; the old one goes on");
                self.monitor.refused(Some(e.to_string()));
            }
        }
    }

    async fn try_take_over(&mut self) -> Result<bool> {
        let new = Config::load(&self.path)?;
        // Both are looked at before either is taken over.
        let listed = Listed::new(new.switches.clone(), &new.services, &new.boot)?;
        let changed = self.monitor.reconfigure(&new.boot)? || said(&new) != said(&self.current);
        self.switches.take_over(listed);
        self.monitor.serve_switches(self.switches.tftp_files());
        super::serve::import(&self.engine, &new, &self.switches).await?;
        for (part, same) in [
            ("site", format!("{:?}", new.site) == format!("{:?}", self.current.site)),
            ("api", format!("{:?}", new.api) == format!("{:?}", self.current.api)),
            ("host", format!("{:?}", new.host) == format!("{:?}", self.current.host)),
        ] {
            if !same {
                warn!("[{part}] changes with the next start of the appliance");
            }
        }
        self.monitor.refused(None);
        self.current.switches = new.switches;
        self.current.services = new.services;
        Ok(changed)
    }
}

/// What a configuration says of switches.
fn said(config: &Config) -> String {
    format!("{:?} {:?}", config.switches, config.services)
}
