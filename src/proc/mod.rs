//! The typed process layer: processes that wait for instructions, templates that are forked.
