//! A coordinator of either mode, as one thing to drive. However it ends, it lets its participants
//! go.

use engram_core::spread::{
    Control, Coordinator, Directions, Finished, PlanError, PushCoordinator, PushReport, Report,
    SpreadMode, SpreadPlan, SpreadStart,
};
use engram_core::types::NodeId;
use engram_proto::peer::spread_report_message::Content;

use super::registry::Registry;

enum Machine {
    Exact(Box<Coordinator>),
    Async(Box<PushCoordinator>),
}

/// One attempt of a query that this node coordinates.
pub struct Lead {
    machine: Machine,
    registry: Registry,
}

/// Why a report is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadReport {
    /// The attempt is lost.
    Fatal(String),
    /// It is dropped.
    Dropped(String),
}

impl Lead {
    /// # Errors
    /// When the plan makes no sense.
    pub fn new(plan: SpreadPlan, registry: Registry) -> Result<Self, PlanError> {
        let machine = match plan.mode {
            SpreadMode::Exact => Machine::Exact(Box::new(Coordinator::new(plan)?)),
            SpreadMode::Async { .. } => Machine::Async(Box::new(PushCoordinator::new(plan)?)),
        };
        Ok(Self { machine, registry })
    }

    pub fn starts(&self) -> Vec<(NodeId, SpreadStart)> {
        match &self.machine {
            Machine::Exact(machine) => machine.starts(),
            Machine::Async(machine) => machine.starts(),
        }
    }

    /// Participants that have not been heard to their end.
    pub fn outstanding(&self) -> Vec<NodeId> {
        match &self.machine {
            Machine::Exact(machine) => machine.outstanding().collect(),
            Machine::Async(machine) => machine.outstanding().collect(),
        }
    }

    /// Takes a report or a step; the answer comes with the last one.
    ///
    /// # Errors
    /// When it is of no use.
    pub fn on_report(&mut self, content: &Content) -> Result<Option<Finished>, BadReport> {
        let unfit = || BadReport::Dropped("it is of the other mode".into());
        match (&mut self.machine, content) {
            (Machine::Exact(machine), Content::Report(bytes)) => {
                let report = Report::decode(bytes).map_err(|e| BadReport::Fatal(e.to_string()))?;
                let finished = machine.on_report(report);
                finished.map_err(|error| BadReport::Fatal(error.to_string()))
            }
            (Machine::Async(machine), Content::Step(bytes)) => {
                let report =
                    PushReport::decode(bytes).map_err(|e| BadReport::Fatal(e.to_string()))?;
                let directions = machine.on_report(report);
                let directions = directions.map_err(|e| BadReport::Dropped(e.to_string()))?;
                Ok(self.follow(directions))
            }
            _ => Err(unfit()),
        }
    }

    /// Goes on without these.
    ///
    /// # Errors
    /// Why there can be no answer any more.
    pub fn exclude(&mut self, nodes: &[NodeId]) -> Result<Option<Finished>, String> {
        let nodes = nodes.iter().copied();
        let directions = match &mut self.machine {
            Machine::Exact(machine) => machine.exclude(nodes).map_err(|error| error.to_string())?,
            Machine::Async(machine) => machine.exclude(nodes),
        };
        Ok(self.follow(directions))
    }

    /// Ends with what is there.
    ///
    /// # Errors
    /// Why there can be no answer.
    pub fn give_up(&mut self) -> Result<Option<Finished>, String> {
        let directions = match &mut self.machine {
            Machine::Exact(machine) => machine.give_up().map_err(|error| error.to_string())?,
            Machine::Async(machine) => machine.give_up(),
        };
        Ok(self.follow(directions))
    }

    fn follow(&self, directions: Directions) -> Option<Finished> {
        self.registry.direct(directions.controls);
        directions.finished
    }

    fn farewell(&mut self) -> Vec<(NodeId, Control)> {
        match &mut self.machine {
            Machine::Exact(machine) => machine.farewell(),
            Machine::Async(machine) => machine.farewell(),
        }
    }
}

/// Also when the client went away and the query was dropped in the middle.
impl Drop for Lead {
    fn drop(&mut self) {
        let controls = self.farewell();
        self.registry.direct(controls);
    }
}
