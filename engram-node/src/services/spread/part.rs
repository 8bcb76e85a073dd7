//! A participant of either mode, as one thing to drive: words in, words and reports out.

use std::collections::HashMap;
use std::sync::Arc;

use engram_core::filter::Filter;
use engram_core::partition::{EdgeAges, PartitionAdjacency, ReadError};
use engram_core::spread::{
    Control, Crew, Frame, HopStats, Participant, ParticipantError, PlanError, Push, PushStep,
    Pusher, PusherError, QueryId, SpreadMode, SpreadStart, Step,
};
use engram_core::types::{EdgeContext, NodeId, PartitionId};
use engram_proto::peer::SpreadFrameMessage;
use engram_proto::peer::spread_frame_message::Content as WordContent;
use engram_proto::peer::spread_report_message::Content;

use crate::routing::Here;

/// Residuals that one step of an `async` participant pushes: enough that its messages are worth
/// sending, few enough that what arrives meanwhile is soon taken into account.
const PUSHES_PER_STEP: usize = 2_048;

/// What a participant can be told.
pub enum Word {
    Frame(Frame),
    Push(Push),
    Control(Control),
}

impl Word {
    pub fn query(&self) -> QueryId {
        match self {
            Self::Frame(frame) => frame.query,
            Self::Push(push) => push.query,
            Self::Control(control) => control.query,
        }
    }

    pub fn attempt(&self) -> u32 {
        match self {
            Self::Frame(frame) => frame.attempt,
            Self::Push(push) => push.attempt,
            Self::Control(control) => control.attempt,
        }
    }

    pub fn message(&self) -> SpreadFrameMessage {
        let content = match self {
            Self::Frame(frame) => WordContent::Frame(frame.encode().into()),
            Self::Push(push) => WordContent::Push(push.encode().into()),
            Self::Control(control) => WordContent::Control(control.encode().into()),
        };
        SpreadFrameMessage {
            query: self.query().0.to_vec().into(),
            content: Some(content),
        }
    }

    /// # Errors
    /// Why the message is no word.
    pub fn decode(message: &SpreadFrameMessage) -> Result<Self, String> {
        let word = match &message.content {
            Some(WordContent::Frame(bytes)) => Frame::decode(bytes).map(Self::Frame),
            Some(WordContent::Push(bytes)) => Push::decode(bytes).map(Self::Push),
            Some(WordContent::Control(bytes)) => Control::decode(bytes).map(Self::Control),
            None => return Err("it says nothing known".into()),
        };
        word.map_err(|error| error.to_string())
    }
}

/// What to do after a step.
#[derive(Default)]
pub struct Doing {
    pub words: Vec<(NodeId, Word)>,
    pub report: Option<Content>,
    /// Hops that are complete everywhere.
    pub hops: Vec<HopStats>,
}

/// Why a step failed.
pub enum Trouble {
    /// Nothing was changed.
    BadWord { source: NodeId, reason: String },
    /// The participant is lost.
    Lost { reason: String, exhausted: bool },
}

/// This node's part in one attempt of one query.
pub enum Part {
    Exact(Box<Participant<PartitionAdjacency>>),
    Async(Box<Pusher<PartitionAdjacency>>),
}

impl Part {
    /// # Errors
    /// Why this node cannot take part.
    pub fn new(
        here: &Here,
        start: SpreadStart,
        positions: &HashMap<PartitionId, EdgeContext>,
        crew: Arc<dyn Crew + Send>,
    ) -> Result<Self, String> {
        let node = here.node();
        let filter = (!start.filter.is_empty()).then(|| Filter::parse(&start.filter));
        let filter = filter.transpose().map_err(|error| error.to_string())?;
        let own = start
            .participants
            .iter()
            .find(|participant| participant.node == node);
        let own = own.ok_or_else(|| format!("node {node} is not among the participants"))?;
        let mut partitions = Vec::new();
        for plan in &own.partitions {
            let id = plan.partition;
            let replica = here.partition(id);
            let replica = replica.ok_or_else(|| format!("no replica of partition {id}"))?;
            if positions
                .get(&id)
                .is_some_and(|position| !here.covers(&replica, position))
            {
                return Err(format!("the replica of partition {id} fell back"));
            }
            let relations = start.parameters.relations.clone();
            let ages = EdgeAges {
                now_millis: start.now_millis,
                decay: start.parameters.edge_decay,
            };
            partitions.push((id, replica.adjacency(filter.clone(), relations, ages)));
        }
        let unfit = |error: PlanError| error.to_string();
        Ok(match start.mode {
            SpreadMode::Exact => {
                let mut part = Participant::new(start, node, partitions).map_err(unfit)?;
                part.set_crew(crew);
                Self::Exact(Box::new(part))
            }
            SpreadMode::Async { .. } => {
                let mut part = Pusher::new(start, node, partitions).map_err(unfit)?;
                part.begin();
                Self::Async(Box::new(part))
            }
        })
    }

    /// Takes in a word, or begins, and goes on as far as it can at once. Reads the store.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn step(&mut self, word: Option<Word>) -> Result<Doing, Trouble> {
        match self {
            Self::Exact(part) => {
                let step = match word {
                    None => part.begin(),
                    Some(Word::Frame(frame)) => part.on_frame(frame),
                    Some(Word::Control(control)) => part.on_control(&control),
                    Some(Word::Push(push)) => return Err(other_mode(push.source)),
                };
                step.map(Doing::from).map_err(Trouble::from)
            }
            Self::Async(part) => {
                match word {
                    None => {}
                    Some(Word::Push(push)) => {
                        part.on_push(&push).map_err(Trouble::from)?;
                    }
                    Some(Word::Control(control)) => {
                        part.on_control(&control);
                    }
                    Some(Word::Frame(frame)) => return Err(other_mode(frame.source)),
                }
                let step = part.work(PUSHES_PER_STEP);
                step.map(Doing::from).map_err(Trouble::from)
            }
        }
    }

    /// Whether it goes on without being told anything.
    pub fn has_work(&self) -> bool {
        match self {
            Self::Exact(_) => false,
            Self::Async(part) => part.has_work(),
        }
    }

    /// Nothing can be wanted of it any more.
    pub fn is_forgotten(&self) -> bool {
        match self {
            Self::Exact(part) => part.is_forgotten(),
            Self::Async(part) => part.is_over(),
        }
    }
}

fn other_mode(source: NodeId) -> Trouble {
    Trouble::BadWord {
        source,
        reason: "it is of the other mode".into(),
    }
}

impl From<Step> for Doing {
    fn from(step: Step) -> Self {
        let frames = step.frames.into_iter();
        Self {
            words: frames
                .map(|(node, frame)| (node, Word::Frame(frame)))
                .collect(),
            report: step
                .report
                .map(|report| Content::Report(report.encode().into())),
            hops: step.hops,
        }
    }
}

impl From<PushStep> for Doing {
    fn from(step: PushStep) -> Self {
        let pushes = step.pushes.into_iter();
        Self {
            words: pushes
                .map(|(node, push)| (node, Word::Push(push)))
                .collect(),
            report: step
                .report
                .map(|report| Content::Step(report.encode().into())),
            hops: Vec::new(),
        }
    }
}

impl From<ParticipantError<ReadError>> for Trouble {
    fn from(error: ParticipantError<ReadError>) -> Self {
        match error {
            ParticipantError::BadFrame {
                source_node,
                reason,
            } => Self::BadWord {
                source: source_node,
                reason: reason.to_owned(),
            },
            error @ (ParticipantError::TooManyTargets | ParticipantError::Adjacency(_)) => {
                Self::Lost {
                    exhausted: matches!(error, ParticipantError::TooManyTargets),
                    reason: error.to_string(),
                }
            }
        }
    }
}

impl From<PusherError<ReadError>> for Trouble {
    fn from(error: PusherError<ReadError>) -> Self {
        match error {
            PusherError::BadPush {
                source_node,
                reason,
            } => Self::BadWord {
                source: source_node,
                reason: reason.to_owned(),
            },
            error @ PusherError::Adjacency(_) => Self::Lost {
                reason: error.to_string(),
                exhausted: false,
            },
        }
    }
}
