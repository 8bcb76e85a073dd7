//! The laws of edges, and the operation-log oracle that says what their values must be.

mod basics;
mod history;
mod laws;
mod oracle;
mod planted;

use super::FoldMark;
use crate::types::{
    ActorId, ClientId, Dot, Hlc, OverlayDot, PartitionId, RequestId, Sequence, Unit,
};

const PARTITION: PartitionId = PartitionId(7);

fn log_dot(sequence: u64) -> Dot {
    Dot::Log {
        partition: PARTITION,
        sequence: Sequence(sequence),
        index: 0,
    }
}

fn fold_mark(sequence: u64) -> FoldMark {
    FoldMark {
        partition: PARTITION,
        sequence: Sequence(sequence),
    }
}

fn overlay_dot(actor: u8, n: u64) -> OverlayDot {
    OverlayDot {
        actor: ActorId([actor; 16]),
        n,
    }
}

fn request(counter: u64) -> RequestId {
    RequestId {
        client: ClientId([9; 16]),
        counter,
        index: 0,
    }
}

fn unit(value: f64) -> Unit {
    Unit::from_f64(value).expect("in range")
}

fn stamp(millis: u64) -> Hlc {
    Hlc::from_millis(millis)
}
