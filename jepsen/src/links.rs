//! The network between real processes on one machine, as a proxy for each directed link.
//!
//! A node is told to dial the proxy of its link instead of the other node
//! (`engram start --peer-route`). A proxy forwards streams and datagrams until the link is cut.
//! What must hold: across a cut nothing passes in the cut direction, and nobody is told: a node
//! sees silence, as it does when packets are dropped, never a closed connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_node::seams::{Datagrams, Seams, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::watch;

/// Bytes that one copy takes at once.
const COPY_BYTES: usize = 64 << 10;
/// Greatest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Attempts to find a number that is free for TCP and UDP alike.
const PAIR_ATTEMPTS: usize = 32;

/// From one node to another, by their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub from: usize,
    pub to: usize,
}

impl Way {
    fn back(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }
}

/// What becomes of streams that were open when their link was cut, once it is whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// What was on its way arrives late.
    Resume,
    /// They stay silent for ever: whoever holds one must notice by himself.
    StayDead,
}

#[derive(Clone, Copy, Debug)]
struct Gate {
    is_open: bool,
    /// Counts the cuts after which streams stay dead.
    generation: u64,
}

type Gates = BTreeMap<Way, watch::Sender<Gate>>;

/// The links between the nodes of a cluster, all open at first.
pub struct Links {
    gates: Gates,
    /// Where each node listens for peers.
    nodes: Vec<String>,
    /// The proxy of each link.
    proxies: BTreeMap<Way, String>,
}

impl Links {
    /// Chooses a peer address for each of so many nodes and starts the proxies between them.
    ///
    /// # Errors
    /// When no ports are free.
    pub async fn start(seams: &Seams, nodes: usize) -> std::io::Result<Self> {
        let mut listens = Vec::new();
        for _ in 0..nodes {
            listens.push(free_pair(seams).await?);
        }
        let ways = (0..nodes).flat_map(|from| (0..nodes).map(move |to| Way { from, to }));
        let ways: Vec<Way> = ways.filter(|way| way.from != way.to).collect();
        let open = Gate {
            is_open: true,
            generation: 0,
        };
        let gates: Gates = ways
            .iter()
            .map(|way| (*way, watch::channel(open).0))
            .collect();
        let mut proxies = BTreeMap::new();
        for way in ways {
            let gate = |way: Way| gates[&way].subscribe();
            let proxy = Proxy {
                seams: seams.clone(),
                target: listens[way.to].clone(),
                there: gate(way),
                back: gate(way.back()),
            };
            proxies.insert(way, proxy.start().await?);
        }
        Ok(Self {
            gates,
            nodes: listens,
            proxies,
        })
    }

    /// Where a node is to listen for peers.
    #[must_use]
    pub fn listen_of(&self, node: usize) -> &str {
        &self.nodes[node]
    }

    /// The options that make a node dial through the proxies.
    #[must_use]
    pub fn options_of(&self, node: usize) -> Vec<String> {
        let own = self.proxies.iter().filter(|(way, _)| way.from == node);
        own.flat_map(|(way, proxy)| {
            let route = format!("{}={proxy}", self.nodes[way.to]);
            ["--peer-route".to_owned(), route]
        })
        .collect()
    }

    /// Cuts both ways between the two sides.
    pub fn split(&self, one: &[usize], other: &[usize]) {
        for (from, to) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            let way = Way { from, to };
            for way in [way, way.back()] {
                self.gates[&way].send_modify(|gate| gate.is_open = false);
            }
        }
    }

    /// Opens all links.
    pub fn heal(&self, streams: Streams) {
        for gate in self.gates.values() {
            gate.send_if_modified(|gate| {
                let was_open = std::mem::replace(&mut gate.is_open, true);
                if !was_open && streams == Streams::StayDead {
                    gate.generation += 1;
                }
                !was_open
            });
        }
    }
}

/// A number that is free for TCP and UDP now. Another process may take it before it is used.
async fn free_pair(seams: &Seams) -> std::io::Result<String> {
    let mut attempt = 0;
    loop {
        let listener = seams.net.listen("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        match seams.net.datagrams(&address).await {
            Ok(_) => return Ok(address),
            Err(_) if attempt < PAIR_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// One directed link.
struct Proxy {
    seams: Seams,
    target: String,
    there: watch::Receiver<Gate>,
    back: watch::Receiver<Gate>,
}

impl Proxy {
    /// Answers with the proxy's address.
    async fn start(self) -> std::io::Result<String> {
        let mut attempt = 0;
        let (mut listener, datagrams) = loop {
            let listener = self.seams.net.listen("127.0.0.1:0").await?;
            let address = listener.local_addr()?.to_string();
            match self.seams.net.datagrams(&address).await {
                Ok(datagrams) => break (listener, datagrams),
                Err(_) if attempt < PAIR_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        let address = listener.local_addr()?.to_string();
        let forward = pass_datagrams(
            self.seams.clone(),
            datagrams,
            self.target.clone(),
            self.there.clone(),
        );
        self.seams.spawn("proxy of datagrams", forward);
        let seams = self.seams.clone();
        seams.spawn("proxy", async move {
            while let Ok((stream, _)) = listener.accept().await {
                self.pass(stream);
            }
        });
        Ok(address)
    }

    fn pass(&self, near: Box<dyn Stream>) {
        let (seams, target) = (self.seams.clone(), self.target.clone());
        let (mut there, back) = (self.there.clone(), self.back.clone());
        self.seams.spawn("proxied stream", async move {
            // A connection is made when the link is open both ways.
            let mut answers = back.clone();
            loop {
                if until_open(&mut there).await.is_err() || until_open(&mut answers).await.is_err()
                {
                    return;
                }
                if there.borrow().is_open {
                    break;
                }
            }
            let Ok(far) = seams.net.connect(&target).await else {
                return;
            };
            let (near_reads, near_writes) = tokio::io::split(near);
            let (far_reads, far_writes) = tokio::io::split(far);
            let to = copy(near_reads, far_writes, there);
            let from = copy(far_reads, near_writes, back);
            tokio::join!(to, from);
        });
    }
}

async fn until_open(gate: &mut watch::Receiver<Gate>) -> Result<Gate, watch::error::RecvError> {
    gate.wait_for(|gate| gate.is_open).await.map(|gate| *gate)
}

/// Copies what the gate lets through, to the end of the stream.
async fn copy(
    mut from: ReadHalf<Box<dyn Stream>>,
    mut to: WriteHalf<Box<dyn Stream>>,
    mut gate: watch::Receiver<Gate>,
) {
    let born = gate.borrow().generation;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = from.read(&mut buffer).await;
        let Ok(passing) = until_open(&mut gate).await else {
            return;
        };
        let length = match read {
            Ok(length) => length,
            Err(_) => return,
        };
        if passing.generation != born {
            // Not even its end is heard of at the other side. Both halves live until then.
            if length == 0 {
                return;
            }
            continue;
        }
        let passed = match length {
            0 => to.shutdown().await,
            _ => to.write_all(&buffer[..length]).await,
        };
        if length == 0 || passed.is_err() {
            return;
        }
    }
}

async fn pass_datagrams(
    seams: Seams,
    socket: Arc<dyn Datagrams>,
    target: String,
    gate: watch::Receiver<Gate>,
) {
    let Ok(target) = seams.net.resolve(&target).await else {
        return;
    };
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An unreachable target surfaces here as an error of its own.
        let Ok((length, _)) = socket.receive_from(&mut buffer).await else {
            continue;
        };
        if gate.has_changed().is_err() {
            return;
        }
        if gate.borrow().is_open {
            drop(socket.send_to(&buffer[..length], target).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use engram_core::storage::RocksOptions;
    use engram_node::seams::os;

    use super::*;

    async fn sent(stream: &mut Box<dyn Stream>, byte: u8) {
        stream.write_all(&[byte]).await.expect("it takes a byte");
    }

    #[tokio::test]
    async fn a_cut_link_is_silent_and_a_healed_one_delivers_or_not() {
        let seams = os::seams(RocksOptions::default());
        let links = Links::start(&seams, 2).await.expect("ports are free");
        let mut there = seams.net.listen(links.listen_of(1)).await.expect("free");
        let options = links.options_of(0);
        let route = options[1].split_once('=').expect("a route").1.to_owned();
        let mut near = seams.net.connect(&route).await.expect("the proxy listens");
        let (mut far, _) = there.accept().await.expect("the proxy connects");
        sent(&mut near, 1).await;
        assert_eq!(far.read_u8().await.ok(), Some(1));

        links.split(&[0], &[1]);
        sent(&mut near, 2).await;
        sent(&mut far, 3).await;
        let mut late = seams.net.connect(&route).await.expect("somebody listens");
        sent(&mut late, 4).await;
        links.heal(Streams::Resume);
        assert_eq!(far.read_u8().await.ok(), Some(2), "late, not lost");
        assert_eq!(near.read_u8().await.ok(), Some(3));
        let (mut accepted, _) = there.accept().await.expect("the proxy connects now");
        assert_eq!(accepted.read_u8().await.ok(), Some(4));

        links.split(&[1], &[0]);
        sent(&mut near, 5).await;
        links.heal(Streams::StayDead);
        sent(&mut near, 6).await;
        // A new stream passes; by then the old one would have, too.
        let mut fresh = seams.net.connect(&route).await.expect("the proxy listens");
        sent(&mut fresh, 7).await;
        let (mut accepted, _) = there.accept().await.expect("the proxy connects");
        assert_eq!(accepted.read_u8().await.ok(), Some(7));
        let read = tokio::select! {
            biased;
            read = far.read_u8() => Some(read),
            () = std::future::ready(()) => None,
        };
        assert!(read.is_none(), "the old stream stays silent: {read:?}");
    }
}
