//! The protocol's messages on their way, and its steps.

use std::sync::Arc;

use engram_core::command::PartitionCommand;
use engram_node::overlay::{Effect, Event, Place, Places, Rumour};
use engram_proto::peer::OverlayExchange;
use rand::RngExt as _;

use super::node::{PARTITION, node_id, number_of};
use super::world::World;

/// Messages on their way; the oldest is lost beyond it.
const MESSAGES_MAX: usize = 64;
/// One message in so many is lost, and one rumour in so many comes twice.
const LOST: u32 = 20;
const DOUBLED: u32 = 10;

/// What is between two nodes.
#[derive(Clone)]
enum Message {
    Question(OverlayExchange),
    Answer(OverlayExchange),
    Silence,
    Rumour(Rumour),
}

#[derive(Clone)]
pub struct Letter {
    from: usize,
    to: usize,
    message: Message,
}

impl World {
    fn places(&self, number: usize) -> Places {
        let mut places = Places::new();
        let node = &self.nodes[&number];
        if self.members.contains(&number) && !node.partition.is_retired() {
            let others = self.members.iter().filter(|other| **other != number);
            let place = Place {
                partition: Arc::clone(&node.partition),
                others: others.map(|other| node_id(*other)).collect(),
                leads: self.leader() == Some(number),
            };
            places.insert(PARTITION, place);
        }
        places
    }

    pub(super) fn node_step(&mut self, number: usize, event: Event) {
        if !self.is_up(number) {
            return;
        }
        let (places, now) = (self.places(number), self.now);
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        for effect in node.protocol.step(now, &places, event) {
            self.carry_out(number, effect);
        }
    }

    fn carry_out(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::Call { node, request, .. } => {
                self.post(number, number_of(node), Message::Question(request));
            }
            Effect::Announce(rumour) => {
                for other in self.members.clone() {
                    if other != number {
                        self.post(number, other, Message::Rumour(rumour.clone()));
                    }
                }
            }
            Effect::Propose {
                partition, command, ..
            } => {
                let applied = self.leader() == Some(number);
                if applied {
                    if let PartitionCommand::Fold { edges, .. } = &command {
                        self.report.folded_edges += edges.len() as u64;
                    }
                    self.log.push(command);
                }
                self.node_step(number, Event::Proposed { partition, applied });
            }
        }
    }

    fn post(&mut self, from: usize, to: usize, message: Message) {
        self.letters.push(Letter { from, to, message });
        if self.letters.len() > MESSAGES_MAX {
            let lost = self.letters.remove(0);
            self.lose(lost);
        }
    }

    /// A question without an answer is given up in the end.
    fn lose(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        let node = |number| Event::Failed {
            node: node_id(number),
        };
        match message {
            Message::Question(_) => self.node_step(from, node(to)),
            Message::Answer(_) | Message::Silence => self.node_step(to, node(from)),
            Message::Rumour(_) => {}
        }
    }

    pub(super) fn deliver(&mut self) {
        if self.letters.is_empty() {
            return;
        }
        let chosen = self.rng.random_range(0..self.letters.len());
        let letter = self.letters.swap_remove(chosen);
        let is_lost = self.rng.random_range(0..LOST) == 0;
        if is_lost || !self.reaches(letter.from, letter.to) || !self.is_up(letter.to) {
            self.lose(letter);
            return;
        }
        let is_rumour = matches!(letter.message, Message::Rumour(_));
        if is_rumour && self.rng.random_range(0..DOUBLED) == 0 {
            self.letters.push(letter.clone());
        }
        self.arrived(letter);
    }

    fn arrived(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        match message {
            Message::Question(request) => {
                let (places, now) = (self.places(to), self.now);
                let Some(node) = self.nodes.get_mut(&to) else {
                    return;
                };
                let answer = node.protocol.serve(now, &places, request);
                let answer = answer.map_or(Message::Silence, Message::Answer);
                self.post(to, from, answer);
            }
            Message::Answer(answer) => {
                let node = node_id(from);
                self.node_step(to, Event::Answered { node, answer });
            }
            Message::Silence => {
                let node = node_id(from);
                self.node_step(to, Event::Failed { node });
            }
            Message::Rumour(rumour) => self.node_step(to, Event::Heard(rumour)),
        }
    }
}
