//! What happens when a node is lost: of each group that it led, one chosen survivor campaigns.
//!
//! Campaigns are pre-votes first, so a wrong alarm disturbs nothing: a node that heard from the
//! leader within its lease refuses, this one included. Hence the repetition. The other survivors'
//! ordinary election timeouts are the fallback.

use std::sync::Arc;

use engram_core::types::NodeId;

use super::Inner;
use super::group::Group;

impl Inner {
    pub fn on_node_lost(self: &Arc<Self>, node: NodeId) {
        if node == self.config.node {
            return;
        }
        self.lost.lock().insert(node);
        for group in self.all_groups() {
            if group.leadership().leader == Some(node) && self.is_chosen(&group, node) {
                let this = Arc::clone(self);
                self.seams
                    .spawn("campaign", async move { this.campaign(&group).await });
            }
        }
    }

    /// The lowest voter that is not known to be lost.
    fn is_chosen(&self, group: &Group, lost: NodeId) -> bool {
        let all_lost = self.lost.lock();
        let mut candidates = group.voters().into_iter();
        candidates.find(|id| *id != lost && !all_lost.contains(id)) == Some(self.config.node)
    }

    async fn campaign(&self, group: &Group) {
        let before = group.leadership();
        for _ in 0..self.config.campaign_attempts {
            let now = group.leadership();
            let waits = group.recovery.as_ref();
            let waits = waits.is_some_and(|it| !it.may_campaign(group.log_end(), &group.voters()));
            if (now.leader.is_some() && now != before) || group.stopped().is_some() || waits {
                return;
            }
            metrics::counter!("engram_campaigns_total").increment(1);
            if group.raft.trigger().elect(true).await.is_err() {
                return;
            }
            self.seams.clock.sleep(self.config.campaign_pause).await;
        }
        tracing::warn!(group = %group.id, "no leader was found after a node was lost");
    }
}
