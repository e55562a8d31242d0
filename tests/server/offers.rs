//! What workers offer to the master: calls, events, and what becomes of them when workers come and go.
//!
//! The fixture is a program with a server: it accepts what is offered, does what the test writes to its standard input, a
//! line each, and logs what comes of it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write, stdin};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hatchery::proc::Registry;
use hatchery::rpc::{Client, Cx, Error, Events, Options};
use hatchery::server::{
    self, Config, Conn, LogFormat, LogLevel, Next, Offer, OfferError, OfferOptions, PreloadCx, RequestCx, Result,
    Service, WorkerCx, Workers, host, stderr_logger,
};
use hatchery::slog::{Logger, info};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use serde::{Deserialize, Serialize};

use crate::support::client::Client as LineClient;
use crate::support::log::Record;
use crate::support::processes::{descriptors, eventually, is_alive};
use crate::support::{Launch, Server, signal_process};

pub fn tests() -> Vec<Trial> {
    trials!["offers":
        the_master_calls_a_counter_in_every_worker_and_sums,
        progress_arrives_in_the_order_in_which_it_was_made_in_the_middle_of_a_request,
        events_and_replies_arrive_in_the_order_in_which_they_were_made,
        events_from_before_the_master_accepted_are_not_lost,
        a_call_waits_for_the_request_in_hand_and_is_answered_after_it,
        a_call_whose_deadline_passes_during_a_request_is_never_begun,
        clients_are_served_while_the_master_calls_without_pause,
        an_error_or_a_panic_of_a_handler_is_its_calls_alone,
        a_handler_that_never_ends_meets_the_deadline_of_requests,
        kill_9_of_a_worker_ends_each_outstanding_call_once_and_says_how,
        a_worker_that_follows_another_offers_anew,
        after_a_reload_both_generations_are_told_apart_and_the_old_ones_end,
        a_graceful_stop_answers_the_calls_that_were_made,
        invariant_9_kill_9_of_a_master_that_has_called_leaves_nobody,
        a_declined_offer_does_its_worker_no_harm,
        a_client_that_is_closed_or_dropped_leaves_the_worker_serving,
        a_master_of_other_types_is_told_so_and_the_worker_serves_on,
        a_worker_that_speaks_nonsense_ends_its_own_conversation_alone,
        a_worker_that_closes_its_conversation_and_lives_on_is_left_alone,
        events_beyond_the_limit_are_refused_and_those_before_arrive,
        a_worker_makes_no_more_than_eight_offers,
        a_server_that_wants_no_offers_declines_them,
        a_service_with_its_own_loop_answers_too,
        a_handler_of_offers_that_waits_holds_up_no_server,
        invariant_3_an_offer_costs_a_descriptor_and_the_first_an_epoll_too,
    ]
}

// ---- the program ----

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Count,
    /// Send so many events before the reply.
    Tell(u32),
    Fail,
    Panic,
    Spin,
}

type Offered = Client<Order, u64, String>;

/// A server of the service that the variable names.
pub fn program() -> ExitCode {
    match std::env::var("HATCHERY_SERVICE").as_deref() {
        Ok("own-loop") => serve::<OwnLoop>(),
        _ => serve::<Offering>(),
    }
}

fn serve<S: Service>() -> ExitCode {
    hatchery::init(&host::<S>(Registry::new(), stderr_logger));
    let variable = |name: &str| std::env::var(name).ok();
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
    config.workers = Workers::new(variable("HATCHERY_WORKERS").map_or(1, |count| count.parse().expect("a number")))
        .expect("in range");
    config.args = variable("HATCHERY_OFFERS").map(|names| ("offers".to_owned(), names)).into_iter().collect();
    config.log_format = LogFormat::Json;
    config.request_kill_after = Duration::from_millis(50);
    if let Some(limit) = variable("HATCHERY_REQUEST_TIMEOUT_MS") {
        config.request_timeout = Some(Duration::from_millis(limit.parse().expect("a number")));
    }
    let log = stderr_logger(LogFormat::Json, LogLevel::Debug);
    let server = server::Server::new(config, log.clone());
    let accepted = Accepted { clients: Arc::default(), log };
    let at_the_end = accepted.clone();
    let server = match variable("HATCHERY_PROGRAM").as_deref() {
        Some("declines-all") => server,
        Some("waits") => server.on_offer(|_| {
            loop {
                thread::park();
            }
        }),
        _ => {
            accepted.obey_stdin();
            server.on_offer(move |offer| accepted.accept(offer))
        }
    };
    let end = server.run();
    at_the_end.hear_all();
    if end.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// What the program has accepted, by name and pid.
#[derive(Clone)]
struct Accepted {
    clients: Arc<Mutex<BTreeMap<String, Arc<Offered>>>>,
    log: Logger,
}

impl Accepted {
    fn accept(&self, offer: Offer) {
        let (name, slot, generation, pid) = (offer.name().to_owned(), offer.slot(), offer.generation(), offer.pid());
        self.take(offer);
        info!(self.log, "offered"; "offer" => name, "slot" => slot.0, "pid" => pid, "generation" => generation.0);
    }

    fn take(&self, offer: Offer) {
        let key = format!("{}@{}", offer.name(), offer.pid());
        match offer.name() {
            "declined" => return,
            "wrong" => {
                let client: Client<u8, u8, u8> = offer.accept(Options::new()).expect("accepted");
                let error = client.call(&1).map(drop).expect_err("we do not agree");
                return info!(self.log, "outcome"; "offer" => key, "words" => words_of(&error));
            }
            _ => {}
        }
        let client: Offered = offer.accept(Options::new()).expect("accepted");
        // The quiet one is not listened to before that is ordered.
        if offer_name(&key) != "quiet" {
            self.listen(&client, &key);
        }
        self.clients.lock().expect("no panic").insert(key, Arc::new(client));
    }

    fn listen(&self, client: &Offered, key: &str) {
        // Before all else: what comes while nobody listens is dropped.
        let (log, of) = (self.log.clone(), key.to_owned());
        client
            .on_event(move |event| info!(log, "event"; "offer" => &of, "words" => event.get(..20).unwrap_or(&event)))
            .expect("watched");
        let (log, of) = (self.log.clone(), key.to_owned());
        client.on_error(move |why| info!(log, "ended"; "offer" => of, "words" => words_of(&why))).expect("watched");
    }

    /// Waits for what is still on its way: all workers have ended.
    fn hear_all(&self) {
        let clients = std::mem::take(&mut *self.clients.lock().expect("no panic"));
        for client in clients.into_values().filter_map(Arc::into_inner) {
            // How each has ended is logged.
            let _ = client.close();
        }
    }

    fn obey_stdin(&self) {
        let (this, orders) = (self.clone(), stdin().as_fd().try_clone_to_owned().expect("a copy"));
        thread::spawn(move || {
            for line in BufReader::new(UnixStream::from(orders)).lines().map_while(std::io::Result::ok) {
                this.obey(&line);
            }
        });
    }

    fn obey(&self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let client = |key: &str| Arc::clone(&self.clients.lock().expect("no panic")[key]);
        let outcome = |key: &str, outcome: std::result::Result<u64, Error>| {
            let (words, may_have_run) = match outcome {
                Ok(number) => (number.to_string(), true),
                Err(error) => (words_of(&error), error.may_have_run()),
            };
            info!(self.log, "outcome"; "offer" => key, "words" => words, "may_have_run" => may_have_run);
        };
        match words[..] {
            ["sum"] => {
                let clients: Vec<_> = self.clients.lock().expect("no panic").values().cloned().collect();
                let sum: u64 = clients.iter().filter_map(|client| client.call(&Order::Count).ok()).sum();
                info!(self.log, "sum"; "sum" => sum);
            }
            ["call", key, order] => outcome(key, client(key).call(&order_of(order))),
            ["call", key, order, "within-ms", limit] => {
                let limit = Duration::from_millis(limit.parse().expect("a number"));
                outcome(key, client(key).call_timeout(&order_of(order), limit));
            }
            ["submit", key, order] => {
                let (this, of) = (self.clone(), key.to_owned());
                let callback = move |result: std::result::Result<u64, Error>| {
                    let words = result.map_or_else(|error| words_of(&error), |number| number.to_string());
                    info!(this.log, "outcome"; "offer" => of, "words" => words);
                };
                client(key).submit(&order_of(order), callback).expect("submitted");
                info!(self.log, "submitted"; "offer" => key);
            }
            ["call-without-pause", key, count] => {
                let client = client(key);
                let all = (0..count.parse::<u32>().expect("a number")).all(|_| client.call(&Order::Count).is_ok());
                outcome(key, Ok(all.into()));
            }
            ["listen", key] => self.listen(&client(key), key),
            ["close", key] | ["drop", key] => {
                let client = self.clients.lock().expect("no panic").remove(key).expect("accepted");
                let client = Arc::into_inner(client).expect("nobody else has it");
                if words[0] == "close" {
                    let words = client.close().map_or_else(|error| words_of(&error), |()| "closed".to_owned());
                    info!(self.log, "closed"; "offer" => key, "words" => words);
                }
            }
            _ => panic!("there is no order {line:?}"),
        }
    }
}

fn order_of(word: &str) -> Order {
    match word.split_once(':').unwrap_or((word, "")) {
        ("count", _) => Order::Count,
        ("tell", count) => Order::Tell(count.parse().expect("a number")),
        ("fail", _) => Order::Fail,
        ("panic", _) => Order::Panic,
        ("spin", _) => Order::Spin,
        (other, _) => panic!("there is no order {other:?}"),
    }
}

fn offer_name(key: &str) -> &str {
    key.split_once('@').expect("a key").0
}

fn words_of(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

// ---- its services ----

/// What both services share.
struct Workshop {
    counter: Rc<Cell<u64>>,
    events: BTreeMap<String, Events<String>>,
}

impl Workshop {
    /// Offers what the arguments name.
    fn open(cx: &WorkerCx) -> Result<Workshop> {
        let counter = Rc::new(Cell::new(0));
        let mut events = BTreeMap::new();
        for name in cx.arg_opt("offers").unwrap_or("counters").split(',') {
            let held: BTreeSet<RawFd> = sockets()?;
            let of_handler = Rc::clone(&counter);
            let handler = move |order, cx: &Cx<String>| carry_out(&of_handler, order, cx);
            match cx.offer(name, OfferOptions::new().max_queued(64 << 10), handler) {
                Ok(of) => drop(events.insert(name.to_owned(), of)),
                Err(OfferError::TooMany) => info!(cx.log(), "too many"; "offer" => name),
                Err(error) => return Err(error.into()),
            }
            match name {
                "early" => (0..3).try_for_each(|number| events[name].send(&number.to_string()))?,
                "nonsense" => {
                    let ours = sockets()?.difference(&held).copied().next().expect("the offer's own end");
                    send(ours, b"this is no frame", MsgFlags::MSG_DONTWAIT)?;
                }
                "shut" => {
                    let ours = sockets()?.difference(&held).copied().next().expect("the offer's own end");
                    shutdown(ours, Shutdown::Both)?;
                }
                _ => {}
            }
        }
        Ok(Workshop { counter, events })
    }
}

/// The sockets that this process holds.
fn sockets() -> Result<BTreeSet<RawFd>> {
    let held = descriptors(std::process::id() as i32).into_iter();
    Ok(held.filter(|(_, target)| target.starts_with("socket:")).map(|(fd, _)| fd).collect())
}

fn carry_out(counter: &Cell<u64>, order: Order, cx: &Cx<String>) -> Result<u64> {
    match order {
        Order::Count => {}
        Order::Tell(count) => {
            for number in 0..count {
                cx.events.send(&format!("told {number}"))?;
            }
        }
        Order::Fail => return Err("as ordered".into()),
        Order::Panic => panic!("as ordered"),
        Order::Spin => loop {
            std::hint::spin_loop();
        },
    }
    Ok(counter.get())
}

/// A service of lines.
struct Offering(Workshop);

impl Service for Offering {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<Offering> {
        Workshop::open(cx).map(Offering)
    }

    fn serve(&mut self, conn: &mut Conn, cx: &mut RequestCx<'_>) -> Result<Next> {
        if !conn.buffer().contains(&b'\n') {
            return Ok(Next::Park);
        }
        let Some(line) = conn.read_line(4096)? else { return Ok(Next::Close) };
        let Workshop { counter, events } = &self.0;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["count"] => {
                counter.set(counter.get() + 1);
                writeln!(conn, "{}", cx.pid())?;
            }
            // Counts at its end, which the client's next line is.
            ["hold"] => {
                writeln!(conn, "{}", cx.pid())?;
                conn.flush()?;
                conn.read_line(4096)?;
                counter.set(counter.get() + 1);
                writeln!(conn, "released")?;
            }
            ["progress", name, count] => {
                for step in 0..count.parse::<u32>()? {
                    events[name].send(&format!("step {step}"))?;
                }
                writeln!(conn, "half")?;
                conn.flush()?;
                conn.read_line(4096)?;
                events[name].send(&"done".to_owned())?;
                writeln!(conn, "released")?;
            }
            // As many events of a kibibyte as are taken.
            ["flood", name] => {
                let mut taken = 0;
                let refused = loop {
                    match events[name].send(&format!("{taken} {}", "x".repeat(1024))) {
                        Ok(()) => taken += 1,
                        Err(error) => break error,
                    }
                };
                writeln!(conn, "{taken} {refused}")?;
            }
            _ => writeln!(conn, "there is no question {line:?}")?,
        }
        Ok(Next::Park)
    }
}

/// One connection at a time, one word, and goodbye.
struct OwnLoop(Workshop);

impl Service for OwnLoop {
    type Preload = ();

    fn preload(_: &PreloadCx) -> Result<()> {
        Ok(())
    }

    fn start((): &'static (), cx: &WorkerCx) -> Result<OwnLoop> {
        Workshop::open(cx).map(OwnLoop)
    }

    fn serve(&mut self, _: &mut Conn, _: &mut RequestCx<'_>) -> Result<Next> {
        unreachable!("the loop is this service's own")
    }

    fn run(self, cx: WorkerCx) -> Result<()> {
        cx.ready();
        let listener = &cx.listeners()[0];
        let mut again = Some(Duration::ZERO);
        while !cx.draining() {
            let offers = cx.offers_fd().expect("something was offered");
            let fds = [cx.drain_fd(), listener.as_fd(), offers];
            let patience = again.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from)?;
            poll(&mut fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)), patience)?;
            while let Some(mut conn) = listener.accept()? {
                self.0.counter.set(self.0.counter.get() + 1);
                self.0.events["counters"].send(&"a client has come".to_owned())?;
                writeln!(conn, "{}", cx.pid())?;
                conn.flush()?;
            }
            again = cx.answer_offers();
        }
        cx.answer_offers();
        Ok(())
    }
}

// ---- what the tests share ----

/// A running program, and what it is told to do.
struct Program {
    server: Server,
    orders: UnixStream,
}

impl Program {
    fn start(variables: &[(&str, &str)]) -> Program {
        let (orders, theirs) = UnixStream::pair().expect("a pair");
        let launch = Launch::fixture("offers").redirect("", OwnedFd::from(theirs));
        let launch = variables.iter().fold(launch, |launch, (name, value)| launch.variable(name, *value));
        Program { server: launch.start(), orders }
    }

    fn offering(names: &str) -> Program {
        Program::start(&[("HATCHERY_OFFERS", names)])
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the program listens");
    }

    /// Waits for so many offers of this name.
    #[track_caller]
    fn offers(&self, name: &str, count: usize) -> Vec<Record> {
        let is_it = |record: &Record| record.is("offered") && record.says("offer", name);
        self.server.log.wait_for_many(0, count, "offers", is_it)
    }

    /// The key of the only worker's offer.
    #[track_caller]
    fn key(&self, name: &str) -> String {
        key_of(&self.offers(name, 1)[0])
    }

    /// Gives an order, and waits for what comes of it.
    #[track_caller]
    fn ask(&mut self, order: &str) -> Record {
        let mark = self.server.log.mark();
        self.order(order);
        self.server.log.wait_after(mark, order, |record| record.is("outcome"))
    }

    /// What has come of this kind, for this offer.
    fn all(&self, kind: &str, key: &str) -> Vec<String> {
        let is_it = |record: &Record| record.is(kind) && record.says("offer", key);
        self.server.log.all(is_it).iter().map(|record| record.str("words")).collect()
    }

    /// Waits until so many have come.
    #[track_caller]
    fn wait_for(&self, kind: &str, key: &str, count: usize) -> Vec<String> {
        let is_it = |record: &Record| record.is(kind) && record.says("offer", key);
        let records = self.server.log.wait_for_many(0, count, kind, is_it);
        records.iter().map(|record| record.str("words")).collect()
    }

    /// Submits a call, and goes on when it has been made.
    #[track_caller]
    fn submit(&mut self, key: &str, order: &str) {
        let mark = self.server.log.mark();
        self.order(&format!("submit {key} {order}"));
        self.server.log.wait_after(mark, "a call", |record| record.is("submitted"));
    }

    /// A client whose request is under way, in the worker of this pid.
    #[track_caller]
    fn hold(&self) -> (LineClient, i32) {
        let mut client = self.server.client();
        let pid = ask_line(&mut client, "hold").parse().expect("a pid");
        (client, pid)
    }

    fn is_counted(&mut self, key: &str, count: u64) {
        assert_eq!(self.ask(&format!("call {key} count")).str("words"), count.to_string());
    }
}

fn key_of(offered: &Record) -> String {
    format!("{}@{}", offered.str("offer"), offered.pid())
}

#[track_caller]
fn ask_line(client: &mut LineClient, line: &str) -> String {
    client.exchange(line).expect("an answer")
}

// ---- calls and events ----

fn the_master_calls_a_counter_in_every_worker_and_sums() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "3")]);
    let offered = program.offers("counters", 3);
    let slots: BTreeSet<u64> = offered.iter().map(|offer| offer.u64("slot")).collect();
    assert_eq!(slots, BTreeSet::from([0, 1, 2]));
    let pids: BTreeSet<i32> = offered.iter().map(Record::pid).collect();
    assert_eq!(pids, program.server.workers().into_values().collect());
    assert!(offered.iter().all(|offer| offer.u64("generation") == 1));
    for _ in 0..20 {
        ask_line(&mut program.server.client(), "count");
    }
    program.order("sum");
    assert_eq!(program.server.log.wait("the sum", |record| record.is("sum")).u64("sum"), 20);
    program.server.stop();
}

fn progress_arrives_in_the_order_in_which_it_was_made_in_the_middle_of_a_request() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let mut client = program.server.client();
    assert_eq!(ask_line(&mut client, "progress counters 100"), "half");
    let mut expected: Vec<String> = (0..100).map(|step| format!("step {step}")).collect();
    // The request is not over before the client's next line.
    assert_eq!(program.wait_for("event", &key, 100), expected);
    assert_eq!(ask_line(&mut client, "go on"), "released");
    expected.push("done".to_owned());
    assert_eq!(program.wait_for("event", &key, 101), expected);
    program.server.stop();
}

fn events_and_replies_arrive_in_the_order_in_which_they_were_made() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    for _ in 0..3 {
        program.submit(&key, "tell:2");
    }
    program.wait_for("outcome", &key, 3);
    let heard = program.server.log.all(|record| record.is("event") || record.is("outcome"));
    let words: Vec<String> = heard.iter().map(|record| record.str("words")).collect();
    assert_eq!(words, ["told 0", "told 1", "0"].repeat(3));
    program.server.stop();
}

fn events_from_before_the_master_accepted_are_not_lost() {
    let program = Program::offering("early");
    assert_eq!(program.wait_for("event", &program.key("early"), 3), ["0", "1", "2"]);
}

fn a_call_waits_for_the_request_in_hand_and_is_answered_after_it() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (mut client, _) = program.hold();
    program.submit(&key, "count");
    assert_eq!(program.all("outcome", &key), [""; 0]);
    assert_eq!(ask_line(&mut client, "go on"), "released");
    // The request has counted at its end.
    assert_eq!(program.wait_for("outcome", &key, 1), ["1"]);
    program.server.stop();
}

fn a_call_whose_deadline_passes_during_a_request_is_never_begun() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (mut client, _) = program.hold();
    let words = program.ask(&format!("call {key} tell:1 within-ms 20")).str("words");
    assert!(words.contains("not answered in time"), "{words}");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.is_counted(&key, 1);
    assert_eq!(program.all("event", &key), [""; 0], "the call has run");
    program.server.stop();
}

fn clients_are_served_while_the_master_calls_without_pause() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    program.order(&format!("call-without-pause {key} 3000"));
    let mut client = program.server.client();
    for _ in 0..100 {
        ask_line(&mut client, "count");
    }
    assert_eq!(program.wait_for("outcome", &key, 1), ["1"], "a call has failed");
    program.is_counted(&key, 100);
    program.server.stop();
}

fn an_error_or_a_panic_of_a_handler_is_its_calls_alone() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    assert_eq!(program.ask(&format!("call {key} fail")).str("words"), "as ordered");
    let words = program.ask(&format!("call {key} panic")).str("words");
    assert!(words.contains("the handler panicked: as ordered"), "{words}");
    program.server.log.wait("the panic", |record| record.is("the handler of an offer panicked"));
    program.is_counted(&key, 0);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_handler_that_never_ends_meets_the_deadline_of_requests() {
    let mut program = Program::start(&[("HATCHERY_REQUEST_TIMEOUT_MS", "100")]);
    let offered = program.offers("counters", 1).remove(0);
    let words = program.ask(&format!("call {} spin", key_of(&offered))).str("words");
    assert!(words.contains("SIGALRM"), "{words}");
    program.server.successor(0, offered.pid());
    let next = key_of(&program.offers("counters", 2)[1]);
    program.is_counted(&next, 0);
    program.server.stop();
}

// ---- workers come and go ----

fn kill_9_of_a_worker_ends_each_outstanding_call_once_and_says_how() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (_client, pid) = program.hold();
    for _ in 0..3 {
        program.submit(&key, "count");
    }
    signal_process(pid, Signal::SIGKILL);
    let ended = program.wait_for("ended", &key, 1);
    program.server.successor(0, pid);
    program.key("counters");
    let outcomes = program.all("outcome", &key);
    assert_eq!(outcomes.len(), 3, "each once: {outcomes:?}");
    for words in outcomes.iter().chain(&ended) {
        assert!(words.contains("SIGKILL"), "{words}");
    }
    assert_eq!(program.all("ended", &key).len(), 1);
    // It is known before it is called.
    let words = program.ask(&format!("call {key} count"));
    assert!(words.line.contains("SIGKILL") && words.line.contains(r#""may_have_run":false"#), "{}", words.line);
    program.server.stop();
}

fn a_worker_that_follows_another_offers_anew() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2")]);
    let first = program.offers("counters", 2).remove(0);
    signal_process(first.pid(), Signal::SIGKILL);
    let successor = program.server.successor(first.u64("slot"), first.pid());
    let next = program.offers("counters", 3).remove(2);
    assert_eq!((next.u64("slot"), next.pid()), (first.u64("slot"), successor));
    program.is_counted(&key_of(&next), 0);
    program.server.stop();
}

fn after_a_reload_both_generations_are_told_apart_and_the_old_ones_end() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2")]);
    let old = program.offers("counters", 2);
    // An old worker that is still at work can still be called when it is through.
    let (mut client, busy) = program.hold();
    program.server.signal(Signal::SIGHUP);
    let all = program.offers("counters", 4);
    assert_eq!(all.iter().map(|offer| offer.u64("generation")).collect::<Vec<_>>(), [1, 1, 2, 2]);
    for offer in &all[2..] {
        program.is_counted(&key_of(offer), 0);
    }
    program.submit(&format!("counters@{busy}"), "count");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    drop(client);
    assert_eq!(program.wait_for("outcome", &format!("counters@{busy}"), 1), ["1"]);
    for offer in &old {
        let words = program.wait_for("ended", &key_of(offer), 1).remove(0);
        assert!(words.contains("code 0"), "{words}");
    }
    assert!(all[2..].iter().all(|offer| program.all("ended", &key_of(offer)).is_empty()));
    program.server.stop();
}

fn a_graceful_stop_answers_the_calls_that_were_made() {
    let mut program = Program::offering("counters");
    let key = program.key("counters");
    let (client, pid) = program.hold();
    for _ in 0..100 {
        program.submit(&key, "count");
    }
    program.server.signal(Signal::SIGTERM);
    program.server.log.wait("the drain", |record| record.is("worker told to drain"));
    assert!(is_alive(pid));
    // With its only client, the worker has no reason any more to stay.
    drop(client);
    assert_eq!(program.wait_for("outcome", &key, 100), vec!["1"; 100]);
    assert_eq!(program.server.wait().code(), Some(0));
    program.server.log.await_end();
    assert_eq!(program.all("outcome", &key).len(), 100);
}

fn invariant_9_kill_9_of_a_master_that_has_called_leaves_nobody() {
    let mut program = Program::start(&[("HATCHERY_WORKERS", "2"), ("HATCHERY_OFFERS", "counters,quiet")]);
    let keys: Vec<String> = program.offers("counters", 2).iter().map(key_of).collect();
    let (client, pid) = program.hold();
    for key in &keys {
        program.submit(key, "count");
    }
    signal_process(program.server.pid, Signal::SIGKILL);
    assert!(is_alive(pid), "a request in hand is still answered");
    drop(client);
    eventually("nobody is left", || program.server.processes().is_empty());
}

// ---- offers that come to nothing ----

fn a_declined_offer_does_its_worker_no_harm() {
    let mut program = Program::offering("declined,counters");
    let pid = program.offers("declined", 1)[0].pid();
    let mut client = program.server.client();
    // Its events go nowhere.
    assert_eq!(ask_line(&mut client, "progress declined 1000"), "half");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    assert_eq!(ask_line(&mut client, "count"), pid.to_string());
    let key = program.key("counters");
    program.is_counted(&key, 1);
    program.server.stop();
}

fn a_client_that_is_closed_or_dropped_leaves_the_worker_serving() {
    let mut program = Program::offering("one,two,counters");
    let [one, two, key] = ["one", "two", "counters"].map(|name| program.key(name));
    program.is_counted(&one, 0);
    program.order(&format!("close {one}"));
    assert_eq!(program.wait_for("closed", &one, 1), ["closed"]);
    program.order(&format!("drop {two}"));
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    for over in [&one, &two] {
        assert_eq!(program.all("ended", over), [""; 0], "it ended as it was asked to");
    }
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_master_of_other_types_is_told_so_and_the_worker_serves_on() {
    let mut program = Program::offering("wrong,counters");
    let words = program.wait_for("outcome", &program.key("wrong"), 1).remove(0);
    assert!(words.contains("do not agree"), "{words}");
    let key = program.key("counters");
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_worker_that_speaks_nonsense_ends_its_own_conversation_alone() {
    let mut program = Program::offering("nonsense,counters");
    let words = program.wait_for("ended", &program.key("nonsense"), 1).remove(0);
    assert!(words.contains("broke the protocol"), "{words}");
    let key = program.key("counters");
    ask_line(&mut program.server.client(), "count");
    program.is_counted(&key, 1);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn a_worker_that_closes_its_conversation_and_lives_on_is_left_alone() {
    let mut program = Program::offering("shut,counters");
    let shut = program.key("shut");
    program.submit(&shut, "count");
    // Its end would be awaited for ten seconds.
    for kind in ["outcome", "ended"] {
        let words = program.wait_for(kind, &shut, 1).remove(0);
        assert!(words.contains("has closed the conversation"), "{words}");
    }
    let key = program.key("counters");
    program.is_counted(&key, 0);
    assert_eq!(program.server.workers_ever(0).len(), 1);
    program.server.stop();
}

fn events_beyond_the_limit_are_refused_and_those_before_arrive() {
    let mut program = Program::offering("quiet,counters");
    let (quiet, key) = (program.key("quiet"), program.key("counters"));
    // Its greeting is there, or it would send nothing.
    program.is_counted(&key, 0);
    let mut client = program.server.client();
    let answer = ask_line(&mut client, "flood quiet");
    let (taken, refused) = answer.split_once(' ').expect("a number");
    let taken: usize = taken.parse().expect("a number");
    assert!(refused.contains("no room"), "{refused}");
    // The socket's buffer and 64 KiB, and not without end.
    assert!((64..10_000).contains(&taken), "{taken}");
    program.is_counted(&key, 0);
    program.order(&format!("listen {quiet}"));
    let events = program.wait_for("event", &quiet, taken);
    for (number, event) in events.iter().enumerate() {
        assert!(event.starts_with(&format!("{number} ")), "{number}: {event}");
    }
    // Now there is room again.
    assert_eq!(ask_line(&mut client, "progress quiet 1"), "half");
    assert_eq!(program.wait_for("event", &quiet, taken + 1)[taken], "step 0");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.server.stop();
}

fn a_worker_makes_no_more_than_eight_offers() {
    let mut program = Program::offering("1,2,3,4,5,6,7,8,9,10");
    for name in ["9", "10"] {
        program.server.log.wait("the error", |record| record.is("too many") && record.says("offer", name));
    }
    let key = program.key("8");
    program.is_counted(&key, 0);
    assert_eq!(program.server.log.count(|record| record.is("offered")), 8);
    program.server.stop();
}

fn a_server_that_wants_no_offers_declines_them() {
    let mut program = Program::start(&[("HATCHERY_PROGRAM", "declines-all")]);
    let mut client = program.server.client();
    assert_eq!(ask_line(&mut client, "progress counters 1000"), "half");
    assert_eq!(ask_line(&mut client, "go on"), "released");
    program.server.stop();
}

fn a_service_with_its_own_loop_answers_too() {
    let mut program = Program::start(&[("HATCHERY_SERVICE", "own-loop")]);
    let key = program.key("counters");
    program.is_counted(&key, 0);
    program.server.client().line().expect("a word");
    assert_eq!(program.wait_for("event", &key, 1), ["a client has come"]);
    program.is_counted(&key, 1);
    for _ in 0..40 {
        program.submit(&key, "count");
    }
    assert_eq!(program.wait_for("outcome", &key, 42).len(), 42);
    program.server.stop();
    let ended = program.wait_for("ended", &key, 1).remove(0);
    assert!(ended.contains("code 0"), "{ended}");
}

fn a_handler_of_offers_that_waits_holds_up_no_server() {
    let mut program = Program::start(&[("HATCHERY_PROGRAM", "waits"), ("HATCHERY_WORKERS", "2")]);
    let before = descriptors(program.server.pid).len();
    for _ in 0..3 {
        let (slot, pid) = program.server.workers().pop_first().expect("a worker");
        signal_process(pid, Signal::SIGKILL);
        program.server.successor(slot, pid);
    }
    // What the dead have offered does not wait any more, but for the one that the handler has.
    eventually("their offers are closed", || descriptors(program.server.pid).len() <= before + 1);
    ask_line(&mut program.server.client(), "count");
    program.server.stop();
}

fn invariant_3_an_offer_costs_a_descriptor_and_the_first_an_epoll_too() {
    let held = |names: &[(&str, &str)]| {
        let program = Program::start(names);
        let (_, pid) = program.server.workers().pop_first().expect("a worker");
        let kinds = |kind: &str| descriptors(pid).values().filter(|target| target.contains(kind)).count();
        (kinds("eventpoll"), kinds("socket:"))
    };
    // As `descriptors.rs` allows it, with one listener.
    assert_eq!(held(&[("HATCHERY_OFFERS", "one")]), (2 + 1, 1 + 2 + 3 + 1));
    assert_eq!(held(&[("HATCHERY_OFFERS", "one,two,three")]), (2 + 1, 1 + 2 + 3 + 3));
}
