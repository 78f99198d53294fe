//! The configuration and the catalogue of images while the appliance runs.
//!
//! The configuration: a file that changes, or SIGHUP, is read, checked as a whole and taken over
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
use crate::image::Library;
use crate::image::library::News;

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
        super::serve::import(&self.engine, &new).await?;
        for (part, same) in [
            ("site", format!("{:?}", new.site) == format!("{:?}", self.current.site)),
            ("api", format!("{:?}", new.api) == format!("{:?}", self.current.api)),
            ("swarm", format!("{:?}", new.swarm) == format!("{:?}", self.current.swarm)),
            ("commission", format!("{:?}", new.commission) == format!("{:?}", self.current.commission)),
            ("handoff", format!("{:?}", new.handoff) == format!("{:?}", self.current.handoff)),
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

/// Takes over what comes into the catalogue of images, goes from it, or is promoted, until cancelled.
pub async fn follow(library: Arc<Library>, stop: CancellationToken) {
    let (changed, mut changes) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the folder makes events of its own.
        if event.is_ok_and(|e| !e.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .and_then(|mut watcher| watcher.watch(library.folder(), RecursiveMode::NonRecursive).map(|()| watcher));
    let _watching = match watcher {
        Ok(watching) => watching,
        Err(e) => return warn!(error = %e, "new images are taken over with the next start only"),
    };
    loop {
        // First what came between the first reading and this watch.
        let reading = library.clone();
        match tokio::task::spawn_blocking(move || reading.reload()).await {
            Ok(Ok(news)) if news == News::default() => {}
            Ok(Ok(News { come, gone, channels })) => {
                info!(come = come.join(", "), gone = gone.join(", "), channels = channels.join(", "), "images");
            }
            Ok(Err(e)) => error!(error = %e, "the catalogue of images stays as it was"),
            Err(e) => error!(error = %e, "reading the catalogue of images was cut short"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
        }
        while changes.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::catalogue::tests::publish;
    use crate::image::{SigningKey, channels};

    #[tokio::test]
    async fn a_new_image_and_a_promotion_count_without_a_restart() {
        let (dir, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = SigningKey::generate().unwrap();
        let library = Arc::new(Library::open(dir.path(), &[key.public()]).unwrap());
        let stop = CancellationToken::new();
        let following = tokio::spawn(follow(library.clone(), stop.clone()));
        let until = async |text: &str| {
            let waiting = async {
                while library.current().resolve(text).is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
        };
        std::fs::rename(publish(away.path(), "kvm", "1", &key), dir.path().join("kvm-1")).unwrap();
        until("kvm").await;
        channels::promote(dir.path(), &library.current().images[0], "stable", "me").unwrap();
        until("kvm@stable").await;
        stop.cancel();
        following.await.unwrap();
    }
}
