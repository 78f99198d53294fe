//! `rackline component SERIAL`: where a part is and has been.

use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::engine::parts::StayView;
use crate::error::Result;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// Serial number of a board, DIMM or disk; MAC address of a NIC.
    serial: String,
}

pub async fn run(args: Args) -> Result<()> {
    let path = format!("/api/v1/components/{}", segment(&args.serial));
    let stays: Vec<StayView> = args.remote.client()?.get(&path).await?;
    show::print(args.remote.json, &stays, || table(&stays));
    Ok(())
}

pub fn table(stays: &[StayView]) -> String {
    if stays.is_empty() {
        return "no inventory with serial numbers yet".into();
    }
    let mut table = show::table(&["PART", "SERIAL", "MODEL", "MACHINE", "WHERE", "SINCE", "LAST SEEN", "GONE"]);
    for stay in stays {
        table.add_row([
            stay.kind.to_string(),
            stay.serial.clone(),
            stay.model.clone(),
            stay.machine.clone(),
            stay.place.clone(),
            show::date(stay.since),
            show::date(stay.seen),
            stay.until.map_or(String::new(), show::date),
        ]);
    }
    table.to_string()
}
