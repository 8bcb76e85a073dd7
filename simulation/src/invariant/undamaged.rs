//! Nobody complains of damage that no disk has done (design.md section 4: what is on disk is what was
//! written): crashes, full disks and failed syncs leave records that can be read.
//!
//! A replica that meets damaged records is brought back by the others, so a defect that leaves such
//! records behind would go unnoticed. Broken by: a log that is cut with its old records left behind
//! the new ones; an installation that a crash leaves by halves; records written in the wrong order.

use super::{Findings, Moment, Watcher};

pub struct Undamaged;

impl Watcher for Undamaged {
    fn name(&self) -> &'static str {
        "no damage without a fault"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes.iter().filter(|node| !node.disk_was_damaged) {
            let repaired = node.groups.iter().filter(|group| group.repairs > 0);
            let damaged = node.damaged.iter().copied();
            for group in damaged.chain(repaired.map(|group| group.group)) {
                findings.report(format!(
                    "node {}: the replica of group {group} met damaged records",
                    node.node
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{GROUP, group, node, watch};
    use super::*;
    use crate::observe::{GroupObservation, NodeObservation};

    #[test]
    fn damage_is_found_where_no_fault_did_it() {
        let found = |disk_was_damaged, repairs, damaged: bool| {
            let group = GroupObservation {
                repairs,
                ..group(1, false)
            };
            let node = NodeObservation {
                disk_was_damaged,
                damaged: damaged.then_some(GROUP).into_iter().collect(),
                ..node(0, vec![group])
            };
            watch(&mut Undamaged, &[node]).len()
        };
        assert_eq!(found(false, 0, false), 0);
        assert_eq!(found(false, 1, false), 1);
        assert_eq!(found(false, 0, true), 1);
        assert_eq!(found(true, 1, true), 0);
    }
}
