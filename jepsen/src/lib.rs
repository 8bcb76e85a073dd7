//! Black-box fault injection against real Engram processes.
