//! Carrying out a plan's faults, and ending them.

use std::sync::Arc;
use std::time::Duration;

use engram_client::types::{
    CancelMovesRequest, MoveReplicaRequest, NodeState, RebalanceRequest, SetNodeStateRequest,
};
use engram_core::types::{GroupId, NodeId};
use engram_node::control::ClusterMap;
use engram_node::server::Server;

use super::World;
use super::disk::{Begins, Platter, Trap};
use super::network::{self, End};
use super::node::{Node, place};
use crate::plan::{CutOff, Fault, Host};

/// The client of an operator: no workload's.
const OPERATOR: usize = 60_001;

/// Writes that install a small snapshot.
const INSTALLATION_WRITES: u32 = 5;

/// How long a move takes to begin.
const MOVE_BEGINS: Duration = Duration::from_millis(300);

/// What is to happen at a time.
#[derive(Clone, Debug)]
pub enum Action {
    Begin(Fault),
    /// All connections of a host break, once more.
    Reset(Host),
    /// Whoever leads a group gives leadership away, once more.
    Transfer(GroupId),
    Start(Host),
    /// Ends the process of a node whose disk was harmed, and the harm.
    Kill(Host),
    Resume(Host),
    EndLinks(u64),
    EndWeather,
    EndSlowDisk(Host),
    EndDrain(Host),
}

impl World {
    pub(super) fn schedule(&mut self, at: Duration, action: Action) {
        self.next_action += 1;
        self.actions.insert((at, self.next_action), action);
    }

    /// Does what is due.
    pub(super) fn act(&mut self) {
        while let Some(entry) = self.actions.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            match entry.remove() {
                Action::Begin(fault) => self.apply_fault(&fault),
                Action::Reset(host) => {
                    self.around.network.reset(place(host));
                }
                Action::Transfer(group) => {
                    self.transfer(group);
                }
                Action::Start(host) => self.start_node(host),
                Action::Kill(host) => {
                    self.crash_node(host, End::Process);
                    if let Some(node) = self.nodes.get(host.0) {
                        node.platter.repair();
                    }
                }
                Action::Resume(host) => self.resume_node(host),
                Action::EndLinks(number) => self.around.network.end_fault(number),
                Action::EndWeather => self.around.network.set_weather(self.plan.network),
                Action::EndDrain(host) => {
                    self.set_node_state(host, NodeState::Active);
                }
                Action::EndSlowDisk(host) => {
                    if let Some(node) = self.nodes.get(host.0) {
                        node.set_slowness(1);
                    }
                }
            }
        }
    }

    /// Begins a fault now; its end is scheduled. A fault that finds nothing to harm (a crash of a
    /// node that is down) is not counted, and a trap when a machine dies in it.
    pub fn apply_fault(&mut self, fault: &Fault) {
        let kind = fault.kind();
        let harmed = self.harm(fault);
        let ledger = &self.around.ledger;
        ledger.event(format_args!("fault {fault:?}: {harmed}"));
        if harmed {
            self.count_fault(kind);
        }
    }

    pub(super) fn count_fault(&mut self, kind: &'static str) {
        self.around.ledger.count(kind, 1);
        self.faults_injected += 1;
        *self.faults_by_kind.entry(kind).or_default() += 1;
    }

    fn harm(&mut self, fault: &Fault) -> bool {
        let now = self.now;
        match fault.clone() {
            Fault::Crash { host, down } => {
                if !self.is_up(host) {
                    return false;
                }
                // Half of the crashes are those of a machine: nobody is told.
                let end = if self.coin() {
                    End::Process
                } else {
                    End::Machine
                };
                self.crash_node(host, end);
                self.schedule(now + down, Action::Start(host));
                true
            }
            Fault::CrashAtWrite {
                host,
                writes,
                after,
                down,
            } => self.set_trap(
                host,
                Trap {
                    begins: Begins::Now,
                    others: writes,
                    after,
                },
                (down, fault.kind()),
            ),
            Fault::CrashAtFile {
                host,
                writes,
                after,
                down,
            } => {
                if self.coin() {
                    let trap = Trap {
                        begins: Begins::AtFile,
                        others: writes,
                        after,
                    };
                    return self.set_trap(host, trap, (down, fault.kind()));
                }
                if !self.is_up(host) {
                    return false;
                }
                // Who was away is likely to be sent a snapshot, and dies once more then.
                self.crash_node(host, End::Process);
                self.schedule(now + down, Action::Start(host));
                let trap = Trap {
                    begins: Begins::AtInstallation,
                    others: writes % INSTALLATION_WRITES,
                    after,
                };
                self.nodes[host.0].platter.set_trap(Some(trap));
                self.trapped.insert(host, (down, fault.kind()));
                true
            }
            Fault::Restart { host, down } => {
                let stopping = self.node_mut(host).is_some_and(|node| node.stop(now));
                if stopping {
                    self.restarting.insert(host, down);
                }
                stopping
            }
            Fault::Pause { host, length } => {
                let paused = self.node_mut(host).is_some_and(|node| node.pause(now));
                if paused {
                    self.schedule(now + length, Action::Resume(host));
                }
                paused
            }
            Fault::Cut {
                from,
                to,
                both,
                length,
            } => {
                let places = |hosts: Vec<Host>| hosts.into_iter().map(place).collect();
                let cut = network::Fault::Cut {
                    from: places(from),
                    to: places(to),
                    both,
                };
                self.break_links(cut, length)
            }
            Fault::Clog { between, length } => {
                let clog = network::Fault::Clog(place(between.0), place(between.1));
                self.break_links(clog, length)
            }
            Fault::Reset { host, times, every } => {
                for again in 1..times {
                    self.schedule(now + every * again, Action::Reset(host));
                }
                self.around.network.reset(place(host)) > 0
            }
            Fault::Weather { network, length } => {
                self.around.network.set_weather(network);
                self.schedule(now + length, Action::EndWeather);
                true
            }
            Fault::SlowDisk {
                host,
                factor,
                length,
            } => {
                let Some(node) = self.nodes.get(host.0) else {
                    return false;
                };
                node.set_slowness(factor);
                self.schedule(now + length, Action::EndSlowDisk(host));
                true
            }
            Fault::FullDisk { host, down } => self.harm_disk(host, down, |disk| {
                disk.fill();
                true
            }),
            Fault::FailedSync { host, down } => {
                let visible = self.coin();
                self.harm_disk(host, down, |disk| {
                    disk.fail_next_sync(visible);
                    true
                })
            }
            Fault::CorruptRecord { host, down } => {
                let mut generator = self.draw_generator();
                // One disk at a time: a majority keeps what was synced.
                let others = self.nodes.iter().enumerate();
                let mut others = others.filter(|(number, _)| *number != host.0);
                if others.any(|(_, node)| node.platter.is_damaged()) {
                    return false;
                }
                if self.coin() {
                    return self.harm_disk(host, down, |disk| disk.damage(&mut generator, false));
                }
                if !self.is_up(host) || !self.nodes[host.0].platter.has_log() {
                    return false;
                }
                // While the process is down: what it finds when it starts.
                self.crash_node(host, End::Process);
                self.schedule(now + down, Action::Start(host));
                self.nodes[host.0].platter.damage(&mut generator, true)
            }
            Fault::ClockJump { host, millis } => {
                let node = self.nodes.get(host.0);
                node.map(|node| node.jump_clock(millis)).is_some()
            }
            Fault::Join => {
                self.add_node();
                true
            }
            Fault::Transfer {
                choice,
                times,
                every,
            } => {
                let led = self.led();
                let Some((_, group)) = led.get(choice as usize % led.len().max(1)).copied() else {
                    return false;
                };
                for again in 1..times {
                    self.schedule(now + every * again, Action::Transfer(group));
                }
                self.transfer(group)
            }
            Fault::Move { choice, cut } => self.move_replica(choice, cut),
            Fault::CancelMoves => self.cancel_moves(),
            Fault::Drain { host, length } => {
                self.schedule(now + length, Action::EndDrain(host));
                self.set_node_state(host, NodeState::Draining)
            }
            Fault::Rebalance => {
                let client = self.client(OPERATOR).client;
                self.spawn_client(OPERATOR, async move {
                    drop(client.rebalance(RebalanceRequest::default()).await);
                });
                true
            }
        }
    }

    fn break_links(&mut self, fault: network::Fault, length: Duration) -> bool {
        let number = self.around.network.begin_fault(fault);
        self.schedule(self.now + length, Action::EndLinks(number));
        true
    }

    /// How long the machine stays down, and what the fault is called. Nothing is harmed yet.
    fn set_trap(&mut self, host: Host, trap: Trap, then: (Duration, &'static str)) -> bool {
        if self.is_up(host) {
            let ledger = &self.around.ledger;
            ledger.event(format_args!("set {trap:?} at {}", host.0));
            self.nodes[host.0].platter.set_trap(Some(trap));
            self.trapped.insert(host, then);
        }
        false
    }

    /// The node is started again, without the fault, after `down`.
    fn harm_disk(
        &mut self,
        host: Host,
        down: Duration,
        harm: impl FnOnce(&Platter) -> bool,
    ) -> bool {
        if !self.is_up(host) || !harm(&self.nodes[host.0].platter) {
            return false;
        }
        self.schedule(self.now + down, Action::Kill(host));
        self.schedule(self.now + down, Action::Start(host));
        true
    }

    /// Who leads what, by the number of the node.
    fn led(&self) -> Vec<(usize, GroupId)> {
        let mut led = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let status = node.with_server(|server| server.consensus().status());
            let groups = status.into_iter().flatten().filter(|group| group.leads);
            led.extend(groups.map(|group| (number, group.group)));
        }
        led
    }

    fn transfer(&mut self, group: GroupId) -> bool {
        let mut led = self.led().into_iter();
        let Some((number, _)) = led.find(|(_, of)| *of == group) else {
            return false;
        };
        let node = &self.nodes[number];
        if let Some(consensus) = node.with_server(|server| server.consensus().clone()) {
            node.spawn(async move { consensus.hand_over(group).await });
        }
        true
    }

    /// An operator has some replica moved, through a client; the node that it leaves may be cut off
    /// as soon as the move has begun.
    fn move_replica(&mut self, choice: u32, cut: Option<CutOff>) -> bool {
        let Some(map) = self.newest_map() else {
            return false;
        };
        let mut possible = Vec::new();
        for group in map.groups.values().filter(|group| group.change.is_none()) {
            let Some((_, partition)) = map.partitions_of(group.id).next() else {
                continue;
            };
            for from in &group.replicas {
                let free = map.nodes.keys().filter(|it| !group.replicas.contains(it));
                possible.extend(free.map(|to| (group, partition.id, *from, *to)));
            }
        }
        let chosen = possible.get(choice as usize % possible.len().max(1));
        let Some((group, partition, from, to)) = chosen.copied() else {
            return false;
        };
        let request = MoveReplicaRequest {
            partition: partition.0,
            from: from.0,
            to: to.0,
            dry_run: false,
        };
        let client = self.client(OPERATOR).client;
        // What stands in the way is an answer, and no concern of the run's.
        self.spawn_client(OPERATOR, async move {
            drop(client.move_replica(request).await);
        });
        if let Some((cut, host)) = cut.zip(self.host_of(from)) {
            let replicas = group.replicas.iter().filter_map(|id| self.host_of(*id));
            let others: Vec<Host> = match cut.from_all {
                true => (0..self.nodes()).map(Host).collect(),
                false => replicas.collect(),
            };
            let fault = Fault::Cut {
                from: vec![host],
                to: others.into_iter().filter(|other| *other != host).collect(),
                both: true,
                length: cut.length,
            };
            self.schedule(self.now + MOVE_BEGINS, Action::Begin(fault));
        }
        true
    }

    fn host_of(&self, id: NodeId) -> Option<Host> {
        let is_it = |node: &Node| node.with_server(Server::node) == Some(id);
        self.nodes.iter().position(is_it).map(Host)
    }

    fn cancel_moves(&mut self) -> bool {
        let moving = self.newest_map().is_some_and(|map| {
            let mut groups = map.groups.values();
            groups.any(|group| group.change.is_some())
        });
        if moving {
            let client = self.client(OPERATOR).client;
            self.spawn_client(OPERATOR, async move {
                drop(client.cancel_moves(CancelMovesRequest::default()).await);
            });
        }
        moving
    }

    /// An operator drains a node or takes it back, through a client.
    fn set_node_state(&mut self, host: Host, state: NodeState) -> bool {
        let node = self.nodes.get(host.0);
        let id = node.and_then(|node| node.with_server(|server| server.plane().local()));
        let Some(id) = id else {
            return false;
        };
        let request = SetNodeStateRequest {
            node: id.0,
            state: state.into(),
            ..SetNodeStateRequest::default()
        };
        let client = self.client(OPERATOR).client;
        self.spawn_client(OPERATOR, async move {
            drop(client.set_node_state(request).await);
        });
        true
    }

    fn newest_map(&self) -> Option<Arc<ClusterMap>> {
        let maps = self.nodes.iter();
        let maps = maps.filter_map(|node| node.with_server(|server| server.plane().map()));
        maps.max_by_key(|map| map.index)
    }
}
