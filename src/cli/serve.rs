//! `rackline serve`: reads the configuration, opens the state, starts the parts and waits for the end.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::reload::Reload;
use crate::api::{self, Shared};
use crate::bmc::Fleet;
use crate::bmc::redfish::{Authority, Known};
use crate::bmc::sol::record::{self, Recorder};
use crate::bmc::sol::{Consoles, Timing};
use crate::boot::firmware::Files;
use crate::boot::monitor::Monitor;
use crate::boot::script::Scripts;
use crate::boot::switch::{self, Switches};
use crate::check::Set;
use crate::config::{self, Config, Console, expected};
use crate::console;
use crate::engine::announce::Announce;
use crate::engine::consoles::{self, Recorded};
use crate::engine::expected::of_file;
use crate::engine::models::Shelf;
use crate::engine::{BmcAddress, BmcSetup, Engine, SeedFacts, Site};
use crate::error::{Error, Kind, OrFail, Result};
use crate::firmware::Depot;
use crate::httpd::{self, Limits, Server};
use crate::image::{Cache, Library, PublicKey, RamSystem, ram};
use crate::role::Templates;
use crate::store::seal::Seal;
use crate::store::{self, Db};
use crate::swarm::plan::Settings;
use crate::swarm::torrent::{self, Torrents};
use crate::swarm::tracker::{Hosts, Tracker};
use crate::swarm::{self, ServeLimits};
use crate::{bmc, boot};

#[derive(clap::Args)]
pub struct Args {
    /// The configuration; rackline.example.toml explains each key.
    #[arg(long, default_value = "/etc/rackline/rackline.toml")]
    config: PathBuf,
}

pub async fn run(args: Args) -> Result<()> {
    super::log_to_stderr("info,rackline=info,sqlx=warn,librqbit=warn");
    let config = Config::load(&args.config)?;
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));

    let state = &config.site.state;
    let _held = store::lock(state)?;
    let db = Db::open(state).await?;
    let seal = Seal::load_or_make(&state.join("site.key"))?;
    let cache = Cache::open_or_default(config.site.cache.as_deref())?;
    let key = cache.signing_key()?;
    let public = key.public();
    let library = Arc::new(library(&cache, public)?);
    let system = RamSystem::newest(&cache)?;
    let exe = std::env::current_exe().or_fail(Kind::Internal, "serve.exe", || "cannot find this binary")?;
    let initrd = ram::assemble(&cache, &system, &exe)?;
    let seed = SeedFacts {
        url: config.boot.url.clone(),
        kernel_floor: config.host.kernel_floor.clone(),
        tls: config.handoff.tls,
    };
    let authority = Arc::new(super::handoff::authority(&config, &db, &seal).await?);
    let recorder = Recorder::start(&state.join("console"), record::Limits::default())?;
    let fleet = Fleet::knowing(bmc::Settings::default(), known_bmcs(&config)?);
    let switches = Arc::new(Switches::new(config.switches.clone(), &config.services, &config.boot)?);
    let outlets = super::outlets::open(&config, &db, &seal).await?;
    let receivers = super::handoff::receivers(&config, &db, &seal).await?;
    let firmware = &config.firmware;
    let secret = seal.derive("firmware bundles");
    let depot = Depot::new(firmware.baselines.clone(), config.bundles(), firmware.apply, &config.boot.url, secret);
    // A fault in a file is to show now, and not when a machine is commissioned or ordered.
    depot.baselines()?;
    let roles = Templates::new(config.host.roles.clone());
    roles.all()?;
    let site = Site {
        db: db.clone(),
        outlets,
        seal,
        key,
        fleet: fleet.clone(),
        firmware: depot.clone(),
        models: Shelf::open(config.site.models.clone())?,
        seed,
        bmc_setup: BmcSetup {
            ntp: config.bmc.ntp.clone(),
            address: match config.bmc.address {
                config::BmcAddress::Keep => BmcAddress::Keep,
                config::BmcAddress::Dhcp => BmcAddress::Dhcp,
                config::BmcAddress::Static => BmcAddress::Static,
            },
        },
        checks: match &config.host.checks {
            Some(folder) => Set::load(folder)?,
            None => Set::built_in().clone(),
        },
        burn: config.commission.profile()?,
        boot_limit: config.boot.boot_limit,
        switches: switches.clone(),
        announce: Announce::new(&config.site.name, receivers),
    };

    let limits = Limits::of_files(raise_file_limit());
    let people = people_listener(config.api.listen)?;
    let machines = machines_listener(&config).await?;
    let tracker = swarms(&config, &library, site.seal.derive("swarm"), stop.clone()).await?;
    let engine = Engine::start(site, stop.clone()).await?;
    let consoles = Consoles::new(fleet.clone(), recorder, engine.console_door(), Timing::default());
    tokio::spawn(consoles::record(engine.clone(), consoles.clone(), recorded(&config), stop.clone()));
    import(&engine, &config).await?;
    if config.bmc.sweep_seconds > 0 {
        engine.sweep(Duration::from_secs(config.bmc.sweep_seconds.into()));
    }

    let files = Arc::new(boot_files(&system, &initrd)?);
    let policy: Arc<dyn boot::Policy> = Arc::new(engine.clone());
    let scripts = Arc::new(Scripts::new(&config.boot, &public.to_string())?);
    let services = boot::serve(&config.boot, files.clone(), scripts, switches.clone(), policy.clone(), db).await?;
    let loaders = services.loaders();
    let boot_site = Arc::new(boot::http::Site { policy, files, loaders });
    let boot = Arc::new(services.explainer(Arc::new(engine.clone())));
    let monitor = services.monitor();
    let ssh_keys = config.host.ssh_keys.clone().into();
    let reload = Reload {
        path: args.config,
        monitor: monitor.clone(),
        engine: engine.clone(),
        switches: switches.clone(),
        current: config.clone(),
    };
    tokio::spawn(reload.run(stop.clone()));
    tokio::spawn(super::reload::follow(library.clone(), stop.clone()));
    let images = library.clone();
    let web = Arc::<httpd::Counters>::default();
    let torrents = torrents(&config, library.clone(), monitor.clone(), &stop);
    let shared = Shared {
        engine: engine.clone(),
        library,
        boot,
        monitor,
        web: web.clone(),
        torrents: torrents.clone(),
        ssh_keys,
        roles,
        authority,
    };
    let swarms = api::swarm::Site { engine: engine.clone(), tracker };
    tokio::spawn(api::swarm::watch(swarms.clone(), stop.clone()));
    let router = api::agents(shared.clone()).merge(boot::http::router(boot_site.clone()));
    let router = router.merge(api::swarm::agents(swarms.clone())).merge(api::burn::agents(engine.clone()));
    let router = router.merge(switch::http::router(switches));
    let router = torrents.into_iter().fold(router, |router, torrents| router.merge(api::torrent::router(torrents)));
    let find = move |path: &str| {
        let boot = boot_site.file(path).map(Path::to_owned);
        boot.or_else(|| api::image_file(&images, path)).or_else(|| depot.file(path))
    };
    let for_machines = Server::new(find, router, limits, web, stop.clone());
    let consoles_site = api::console::Site { engine: engine.clone(), consoles: consoles.clone() };
    let for_people = api::people(shared).merge(api::swarm::people(swarms)).merge(api::console::people(consoles_site));
    let for_people = for_people.merge(console::router(engine));
    let address = people.local_addr().unwrap_or(config.api.listen);
    tracing::info!(site = %config.site.name, console = %format!("http://{address}/"), machines = %config.boot.url, "ready");
    let serving = async {
        let served = http(people, for_people, stop.clone()).await;
        stop.cancel();
        served
    };
    let ((), served) = tokio::join!(for_machines.run(machines), serving);
    services.stop().await;
    consoles.close().await;
    fleet.close().await;
    served
}

fn recorded(config: &Config) -> Recorded {
    match config.bmc.console {
        Console::Boot => Recorded::Boot,
        Console::Always => Recorded::Always,
        Console::Never => Recorded::Never,
    }
}

/// The pages and the API for people.
async fn http(listener: TcpListener, router: Router, stop: CancellationToken) -> Result<()> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    // Long polls and streams end with the stop themselves; the rest has a moment to finish.
    let grace = stop.clone();
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        served = async { serving.await } => served.or_fail(Kind::Internal, "serve.http", || "an HTTP server ended"),
        () = async { grace.cancelled().await; tokio::time::sleep(std::time::Duration::from_secs(2)).await } => Ok(()),
    }
}

/// The socket that was handed over (systemd's protocol: `LISTEN_FDS`), else an own one.
/// What the BMCs that speak Redfish are believed by.
fn known_bmcs(config: &Config) -> Result<Known> {
    let Some(file) = &config.bmc.authority else {
        return Known::open(&config.site.state.join("bmc-certificates"));
    };
    let pem = std::fs::read(file);
    let pem = pem.or_fail(Kind::Config, "bmc.authority", || format!("{} cannot be read", file.display()))?;
    Ok(Known::by_authority(Authority::from_pem(&pem)?))
}

fn people_listener(address: SocketAddr) -> Result<TcpListener> {
    let handed = listenfd::ListenFd::from_env().take_tcp_listener(0).ok().flatten();
    let listener = match handed {
        Some(listener) => listener,
        None => std::net::TcpListener::bind(address).map_err(|e| {
            Error::config("serve.port", format!("cannot listen on {address} for console and API"))
                .because(e)
                .hint("stop what uses the port, or set api.listen to another")
        })?,
    };
    listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).or_fail(
        Kind::Internal,
        "serve.listen",
        || "the listening socket is not usable",
    )
}

/// A connection that is served a file holds two file descriptors, and the usual limit of 1024 is one for `select(2)`.
/// The new limit.
fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(e) => {
            tracing::warn!(error = %e, "the limit on open files stays as it is");
            current.unwrap_or(u64::MAX)
        }
    }
}

/// Where the machines reach us: the port of `boot.url`, on every address of this host.
async fn machines_listener(config: &Config) -> Result<TcpListener> {
    let port = config.boot.port();
    TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await.map_err(|e| {
        Error::config("serve.port", format!("cannot listen on port {port} for the machines"))
            .because(e)
            .hint(format!("stop what uses the port: `ss -ltnp 'sport = :{port}'`"))
    })
}

/// Who plans the swarms; and the appliance's own frame server, from now until the stop.
async fn swarms(
    config: &Config,
    library: &Arc<Library>,
    secret: [u8; 32],
    stop: CancellationToken,
) -> Result<Arc<Tracker>> {
    let port = config.swarm.port.get();
    let listener = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await.map_err(|e| {
        Error::config("serve.port", format!("cannot listen on port {port} for swarms"))
            .because(e)
            .hint("stop what uses the port, or set swarm.port to another")
    })?;
    let bytes = |mbit: Option<std::num::NonZeroU32>| mbit.map(|mbit| u64::from(mbit.get()) * 125_000);
    let settings = Settings {
        uplink: bytes(config.swarm.uplink_mbit),
        machine_link: bytes(config.swarm.machine_link_mbit),
        upload_limit: bytes(config.swarm.machine_upload_mbit),
        rack_limit: bytes(config.swarm.rack_uplink_mbit),
    };
    let server = swarm::Server::new(ServeLimits::default());
    tokio::spawn(server.clone().serve(listener, stop));
    let space = u64::from(config.swarm.hosts_space_gib.get()) << 30;
    let hosts = bytes(config.swarm.hosts_upload_mbit).map(|upload_limit| Hosts { upload_limit, space });
    Ok(Arc::new(Tracker::new(library.clone(), server, settings, port, secret).helped_by(hosts)))
}

/// The BitTorrent face; it costs nothing until a client comes.
fn torrents(
    config: &Config,
    library: Arc<Library>,
    monitor: Monitor,
    stop: &CancellationToken,
) -> Option<Arc<Torrents>> {
    if !config.swarm.bittorrent {
        return None;
    }
    // 125,000 bytes a second are 1 Mbit/s.
    let rate = config.swarm.bittorrent_mbit.map(|mbit| mbit.saturating_mul(NonZeroU32::MIN.saturating_add(124_999)));
    let settings = torrent::Settings { port: config.swarm.bittorrent_port.get(), rate };
    let torrents = Torrents::new(library, &config.boot.url, settings, move |address| monitor.serves(address));
    let torrents = Arc::new(torrents);
    tokio::spawn(torrents.clone().run(stop.clone()));
    Some(torrents)
}

/// Everything that firmware, iPXE and the RAM system fetch.
fn boot_files(system: &RamSystem, initrd: &Path) -> Result<Files> {
    let files = Files::installed()?.with("vmlinuz", &system.vmlinuz)?.with("initrd", initrd)?;
    files.with("local.efi", &system.local_efi)?.over_tftp(&["vmlinuz", "initrd"])
}

/// What can be deployed; what cannot be used is said once, here.
fn library(cache: &Cache, key: PublicKey) -> Result<Library> {
    let library = Library::open(&cache.folder("images")?, &[key])?;
    let catalogue = library.current();
    for (folder, why) in &catalogue.unusable {
        tracing::warn!(folder = %folder.display(), %why, "an image is not usable");
    }
    if catalogue.images.is_empty() {
        tracing::warn!("there is no image to deploy: `rackline image build --all`");
    }
    Ok(library)
}

/// Tells the engine of every expected machine; what it knows already changes nothing.
pub async fn import(engine: &Engine, config: &Config) -> Result<()> {
    engine.own_bmc_passwords(config.bmc.own_passwords);
    let Some(path) = &config.site.expected else { return Ok(()) };
    let bytes =
        std::fs::read(path).or_fail(Kind::Config, "expected.read", || format!("cannot read {}", path.display()))?;
    let list = expected::text(bytes).and_then(|text| expected::parse(&text)).map_err(|e| of_file(e, path))?;
    let report = engine.import(list, false).await.map_err(|e| of_file(e, path))?;
    tracing::info!(
        rows = report.rows,
        new = report.new.len(),
        changed = report.changed.len(),
        list = %path.display(),
        "expected machines"
    );
    for warning in report.warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}
