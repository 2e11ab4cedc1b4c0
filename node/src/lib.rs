//! The owner side of `stead`.
