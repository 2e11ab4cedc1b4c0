//! The owner side of `stead`.
pub mod logic;
