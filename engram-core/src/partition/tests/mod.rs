//! Tests of the partition as a whole; `support` drives it, each other file holds one concern.

mod arrays;
mod backup;
mod basics;
mod converge;
mod model;
mod overlay;
mod purges;
mod recall;
mod snapshots;
mod support;
