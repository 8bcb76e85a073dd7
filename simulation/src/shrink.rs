//! A failing plan made smaller while it still fails, and the command that runs what is left.
//!
//! A [`Reduction`] names what is kept of a seed's plan; the plan itself is drawn again from the
//! seed each time, so a command line is all that has to be passed on.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::plan::{Plan, WorkloadKind};
use crate::swarm;

/// What is kept of the plan of a seed; `None` keeps all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reduction {
    pub seed: u64,
    /// By their number in the plan.
    pub faults: Option<Vec<usize>>,
    pub nodes: Option<usize>,
    pub workloads: Option<Vec<WorkloadKind>>,
    /// Of each workload.
    pub clients: Option<u32>,
    /// Of each client.
    pub operations: Option<u32>,
    /// Length of the safety phase, in seconds.
    pub seconds: Option<u64>,
}

impl Reduction {
    /// The whole plan of a seed.
    #[must_use]
    pub fn whole(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The plan that is left.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = swarm::plan(self.seed);
        if let Some(kept) = &self.faults {
            let mut number = 0;
            plan.faults.retain(|_| {
                number += 1;
                kept.contains(&(number - 1))
            });
        }
        if let Some(nodes) = self.nodes {
            plan.nodes = nodes.min(plan.nodes);
            plan.clock_offsets.truncate(plan.nodes);
            let nodes = plan.nodes;
            plan.faults.retain(|event| {
                let named = event.fault.hosts();
                named.iter().all(|host| host.0 < nodes)
            });
            for space in &mut plan.spaces {
                space.replicas = space.replicas.min(nodes as u32);
            }
        }
        if let Some(kept) = &self.workloads {
            plan.workloads.retain(|one| kept.contains(&one.kind));
            plan.spaces
                .retain(|space| kept.iter().any(|kind| kind.name() == space.name));
        }
        for workload in &mut plan.workloads {
            workload.clients = workload.clients.min(self.clients.unwrap_or(u32::MAX));
            workload.operations = workload.operations.min(self.operations.unwrap_or(u32::MAX));
        }
        if let Some(seconds) = self.seconds {
            plan.safety = plan.safety.min(Duration::from_secs(seconds));
            let safety = plan.safety;
            plan.faults.retain(|event| event.at < safety);
        }
        plan
    }

    /// What is smaller by one step, the greatest steps first.
    fn smaller(&self) -> Vec<Self> {
        let plan = self.plan();
        let mut smaller = Vec::new();
        let mut propose = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            smaller.push(next);
        };
        let kinds: Vec<WorkloadKind> = plan.workloads.iter().map(|one| one.kind).collect();
        if kinds.len() > 1 {
            let half = kinds.len() / 2;
            propose(&|next| next.workloads = Some(kinds[..half].to_vec()));
            propose(&|next| next.workloads = Some(kinds[half..].to_vec()));
            if kinds.len() > 2 {
                for left_out in &kinds {
                    let kept = kinds.iter().filter(|kind| *kind != left_out);
                    let kept: Vec<WorkloadKind> = kept.copied().collect();
                    propose(&|next| next.workloads = Some(kept.clone()));
                }
            }
        }
        for kept in fewer(&self.kept_faults()) {
            propose(&|next| next.faults = Some(kept.clone()));
        }
        let seconds = plan.safety.as_secs();
        for shorter in [seconds / 2, seconds * 3 / 4] {
            if shorter >= 5 && shorter < seconds {
                propose(&|next| next.seconds = Some(shorter));
            }
        }
        if plan.nodes > 3 {
            propose(&|next| next.nodes = Some(plan.nodes - 1));
        }
        let clients = plan.workloads.iter().map(|one| one.clients).max();
        if let Some(clients) = clients.filter(|clients| *clients > 1) {
            propose(&|next| next.clients = Some(clients / 2));
        }
        let operations = plan.workloads.iter().map(|one| one.operations).max();
        if let Some(operations) = operations.filter(|operations| *operations > 4) {
            propose(&|next| next.operations = Some(operations / 2));
        }
        smaller
    }

    /// Numbers of the faults that are left, in the plan of the seed.
    fn kept_faults(&self) -> Vec<usize> {
        let whole = swarm::plan(self.seed).faults;
        let left = self.plan().faults;
        let mut used = BTreeSet::new();
        for event in &left {
            let mut same = whole.iter().enumerate().filter(|(_, one)| *one == event);
            if let Some((number, _)) = same.find(|(number, _)| !used.contains(number)) {
                used.insert(number);
            }
        }
        used.into_iter().collect()
    }
}

/// Halves, quarters, and all but one.
fn fewer(faults: &[usize]) -> Vec<Vec<usize>> {
    let mut fewer = vec![Vec::new()];
    for parts in [2, 4, 8] {
        if faults.len() >= parts {
            for part in 0..parts {
                let from = part * faults.len() / parts;
                let to = (part + 1) * faults.len() / parts;
                fewer.push([&faults[..from], &faults[to..]].concat());
            }
        }
    }
    if (2..8).contains(&faults.len()) {
        for left_out in 0..faults.len() {
            fewer.push([&faults[..left_out], &faults[left_out + 1..]].concat());
        }
    }
    if faults.is_empty() {
        fewer.clear();
    }
    fewer
}

/// Makes a failing reduction smaller as long as it fails, with at most `tries` runs.
#[must_use]
pub fn shrink(
    failing: Reduction,
    mut tries: usize,
    mut fails: impl FnMut(&Reduction) -> bool,
) -> Reduction {
    let mut best = failing;
    'smaller: loop {
        for next in best.smaller() {
            if tries == 0 {
                return best;
            }
            tries -= 1;
            if fails(&next) {
                best = next;
                continue 'smaller;
            }
        }
        return best;
    }
}

/// The arguments of `simulate replay`.
impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {}", self.seed)?;
        if let Some(faults) = &self.faults {
            let numbers: Vec<String> = faults.iter().map(usize::to_string).collect();
            match numbers.is_empty() {
                true => f.write_str(" --no-faults")?,
                false => write!(f, " --faults {}", numbers.join(","))?,
            }
        }
        if let Some(nodes) = self.nodes {
            write!(f, " --nodes {nodes}")?;
        }
        if let Some(workloads) = &self.workloads {
            let names: Vec<&str> = workloads.iter().map(|kind| kind.name()).collect();
            write!(f, " --workloads {}", names.join(","))?;
        }
        if let Some(clients) = self.clients {
            write!(f, " --clients {clients}")?;
        }
        if let Some(operations) = self.operations {
            write!(f, " --operations {operations}")?;
        }
        if let Some(seconds) = self.seconds {
            write!(f, " --seconds {seconds}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_reduction_is_the_seeds_plan() {
        assert_eq!(Reduction::whole(3).plan(), swarm::plan(3));
        assert_eq!(Reduction::whole(3).to_string(), "--seed 3");
    }

    #[test]
    fn what_is_kept_is_kept_in_place() {
        let whole = swarm::plan(3);
        let kept = Reduction {
            faults: Some(vec![1, 4]),
            operations: Some(5),
            workloads: Some(vec![whole.workloads[1].kind]),
            ..Reduction::whole(3)
        };
        let plan = kept.plan();
        assert_eq!(
            plan.faults,
            [whole.faults[1].clone(), whole.faults[4].clone()]
        );
        assert_eq!((plan.workloads.len(), plan.spaces.len()), (1, 1));
        assert_eq!(plan.workloads[0].operations, 5);
        assert_eq!(kept.kept_faults(), [1, 4]);
        let name = whole.workloads[1].kind.name();
        let command = format!("--seed 3 --faults 1,4 --workloads {name} --operations 5");
        assert_eq!(kept.to_string(), command);
    }

    #[test]
    fn faults_of_nodes_that_are_gone_are_gone() {
        let seed = (0..100).find(|seed| swarm::plan(*seed).nodes == 5);
        let small = Reduction {
            nodes: Some(3),
            ..Reduction::whole(seed.expect("some plan has five nodes"))
        };
        let plan = small.plan();
        let hosts = plan.faults.iter().flat_map(|event| event.fault.hosts());
        assert!(plan.nodes == 3 && hosts.into_iter().all(|host| host.0 < 3));
        assert!(plan.spaces.iter().all(|space| space.replicas <= 3));
    }

    #[test]
    fn the_smallest_that_fails_is_found() {
        let whole = Reduction::whole(11);
        let culprit = whole.plan().faults[2].clone();
        let kind = whole.plan().workloads[0].kind;
        let mut runs = 0;
        let small = shrink(whole, 500, |next| {
            runs += 1;
            let plan = next.plan();
            plan.faults.contains(&culprit) && plan.workloads.iter().any(|one| one.kind == kind)
        });
        let plan = small.plan();
        assert_eq!(plan.faults, [culprit]);
        assert_eq!(plan.workloads.len(), 1);
        assert_eq!(plan.workloads[0].clients, 1);
        assert!(runs < 500);
    }
}
