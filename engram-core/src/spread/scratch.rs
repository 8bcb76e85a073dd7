//! Memory of one running query, by vertex number. Zero where nothing happened, so that it can be
//! handed to the next query after what was touched is put back to zero.

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What has arrived for the next hop; 0 is nothing.
    pub(super) next: Vec<u64>,
    /// What counted so far; 0 is: never activated.
    pub(super) total: Vec<u64>,
    /// One more than the last hop in which the vertex sent; empty unless `keeps_sent`.
    pub(super) last_sent: Vec<u8>,
    /// A rule asks when a vertex has sent.
    pub(super) keeps_sent: bool,
    /// Vertices with arrivals, once each. Not kept while `is_dense`.
    pub(super) touched: Vec<u32>,
    /// So many vertices have arrivals that they are found by looking at all.
    pub(super) is_dense: bool,
    /// Vertices that counted, once each.
    pub(super) activated: Vec<u32>,
    /// Vertices with their amounts that send in this hop, over the edges of the projection.
    pub(super) senders: Vec<(u32, u64)>,
    /// Edges of these.
    pub(super) expected: u64,
    /// Those that send over edges which have to be read.
    pub(super) others: Vec<(u32, u64)>,
}

impl Scratch {
    pub(super) fn new(vertices: usize) -> Self {
        Self {
            next: vec![0; vertices],
            total: vec![0; vertices],
            ..Self::default()
        }
    }

    /// Makes room for vertices up to `len`.
    pub(super) fn grow(&mut self, len: usize) {
        self.next.resize(len, 0);
        self.total.resize(len, 0);
        if self.keeps_sent {
            self.last_sent.resize(len, 0);
        }
    }

    /// Back to zero, for a graph of `vertices`.
    pub(super) fn clean(&mut self, vertices: usize) {
        if self.is_dense {
            self.next.fill(0);
        }
        for vertex in self.touched.drain(..) {
            self.next[vertex as usize] = 0;
        }
        for vertex in self.activated.drain(..) {
            self.total[vertex as usize] = 0;
        }
        self.is_dense = false;
        self.keeps_sent = false;
        self.last_sent.clear();
        self.senders.clear();
        self.others.clear();
        self.next.truncate(vertices);
        self.total.truncate(vertices);
    }
}
