//! One step of the plan, done.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::agent::block::Device;
use crate::agent::deploy::gpt;
use crate::agent::roots::Roots;
use crate::agent::{blocking, tool};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::role::plan::Step;

/// mkfs of hundreds of terabytes on slow disks.
const LONG: Duration = Duration::from_secs(900);
const QUICK: Duration = Duration::from_secs(60);
const FSTAB: &str = "/etc/fstab";

pub async fn act(roots: &Roots, step: &Step, again: bool) -> Result<()> {
    match step {
        Step::Partition { disk, id, label } => {
            let (path, id, label) = (roots.dev.join(disk), *id, label.clone());
            blocking(move || {
                let device = Device::claim(&path)?;
                gpt::single(&device, id, &label)?;
                device.reread_partitions()
            })
            .await?;
        }
        Step::Mount { id, system, target, options } => {
            mount(roots, &id.to_string(), system.name(), target, options).await?;
        }
        step => {
            let Some(command) = step.command(again) else {
                return Err(Error::internal("storage.step", format!("{} has no command", step.name())));
            };
            let Some((program, args)) = command.split_first() else { return Ok(()) };
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            tool::expect(program, &args, LONG).await?;
        }
    }
    // Device nodes and links are udev's work; the next look wants them.
    tool::expect("udevadm", &["settle", "--timeout=60"], QUICK.saturating_mul(2)).await.map(|_| ())
}

/// What the image has in the folder goes into the new file system first; then it is mounted at each start. Without its disk the
/// host starts all the same, so that somebody can look.
async fn mount(roots: &Roots, id: &str, system: &str, target: &str, options: &[String]) -> Result<()> {
    let failed = |path: &str| format!("{path} cannot be made");
    fs::create_dir_all(target).or_fail(Kind::Internal, "storage.mount", || failed(target))?;
    let source = format!("UUID={id}");
    let filled = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some());
    if filled {
        let place = roots.run.join("fill");
        fs::create_dir_all(&place).or_fail(Kind::Internal, "storage.mount", || failed("/run/rackline/fill"))?;
        let place = place.display().to_string();
        tool::expect("mount", &["-t", system, &source, &place], QUICK).await?;
        let copied = tool::expect("cp", &["-a", "--", &format!("{target}/."), &place], LONG).await;
        tool::expect("umount", &[&place], QUICK).await?;
        copied?;
    }
    let text = fs::read_to_string(FSTAB).unwrap_or_default();
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    all.push("nofail");
    let line = format!("{source} {target} {system} {} 0 2", all.join(","));
    let text = with_line(&text, target, &line);
    durable::replace(Path::new(FSTAB), text.as_bytes()).or_fail(Kind::Internal, "storage.mount", || failed(FSTAB))?;
    tool::expect("systemctl", &["daemon-reload"], QUICK).await?;
    tool::expect("mount", &[target], QUICK).await.map(|_| ())
}

/// The table with `line` for this target, in the place of another one for it.
fn with_line(table: &str, target: &str, line: &str) -> String {
    let of_target = |l: &&str| !l.trim_start().starts_with('#') && l.split_whitespace().nth(1) == Some(target);
    let mut lines: Vec<&str> = table.lines().filter(|l| !of_target(l)).collect();
    lines.push(line);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_one_line() {
        let table = "# /srv/a is a disk\nLABEL=root / ext4 defaults 0 1\nUUID=1 /srv/a xfs nofail 0 2";
        let new = with_line(table, "/srv/a", "UUID=2 /srv/a xfs noatime,nofail 0 2");
        assert_eq!(new, "# /srv/a is a disk\nLABEL=root / ext4 defaults 0 1\nUUID=2 /srv/a xfs noatime,nofail 0 2\n");
        assert_eq!(with_line(&new, "/srv/a", "UUID=2 /srv/a xfs noatime,nofail 0 2"), new);
    }
}
