//! `stead` gives every session a home.
//!
//! The facade that embedders depend on: the node library, the router library and the types they
//! share.
#![warn(missing_docs)]
