//! A process that is called like a function: a library that crashes, a parser that leaks, an engine that knows one thread
//! only, each in a process of its own.
//!
//! # Ten lines
//! An [`Entry`] is two functions: one makes a state, once in the process; the other carries out a call with it. A waiting
//! [`Process`](crate::proc::Process) is given to it, and a [`Client`] comes back:
//!
//! ```no_run
//! use hatchery::proc::{Process, Registry};
//! use hatchery::rpc::{Client, Cx, Entry, Options};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let count = |words: &mut u64, text: String, _: &Cx<()>| {
//!         *words += text.split_whitespace().count() as u64;
//!         Ok(*words)
//!     };
//!     hatchery::init(&Registry::new().rpc("count", Entry::new(|_| Ok(0), count)));
//!
//!     let counter: Client<String, u64, ()> = Process::new()?.rpc("count", Options::new())?;
//!     println!("{} words so far", counter.call(&"to be or not to be".to_owned())?);
//!     println!("it has left: {}", counter.finish()?);
//!     Ok(())
//! }
//! ```
//!
//! # Calling
//! - [`Client::call`] waits for the reply, [`Client::call_timeout`] no longer than it is told.
//! - [`Client::submit`] does not wait; a callback is called. Calls that come faster than replies travel together.
//! - [`Client::call_async`] gives a [`CallFuture`], for any runtime.
//! - [`Client::submit_timeout`] and [`Client::call_async_timeout`] have a deadline too; it needs neither a thread nor a
//!   runtime's timer.
//!
//! A handler's [`events`](Cx::events) go to [`Client::on_event`]: a progress bar's steps, lines of a log. Events and replies
//! arrive in the order in which they were made.
//!
//! # Answering later
//! With [`Entry::deferred`] the handler gets a [`Responder`] instead of returning the reply, and may answer from any thread
//! or task, in any order, many calls at a time.
//!
//! With the feature `tokio` there is `Entry::tokio`, whose handler is an async function: a current-thread runtime in the
//! process drives as many calls at a time as it allows. In the master nothing is needed for tokio: a [`CallFuture`] can be
//! awaited in any runtime, and [`Client::call_async_timeout`] needs no timer of it.
//!
//! # What may go wrong
//! Every call ends exactly once: with its reply or with an [`Error`], and [`Error::may_have_run`] says whether it is safe to
//! make it again. An error that a handler returns is that call's alone. A crash, a panic, a `kill -9`, a process that says
//! nonsense or speaks of other types end the conversation: then [`Client::on_error`] hears once how ([`Lost`]), and so does
//! every call that was outstanding. Nothing that a process sends makes its master panic, hang, or take memory beyond
//! [`Options::max_message`].
//!
//! A call whose deadline passes, or whose future is dropped, is cancelled: its handler can ask [`Cx::cancelled`] or
//! [`Responder::cancelled`], it is not begun if it has not been yet, and a late reply goes nowhere. A handler that does not ask
//! is not interrupted; to end it, end its process.
//!
//! # Pools
//! A [`Pool`] is as many such processes as there is work, called like one function: what crashes, hangs, leaks or must not be
//! trusted costs a process, which is replaced, and not the program.
//!
//! ```no_run
//! use std::time::Duration;
//! use hatchery::proc::{Process, Registry};
//! use hatchery::rpc::{Cx, Entry, Error, Pool, PoolOptions};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // A parser that nobody trusts.
//!     let parse = |(): &mut (), page: Vec<u8>, _: &Cx<()>| Ok(String::from_utf8(page)?.lines().count() as u64);
//!     hatchery::init(&Registry::new().rpc("parse", Entry::new(|_| Ok(()), parse)));
//!
//!     let options = PoolOptions::new()
//!         .max(4)
//!         .deadline(Duration::from_secs(2)) // who takes longer is killed
//!         .max_memory(256 << 20); // who has leaked so much is replaced
//!     let pool: Pool<Vec<u8>, u64, ()> = Pool::new("parse", options, Process::new)?;
//!     match pool.prepare(&b"a page".to_vec()).repeatable(1).label("page 7").call() {
//!         Ok(lines) => println!("{lines} lines"),
//!         Err(Error::TimedOut { .. }) => println!("it takes too long"),
//!         Err(Error::Lost { why, .. }) => println!("its process did not survive it: {why}"),
//!         Err(error) => println!("{error}"),
//!     }
//!     println!("{:?}", pool.finish()?);
//!     Ok(())
//! }
//! ```
//!
//! - How many processes: [`min`](PoolOptions::min), [`max`](PoolOptions::max), [`idle`](PoolOptions::idle), a
//!   [`start_delay`](PoolOptions::start_delay) and a [`stop_delay`](PoolOptions::stop_delay); how many calls in each: its
//!   [`load`](PoolOptions::load).
//! - How long they live: [`max_calls`](PoolOptions::max_calls), [`max_age`](PoolOptions::max_age),
//!   [`max_memory`](PoolOptions::max_memory).
//! - What is asked for one call: [`timeout`](Prepared::timeout), for which the caller waits; [`deadline`](Prepared::deadline), after
//!   which the process is killed; [`repeatable`](Prepared::repeatable), if it does no harm to begin it again after a death.
//! - What waits: a [`queue`](PoolOptions::queue) with a bound, beyond which callers wait or are [refused](PoolOptions::when_full).
//! - Processes that cannot be started are tried again after growing delays, and callers are told
//!   ([`Error::NoWorker`]) instead of waiting for ever.
//! - What happened: [`on_worker_exit`](Pool::on_worker_exit), [`statistics`](Pool::statistics).
//!
//! The example `parser_pool` of this repository isolates a parser that crashes, hangs and leaks.
//!
//! # A server's workers
//! The workers of a [`server`](crate::server) have other work; still they can be called, and send events, in the same way: a
//! service [offers](crate::server::WorkerCx::offer) a handler in its `start`, and the program that has the server gets a
//! [`Client`] of it ([`Server::on_offer`](crate::server::Server::on_offer), with an example). Three things differ:
//!
//! - A worker answers between requests, so a call waits for the request in hand. Events are sent at once, in the middle of a
//!   request too.
//! - A worker waits for nobody: where the master does not listen, events are refused beyond a limit ([`Error::Full`]) instead of
//!   making the worker wait.
//! - The worker is not the client's: nonsense, a panic or a codec's error end the conversation or the one call, and not the
//!   worker; nor does [`close`](Client::close). That a worker has closed a conversation and lives on is [`Lost::Left`].
//!
//! # Codecs and descriptors
//! Messages are written by a [`Codec`]: [`Postcard`], `Json` (feature `json`), [`Octets`], or
//! your own. Master and process compare the names of codec and types, and their shapes, before the first call ([`Contract`]): a
//! process of another version, whose types have kept their names and changed their fields, is never called. Open files,
//! sockets and pipes travel as [`Descriptor`]s anywhere inside a message.
//!
//! Messages over 64 KiB go through memory that both processes keep mapped (up to 8 MiB for each direction, as much as such
//! messages have needed at a time), and through memory files of their own beyond that. [`Octets`] are copied once on each side.
//!
//! # How much at once
//! [`Options`] bound the outstanding calls, the bytes that wait to be sent and the longest message. Beyond them `submit`
//! refuses ([`Error::Full`]), and `call` and `call_async` wait. A process that is busy simply does not read; a master that
//! does not listen makes its process wait in [`Events::send`] or with its reply.
//!
//! Replies to many quick calls that came together are sent together: those of at most 50 µs of work, after a row of 16 handlers
//! that took less than 20 µs each. If the process dies in that moment, these calls have run and their callers hear that
//! they may have.

mod client;
mod codec;
mod contract;
mod conversation;
mod descriptor;
mod error;
mod lanes;
mod link;
mod options;
mod pending;
mod pool;
mod serve;
mod shape;
mod wire;

pub use client::Client;
#[cfg(feature = "json")]
pub use codec::Json;
pub use codec::{Codec, Octets, Postcard};
pub use contract::{Contract, MessageType};
pub use descriptor::Descriptor;
pub use error::{Error, Lost};
pub use options::Options;
pub use pending::CallFuture;
pub use pool::{
    Cause, InHand, InvalidOption, Late, OpenError, Pool, PoolFuture, PoolOptions, Prepared, Statistics, WhenFull,
    Worker, WorkerExit,
};
#[cfg(feature = "tokio")]
pub use serve::AsyncCx;
pub use serve::{Cx, Entry, Events, InitCx, Responder};
pub(crate) use serve::{Loop, attended};
