//! Other programs, run without a shell, with a deadline and with a bound on what they may say.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::error::{Error, Result};

/// More than this of a program's output is not kept.
const OUTPUT_MAX: u64 = 256 << 10;

#[derive(Debug, Clone, Default)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The last line it said, for a sentence about what went wrong.
    pub fn last_words(&self) -> &str {
        let lines = self.stderr.lines().rev().chain(self.stdout.lines().rev());
        lines.map(str::trim).find(|l| !l.is_empty()).unwrap_or("no output")
    }
}

/// Runs `program` and ends it at the deadline. A non-zero end is an answer, not an error: see [`Output::success`].
pub async fn run(program: &str, args: &[&str], deadline: Duration) -> Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| {
            Error::config("tool.missing", format!("{program} cannot be started"))
                .hint(format!("add the package that holds {program} to the image"))
                .because(e)
        })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(bounded(out), bounded(err), child.wait());
        status.map(|s| Output { success: s.success(), stdout, stderr })
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(e)) => Err(Error::internal("tool.lost", format!("{program} was lost")).because(e)),
        Err(_) => Err(Error::unreachable(
            "tool.deadline",
            format!("{program} did not end within {:.0} s", deadline.as_secs_f64()),
        )),
    }
}

/// Like [`run`], where only success will do.
pub async fn expect(program: &str, args: &[&str], deadline: Duration) -> Result<Output> {
    let output = run(program, args, deadline).await?;
    if output.success {
        return Ok(output);
    }
    let what = format!("{program} {} failed: {}", args.first().unwrap_or(&""), output.last_words());
    Err(Error::refused("tool.failed", what))
}

/// The first [`OUTPUT_MAX`] bytes; the rest is read and dropped, so that the program is not held up by a full pipe.
async fn bounded(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    // A pipe that breaks ends the text; the exit status tells the rest.
    let _ = (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn success_failure_and_a_missing_program_are_told_apart() {
        let second = Duration::from_secs(20);
        assert_eq!(run("echo", &["hi"], second).await.unwrap().stdout, "hi\n");
        assert!(!run("false", &[], second).await.unwrap().success);
        assert_eq!(expect("false", &[], second).await.unwrap_err().code(), "tool.failed");
        assert_eq!(run("/no/such/tool", &[], second).await.unwrap_err().code(), "tool.missing");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let error = run("sleep", &["600"], Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.code(), "tool.deadline");
    }

    #[tokio::test]
    async fn much_output_neither_blocks_nor_fills_the_memory() {
        let output = run("head", &["-c", "3000000", "/dev/zero"], Duration::from_secs(30)).await.unwrap();
        assert!(output.success);
        assert_eq!(output.stdout.len() as u64, OUTPUT_MAX);
    }
}
