//! Small safe wrappers over the system calls that the upper layers need.
//!
//! This is the only folder in which `unsafe` may stand; each block says why it is sound.
#![allow(unsafe_code)]

pub(crate) mod alarm;
pub(crate) mod clock;
pub(crate) mod shared;
pub(crate) mod stream;
