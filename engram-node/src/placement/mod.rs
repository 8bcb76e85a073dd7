//! Placement: where replicas belong ([`planner`], pure) and making it so ([`reconciler`]).

pub mod planner;
