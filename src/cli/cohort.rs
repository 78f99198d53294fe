//! `rackline cohort`: where machines that are built alike stand, and how far apart.

use super::remote::Remote;
use super::show;
use crate::error::Result;
use crate::judge::cohort::CohortView;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// Only measures whose name begins so: `cpu`, `disk.read`.
    measure: Option<String>,
}

pub async fn run(args: Args) -> Result<()> {
    let mut cohorts: Vec<CohortView> = args.remote.client()?.get("/api/v1/cohorts").await?;
    if let Some(measure) = &args.measure {
        cohorts.retain(|cohort| cohort.measure.starts_with(measure.as_str()));
    }
    show::print(args.remote.json, &cohorts, || table(&cohorts));
    Ok(())
}

fn table(cohorts: &[CohortView]) -> String {
    if cohorts.is_empty() {
        return "no machine has measured anything yet".into();
    }
    let mut table = show::table(&["MEASURE", "TWINS", "MEDIAN", "MAD", "LEAST", "GREATEST", "UNIT", "ALIKE BY"]);
    for c in cohorts {
        let number = |value: f64| format!("{value:.1}");
        table.add_row([
            c.measure.clone(),
            c.count.to_string(),
            number(c.median),
            number(c.mad),
            number(c.least),
            number(c.greatest),
            c.unit.clone(),
            c.twins_by.clone(),
        ]);
    }
    table.to_string()
}
