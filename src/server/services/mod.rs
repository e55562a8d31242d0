//! The services that ship with the command.

mod http;
