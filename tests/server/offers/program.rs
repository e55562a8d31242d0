//! The fixture, a program with a server: it accepts what is offered, does what the test writes to its standard input, a
//! line each, and logs what comes of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, stdin};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hatchery::proc::Registry;
use hatchery::rpc::{Client, Error, Options};
use hatchery::server::{self, Config, LogFormat, LogLevel, Offer, Service, Workers, host, stderr_logger};
use hatchery::slog::{Logger, info};
use serde::{Deserialize, Serialize};

use super::services::{Offering, OwnLoop};

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
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
        Some("waits") => server.on_offer(|_| wait_for_good()),
        Some("callback-waits") => server.on_offer(move |offer| accepted.wait_in_callback(offer)),
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

    fn wait_in_callback(&self, offer: Offer) {
        let client: Offered = offer.accept(Options::new()).expect("accepted");
        let log = self.log.clone();
        client
            .on_event(move |_| {
                info!(log, "a callback waits");
                wait_for_good()
            })
            .expect("watched");
        // To the end of the program, which does not wait for it.
        mem::forget(client);
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

fn wait_for_good() {
    loop {
        thread::park();
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
