//! The reverse proxy of `stead`.

pub mod logic;
