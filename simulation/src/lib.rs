//! Deterministic simulation of Engram clusters.
