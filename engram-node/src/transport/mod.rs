mod peers;
pub use peers::Peers;
