//! `rackline expect …`: the machines that are to come, as a purchase list has them.

use std::path::PathBuf;

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::config::expected::{self, COLUMNS};
use crate::engine::expected::{ExpectedView, ImportReport};
use crate::error::{Error, Kind, OrFail, Result};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take over a purchase list (CSV): all of it, or nothing where a line is wrong. What is known already changes nothing.
    Import {
        file: PathBuf,
        /// Say what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// All machines of the list.
    List,
    /// One of them, by name or serial number.
    Show { machine: String },
    /// The list as CSV, without the passwords of BMCs; it can be imported again.
    Export,
}

/// Machines that are named in the answer to an import.
const NAMED: usize = 20;

pub async fn run(args: Args) -> Result<()> {
    let (client, json) = (args.remote.client()?.patient(), args.remote.json);
    let all = async || client.get::<Vec<ExpectedView>>("/api/v1/expected").await;
    match args.command {
        Command::Import { file, dry_run } => {
            let read = std::fs::read(&file);
            let bytes = read.or_fail(Kind::Input, "expected.read", || format!("cannot read {}", file.display()))?;
            let text = expected::text(bytes)?;
            // A slip is told before anything is sent.
            expected::parse(&text)?;
            let path = format!("/api/v1/expected?dry_run={dry_run}");
            let report: ImportReport = client.post_text(&path, text).await?;
            show::print(json, &report, || report_text(&report));
        }
        Command::List => {
            let all = all().await?;
            show::print(json, &all, || table(&all));
        }
        Command::Show { machine } => {
            let all = all().await?;
            let found = all.iter().find(|m| m.name == machine || m.serial.as_str() == machine);
            let found = found.ok_or_else(|| {
                Error::not_found("expected.unknown", format!("{machine:?} is not on the list"))
                    .hint("`rackline expect list` shows it; a name or serial number is given")
            })?;
            show::print(json, found, || {
                let values = COLUMNS.iter().zip(row(found)).filter(|(_, value)| !value.is_empty());
                values.map(|(column, value)| format!("{column:<14}{value}")).collect::<Vec<_>>().join("\n")
            });
        }
        Command::Export => {
            let all = all().await?;
            let text = csv_of(&all)?;
            show::print(json, &all, || text.trim_end().to_owned());
        }
    }
    Ok(())
}

fn report_text(report: &ImportReport) -> String {
    let would = if report.dry_run { "would be " } else { "" };
    let mut lines = vec![format!(
        "{} rows: {} {would}new, {} {would}changed, {} as they are",
        report.rows,
        report.new.len(),
        report.changed.len(),
        report.unchanged
    )];
    let new = report.new.iter().map(|name| format!("  {name}: new"));
    let changed = report.changed.iter().map(|change| format!("  {}: {}", change.machine, change.what.join("; ")));
    lines.extend(new.chain(changed).take(NAMED));
    let more = (report.new.len() + report.changed.len()).saturating_sub(NAMED);
    if more > 0 {
        lines.push(format!("  and {more} more: --json has them all"));
    }
    lines.extend(report.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.join("\n")
}

fn table(all: &[ExpectedView]) -> String {
    if all.is_empty() {
        return "no machine is expected: `rackline expect import orders.csv`".into();
    }
    let mut table = show::table(&["NAME", "SERIAL", "PLACE", "MODEL", "ORDER", "CUSTOMER", "STATE"]);
    for m in all {
        table.add_row([
            m.name.clone(),
            m.serial.to_string(),
            m.place.as_ref().map_or(String::new(), ToString::to_string),
            m.purchase.model.clone().unwrap_or_default(),
            m.purchase.order.clone().unwrap_or_default(),
            m.purchase.customer.clone().unwrap_or_default(),
            m.state.clone(),
        ]);
    }
    table.to_string()
}

/// In the order of [`COLUMNS`].
fn row(m: &ExpectedView) -> [String; COLUMNS.len()] {
    let text = |word: &Option<String>| word.clone().unwrap_or_default();
    let redfish = m.bmc_redfish.map(|address| format!("https://{address}"));
    let ipmi = m.bmc_address.filter(|address| Some(*address) != m.bmc_redfish).map(|address| address.to_string());
    let ports = |of: fn(&crate::machine::SwitchPort) -> &str| m.ports.iter().map(of).collect::<Vec<_>>().join(" ");
    [
        m.name.clone(),
        m.serial.to_string(),
        m.mac.map_or(String::new(), |mac| mac.to_string()),
        m.place.as_ref().map_or(String::new(), |place| place.rack.clone()),
        m.place.as_ref().map_or(String::new(), |place| place.unit.to_string()),
        ipmi.into_iter().chain(redfish).collect::<Vec<_>>().join(" "),
        text(&m.bmc_user),
        String::new(),
        m.bmc_mac.map_or(String::new(), |mac| mac.to_string()),
        text(&m.purchase.order),
        text(&m.purchase.vendor),
        text(&m.purchase.model),
        text(&m.purchase.customer),
        ports(|port| &port.switch),
        ports(|port| &port.port),
    ]
}

fn csv_of(all: &[ExpectedView]) -> Result<String> {
    let failed = || "the list cannot be written as CSV";
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(COLUMNS).or_fail(Kind::Internal, "expected.export", failed)?;
    for machine in all {
        lines.write_record(row(machine)).or_fail(Kind::Internal, "expected.export", failed)?;
    }
    let bytes = lines.into_inner().map_err(|e| e.into_error()).or_fail(Kind::Internal, "expected.export", failed)?;
    expected::text(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_says_the_same_when_it_is_imported() {
        let text = "name,serial,mac,rack,unit,bmc_address,bmc_user,bmc_password,bmc_mac,order,vendor,model,customer,switch,port\n\
                    kvm-1,7XK2M13,52:54:00:00:00:01,R 1,12,10.77.1.1:623 https://10.77.1.1:443,admin,,d0:94:66:00:00:01,PO-1,Dell,\
                    compute,\"Big, and Sons\",a b,18 18\nkvm-2,7XK2M14,,,,https://10.77.1.2:443,admin,,,,,,,,\n";
        let views: Vec<ExpectedView> = (expected::parse(text).unwrap().machines.into_iter())
            .map(|m| ExpectedView {
                name: m.name.unwrap().to_string(),
                serial: m.serial,
                mac: m.mac,
                place: m.place,
                bmc_address: m.bmc.as_ref().map(|bmc| bmc.address),
                bmc_redfish: m.bmc.as_ref().and_then(|bmc| bmc.redfish),
                bmc_user: m.bmc.map(|bmc| bmc.user),
                bmc_mac: m.bmc_mac,
                purchase: m.purchase.map(|purchase| purchase.as_ref().clone()).unwrap_or_default(),
                ports: m.ports,
                state: "expected".into(),
            })
            .collect();
        assert_eq!(csv_of(&views).unwrap(), text);
    }
}
