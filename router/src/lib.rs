//! The reverse proxy of `stead`.
