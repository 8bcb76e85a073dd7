//! Waiting for an operation: progress with rate and time left, and what Ctrl-C does.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engram_client::{Client, types as v1};
use indicatif::ProgressBar;

use crate::cli::bulk::progress::Progress;
use crate::cli::context::parse_duration;
use crate::cli::failure::Failure;
use crate::seams::Seams;

/// How often the cluster is asked how far it is.
const POLL: Duration = Duration::from_millis(300);
/// Answers in a row that may fail before the wait does: nodes restart while one waits.
const FAILURES_MAX: u32 = 20;

// Options of commands that wait. (A doc comment would become the help of its users.)
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Return when the operation has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Stop waiting after this time; the operation goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub wait_limit: Option<Duration>,
    /// What Ctrl-C does to the operation
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub on_interrupt: OnInterrupt,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnInterrupt {
    /// It goes on without this command
    #[default]
    Leave,
    /// It is called off, and undone
    Cancel,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Done,
    /// `--wait-limit` has passed.
    Late,
    /// Ctrl-C, and the operation goes on.
    Left,
    /// Ctrl-C, and the operation is to be called off.
    ToCancel,
}

/// What is waited for.
pub struct Wait<'a> {
    pub client: &'a Client,
    pub seams: &'a Seams,
    pub args: &'a WaitArgs,
    pub progress: Progress,
    /// Groups whose moves belong to the operation; `None`: all.
    pub groups: Option<BTreeSet<u64>>,
    /// Bytes that are to be sent, as planned.
    pub bytes: u64,
}

impl Wait<'_> {
    /// Asks again and again until the operation is `done`.
    pub async fn until(
        &self,
        mut done: impl AsyncFnMut(&Client, &[v1::Move]) -> Result<bool, engram_client::Error>,
    ) -> Result<Waited, Failure> {
        let bar = self.progress.bar("moving", Some(self.bytes.max(1)));
        let interrupt = crate::server::signals()?;
        tokio::pin!(interrupt);
        let begun = self.seams.clock.monotonic();
        let mut failures = 0;
        let waited = loop {
            match self.look(&bar, &mut done).await {
                Ok(true) => break Waited::Done,
                Ok(false) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if failures > FAILURES_MAX {
                        return Err(error.into());
                    }
                }
            }
            let passed = self.seams.clock.monotonic().saturating_sub(begun);
            if self.args.wait_limit.is_some_and(|limit| passed >= limit) {
                break Waited::Late;
            }
            tokio::select! {
                () = &mut interrupt => break match self.args.on_interrupt {
                    OnInterrupt::Leave => Waited::Left,
                    OnInterrupt::Cancel => Waited::ToCancel,
                },
                () = self.seams.clock.sleep(POLL) => {}
            }
        };
        bar.finish_and_clear();
        Ok(waited)
    }

    async fn look(
        &self,
        bar: &ProgressBar,
        done: &mut impl AsyncFnMut(&Client, &[v1::Move]) -> Result<bool, engram_client::Error>,
    ) -> Result<bool, engram_client::Error> {
        let moves = self.client.moves().await?;
        let ours = |it: &v1::Move| {
            self.groups
                .as_ref()
                .is_none_or(|all| all.contains(&it.group))
        };
        let ours: Vec<v1::Move> = moves.into_iter().filter(|it| ours(it)).collect();
        let left: u64 = ours.iter().map(bytes_left).sum();
        bar.set_position(self.bytes.saturating_sub(left));
        done(self.client, &ours).await
    }
}

fn bytes_left(it: &v1::Move) -> u64 {
    let sent = match it.phase() {
        v1::r#move::Phase::Switching => it.bytes,
        _ => it.bytes_sent.min(it.bytes),
    };
    it.bytes - sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_or_switching_is_not_left() {
        let mut it = v1::Move {
            bytes: 100,
            bytes_sent: 30,
            ..Default::default()
        };
        assert_eq!(bytes_left(&it), 70);
        it.bytes_sent = 400;
        assert_eq!(bytes_left(&it), 0, "sizes are estimates");
        it.bytes_sent = 0;
        it.set_phase(v1::r#move::Phase::Switching);
        assert_eq!(bytes_left(&it), 0);
    }
}
