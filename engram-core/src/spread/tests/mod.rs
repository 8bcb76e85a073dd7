//! The rules by hand, the oracle against a naive model, and every layout against the oracle.

mod arrays;
mod cluster;
mod examples;
mod graph;
mod layouts;
mod naive;
mod partial;
mod protocol;
mod push;
mod truth;
