//! What travels between members.
