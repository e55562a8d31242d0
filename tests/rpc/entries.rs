//! The entry points that the tests use.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hatchery::proc::{BoxError, Registry, RunCx, Template};
use hatchery::rpc::{Client, Codec, Cx, Descriptor, Entry, Error, Events, Json, Octets, Options, Postcard, Responder};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::support::Outcome;

/// A call that is carried out by `script`, and by `script_deferred`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Act {
    /// Reply with this number.
    Say(u32),
    /// Send these events, then reply with the number.
    Events(Vec<u32>, u32),
    Fail(String),
    Panic(String),
    Exit(i32),
    /// Leave the call unanswered.
    Forget,
    /// Reply with so many zero bytes' worth of text.
    Long(u64),
    /// Reply with something that the codec cannot write.
    Unwritable,
    /// Send event 0 when begun, wait until the call is cancelled, then send event 1 and reply.
    UntilCancelled,
    /// How many calls were carried out before this one.
    Count,
    /// Wait for so many milliseconds, which no test does to wait for something itself.
    Linger(u64),
}

/// A reply to an [`Act`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Said {
    Number(u32),
    Text(String),
    Nothing,
}

impl Serialize for Said {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Said::Number(number) => serializer.serialize_newtype_variant("Said", 0, "Number", number),
            Said::Text(text) => serializer.serialize_newtype_variant("Said", 1, "Text", text),
            Said::Nothing => Err(serde::ser::Error::custom("nothing cannot be said")),
        }
    }
}

pub type Script = Client<Act, Said, u32>;

/// Opens files in the process and here: descriptors both ways.
#[derive(Debug, Serialize, Deserialize)]
pub struct Append {
    pub to: Descriptor,
    pub text: String,
}

/// A codec of the tests' own, that cannot read everything that it has written.
pub enum OneWay {}

impl Codec<String> for OneWay {
    const NAME: &'static str = "one way";

    fn encode(message: &String, into: &mut Vec<u8>) -> Result<(), BoxError> {
        into.extend_from_slice(message.as_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<String, BoxError> {
        if bytes.starts_with(b"terrible") {
            panic!("this cannot be read at all")
        }
        if bytes.starts_with(b"bad") {
            Err("this cannot be read".into())
        } else {
            Ok(String::from_utf8(bytes.to_vec())?)
        }
    }
}

pub type CallOfAnotherVersion = fn() -> Result<Result<u32, Error>, Box<dyn std::error::Error>>;

/// An entry point; and a call of it as another version of this program makes it, with a type that has kept its name and
/// changed its fields.
pub fn orders() -> (fn(Registry) -> Registry, CallOfAnotherVersion) {
    let there = {
        #[derive(Serialize, Deserialize)]
        struct Order {
            text: String,
            amount: u32,
        }
        |registry: Registry| {
            let take = |(): &mut (), order: Order, _: &Cx<()>| Ok(order.amount + order.text.len() as u32);
            registry.rpc("orders", Entry::new(|_| Ok(()), take))
        }
    };
    let here = {
        #[derive(Serialize, Deserialize)]
        struct Order {
            text: String,
            copies: u64,
        }
        || {
            let client: Client<Order, u32, ()> = client("orders", Options::<Postcard>::new())?;
            Ok(client.call(&Order { text: "a book".to_owned(), copies: 2 }))
        }
    };
    (there, here)
}

pub fn registry() -> Registry {
    let (orders, _) = orders();
    orders(Registry::new())
        .rpc("script", Entry::new(|_| Ok(0), script))
        .rpc("script_json", Entry::new(|_| Ok(0), script).codec::<Json>())
        .rpc("script_deferred", Entry::deferred(1000, |_| Ok(0), script_deferred))
        .rpc("script_deferred_few", Entry::deferred(4, |_| Ok(0), script_deferred))
        .rpc("octets", Entry::new(|_| Ok(()), |(), octets: Vec<u8>, _: &Cx<()>| Ok(octets)).codec::<Octets>())
        .rpc(
            "octets_deferred",
            Entry::deferred(
                16,
                |_| Ok(()),
                |(), octets: Vec<u8>, responder: Responder<Vec<u8>>, _: &Events<()>| {
                    thread::spawn(move || responder.answer(Ok(octets)));
                },
            )
            .codec::<Octets>(),
        )
        .rpc("reversed", Entry::deferred(1000, |_| Ok(Vec::new()), reversed))
        .rpc("threads", Entry::deferred(64, |_| Ok(()), threads))
        .rpc(
            "init",
            Entry::new(init, |told: &mut Vec<String>, index: u32, _: &Cx<()>| Ok(told[index as usize].clone())),
        )
        .rpc("append", Entry::new(|_| Ok(()), append))
        .rpc(
            "open_files",
            Entry::new(|_| Ok(()), |(), _: (), _: &Cx<()>| Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64)),
        )
        .rpc("pipes", Entry::new(|_| Ok(()), pipes))
        .rpc(
            "one_way",
            Entry::new(
                |_| Ok(()),
                |(), text: String, _: &Cx<String>| Ok(text.replace("worse", "bad").replace("worst", "terrible")),
            )
            .codec::<OneWay>(),
        )
        .call("no_further_descriptor", |_| {
            let lowest_free = File::open("/dev/null")?.as_raw_fd() as u64;
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            Ok(setrlimit(Resource::RLIMIT_NOFILE, lowest_free, hard)?)
        })
        .run("nonsense", nonsense)
}

/// A client of a new process.
pub fn client<Call, Reply, Event>(
    entry: &str,
    options: Options<impl Codec<Call> + Codec<Reply> + Codec<Event>>,
) -> Result<Client<Call, Reply, Event>, Box<dyn std::error::Error>> {
    Ok(Template::spawn()?.fork()?.rpc(entry, options)?)
}

/// Passes on what a callback has heard.
pub fn tell_test<T>(test: &mpsc::Sender<T>, what: T) {
    // The test may be over by then.
    let _ = test.send(what);
}

/// Makes a call with more and more patience until it begins before its deadline, which is up to the scheduler; says how often
/// it was made. `count` makes a call that tells how many have begun before it.
pub fn until_begun(
    count: impl Fn() -> Result<u32, Error>,
    mut make: impl FnMut(Duration) -> Outcome,
) -> Result<u64, Box<dyn std::error::Error>> {
    let mut made = 0;
    for doublings in 0..10 {
        let before = count()?;
        make(Duration::from_millis(20 << doublings))?;
        made += 1;
        if count()? == before + 2 {
            return Ok(made);
        }
    }
    Err("no call has begun before its deadline".into())
}

/// How many calls of a script have begun.
pub fn count(client: &Script) -> Result<u32, Error> {
    match client.call(&Act::Count)? {
        Said::Number(count) => Ok(count),
        other => panic!("{other:?} is no number"),
    }
}

pub fn scripted(entry: &str) -> Result<Script, Box<dyn std::error::Error>> {
    client::<Act, Said, u32>(entry, Options::<Postcard>::new())
}

fn script(count: &mut u32, act: Act, cx: &Cx<u32>) -> Result<Said, BoxError> {
    let before = *count;
    *count += 1;
    match act {
        Act::Say(number) => Ok(Said::Number(number)),
        Act::Events(events, number) => {
            events.iter().try_for_each(|event| cx.events.send(event))?;
            Ok(Said::Number(number))
        }
        Act::Fail(words) => Err(words.into()),
        Act::Panic(words) => panic!("{words}"),
        Act::Exit(code) => std::process::exit(code),
        Act::Forget => Err("a call that is carried out at once cannot be forgotten".into()),
        Act::Long(length) => Ok(Said::Text("0".repeat(length as usize))),
        Act::Unwritable => Ok(Said::Nothing),
        Act::UntilCancelled => {
            cx.events.send(&0)?;
            while !cx.cancelled() {
                thread::yield_now();
            }
            cx.events.send(&1)?;
            Ok(Said::Number(before))
        }
        Act::Count => Ok(Said::Number(before)),
        Act::Linger(millis) => {
            thread::sleep(Duration::from_millis(millis));
            Ok(Said::Number(before))
        }
    }
}

fn script_deferred(count: &mut u32, act: Act, responder: Responder<Said>, events: &Events<u32>) {
    let before = *count;
    *count += 1;
    match act {
        Act::Say(number) => responder.answer(Ok(Said::Number(number))),
        Act::Events(numbers, number) => {
            let sent: Result<(), _> = numbers.iter().try_for_each(|event| events.send(event));
            responder.answer(sent.map(|()| Said::Number(number)).map_err(Into::into));
        }
        Act::Fail(words) => responder.answer(Err(words.into())),
        Act::Panic(words) => panic!("{words}"),
        Act::Exit(code) => std::process::exit(code),
        Act::Forget => drop(responder),
        Act::Long(length) => responder.answer(Ok(Said::Text("0".repeat(length as usize)))),
        Act::Unwritable => responder.answer(Ok(Said::Nothing)),
        Act::UntilCancelled => {
            let events = events.clone();
            thread::spawn(move || {
                let _ = events.send(&0);
                while !responder.cancelled() {
                    thread::yield_now();
                }
                let _ = events.send(&1);
                responder.answer(Ok(Said::Number(before)));
            });
        }
        Act::Count => responder.answer(Ok(Said::Number(before))),
        Act::Linger(millis) => drop(thread::spawn(move || {
            thread::sleep(Duration::from_millis(millis));
            responder.answer(Ok(Said::Number(before)));
        })),
    }
}

/// Answers ten calls at a time, the last one first, with an event before each answer.
fn reversed(held: &mut Vec<(u32, Responder<u32>)>, call: u32, responder: Responder<u32>, events: &Events<u32>) {
    held.push((call, responder));
    if held.len() == 10 {
        while let Some((call, responder)) = held.pop() {
            let _ = events.send(&call);
            responder.answer(Ok(call));
        }
    }
}

/// Each call is answered by a thread of its own.
fn threads((): &mut (), call: u32, responder: Responder<u32>, events: &Events<u32>) {
    let events = events.clone();
    thread::spawn(move || {
        let _ = events.send(&call);
        responder.answer(Ok(call));
    });
}

/// Tells its arguments, and what is in the files that it was given.
fn init(cx: &mut hatchery::rpc::InitCx) -> Result<Vec<String>, BoxError> {
    if cx.args.is_empty() {
        return Err("it was given nothing".into());
    }
    let mut told = vec![cx.arg_str(0)?.to_owned()];
    for fd in cx.fds.drain(..) {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text)?;
        told.push(text);
    }
    Ok(told)
}

fn append((): &mut (), call: Append, _: &Cx<()>) -> Result<u64, BoxError> {
    let mut file = File::from(call.to.into_fd());
    file.write_all(call.text.as_bytes())?;
    Ok(file.as_raw_fd() as u64)
}

/// Makes so many pipes, and writes its number into each; the first ends go out in an event, and again in the reply.
fn pipes((): &mut (), count: u32, cx: &Cx<Vec<Descriptor>>) -> Result<Vec<Descriptor>, BoxError> {
    let (mut event, mut reply) = (Vec::new(), Vec::new());
    for number in 0..count {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(&number.to_le_bytes())?;
        event.push(Descriptor::from(OwnedFd::from(reader.try_clone()?)));
        reply.push(Descriptor::from(OwnedFd::from(reader)));
    }
    cx.events.send(&event)?;
    Ok(reply)
}

/// Says what it is told to instead of serving: each argument is a datagram. Descriptors go with the last.
fn nonsense(cx: RunCx) -> Result<(), BoxError> {
    use std::os::fd::AsRawFd;
    let RunCx { socket, args, fds, .. } = cx;
    let channel = hatchery::proc::Channel::<(), ()>::new(socket);
    let raw = std::os::fd::AsFd::as_fd(&channel).as_raw_fd();
    // The master's first word.
    nix::sys::socket::recv(raw, &mut [0; 65536], nix::sys::socket::MsgFlags::empty())?;
    let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    for (index, arg) in args.iter().enumerate() {
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&numbers)];
        let rights = if index + 1 == args.len() && !numbers.is_empty() { &rights[..] } else { &[] };
        let part = [std::io::IoSlice::new(arg)];
        nix::sys::socket::sendmsg::<()>(raw, &part, rights, nix::sys::socket::MsgFlags::empty(), None)?;
    }
    // It does not end by itself.
    let (_never, wait) = mpsc::channel::<()>();
    Ok(wait.recv()?)
}
