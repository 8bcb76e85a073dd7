//! x
use clap::Args;
use crate::cli::failure::{Exit, Failure};
use crate::seams::Seams;
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {}
pub async fn run(_: &DemoArgs, _: &Seams) -> Result<Exit, Failure> { Ok(Exit::Ok) }
