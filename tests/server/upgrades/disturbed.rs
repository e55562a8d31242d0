//! Upgrades that fail, are called off, or meet other wishes on their way.

use super::*;

pub fn tests() -> Vec<Trial> {
    trials!["upgrades":
        a_new_master_that_cannot_boot_leaves_the_old_one_serving_and_says_why,
        what_has_taken_a_unix_sockets_path_fails_the_upgrade_and_is_left_alone,
        a_boot_that_fails_halfway_loses_no_request,
        what_is_no_server_any_more_leaves_the_old_one_serving,
        a_new_master_that_never_serves_is_killed_with_all_that_it_started,
        kill_9_of_the_new_master_before_it_serves_leaves_the_old_one_and_nothing_of_the_new,
        kill_9_of_the_old_master_in_the_middle_leaves_the_new_one_to_go_on_alone,
        term_to_the_new_master_before_it_serves_leaves_the_old_one_serving,
        a_stop_in_the_middle_ends_both_masters,
        there_is_one_upgrade_at_a_time,
        reloads_and_changed_numbers_in_the_middle_are_the_old_masters,
    ]
}

fn a_new_master_that_cannot_boot_leaves_the_old_one_serving_and_says_why() {
    let mut probe = Probe::start(&[]);
    let before = probe.server.processes();
    for (moment, order, words) in [
        ("preload", "fail the new index is torn", "the new index is torn"),
        ("start", "fail no licence", "no licence"),
        ("start-1", "kill-yourself", "killed by signal 9"),
    ] {
        probe.orders.give(moment, order);
        let mark = probe.server.log.mark();
        probe.begin();
        let why = probe.server.log.wait_after(mark, "the failure", |record| record.is(FAILED)).str("why");
        assert!(why.contains("exit code 3") && why.contains(words), "{why}");
        probe.assert_untouched(&before);
        probe.orders.take_back(moment);
    }
    probe.server.upgrade();
    probe.stop();
}

fn what_has_taken_a_unix_sockets_path_fails_the_upgrade_and_is_left_alone() {
    let mut probe = Probe::start(&[]);
    let (unix, path) = (probe.server.address(), probe.path("socket"));
    let before = probe.server.processes();
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, "precious").expect("a file");
    let mark = probe.server.log.mark();
    probe.begin();
    let why = probe.server.log.wait_after(mark, "the failure", |record| record.is(FAILED)).str("why");
    assert!(why.contains("exit code 3") && why.contains("a regular file") && why.contains("left alone"), "{why}");
    assert_eq!(fs::read(&path).expect("it is there"), b"precious");
    eventually("nothing is left of the new master", || probe.server.processes() == before);
    let tcp = &probe.server.addresses()[1];
    assert!(Client::connect(tcp).and_then(|mut client| client.exchange("who")).is_ok());

    fs::remove_file(&path).expect("it is there");
    probe.server.upgrade();
    assert!(Client::connect(&unix).and_then(|mut client| client.exchange("who")).is_ok());
    probe.stop();
}

/// Clients of the probe that ask without pause, each time on a new connection, until told to stop; what they lost.
fn ask_all_the_time(address: &str) -> (Arc<AtomicBool>, Vec<JoinHandle<Vec<String>>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let ask = |address: String, stop: Arc<AtomicBool>| {
        let mut lost = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let answer = Client::connect(&address).and_then(|mut client| client.exchange("who"));
            lost.extend(answer.err().map(|error| error.to_string()));
        }
        lost
    };
    let clients = (0..3).map(|_| {
        let (address, stop) = (address.to_owned(), Arc::clone(&stop));
        std::thread::spawn(move || ask(address, stop))
    });
    let clients = clients.collect();
    (stop, clients)
}

fn a_boot_that_fails_halfway_loses_no_request() {
    let probe = Probe::start(&[]);
    let before = probe.server.processes();
    let (stop, clients) = ask_all_the_time(&probe.server.address());
    for round in 1..=3 {
        probe.orders.give("start-1", "wait");
        let mark = probe.server.log.mark();
        let new = probe.begin();
        probe.server.log.wait_after(mark, "its first worker", |record| record.is("worker ready"));
        // Its worker of slot 0 serves clients by now; then it fails, or is killed.
        if round == 3 {
            signal_process(new, Signal::SIGKILL);
        } else {
            eventually("it waits", || probe.orders.obeyed("start-1"));
            let starting = children(new).into_iter().flat_map(children).max().expect("a worker that starts");
            signal_process(starting, Signal::SIGKILL);
        }
        probe.server.log.wait_after(mark, "the failure", |record| record.is(FAILED));
        probe.assert_untouched(&before);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.join().expect("no panic"), [""; 0]);
    }
    probe.stop();
}

fn what_is_no_server_any_more_leaves_the_old_one_serving() {
    let directory = tempfile::tempdir().expect("a directory");
    let hatchery = Path::new(env!("CARGO_BIN_EXE_hatchery"));
    let program = copy(directory.path(), hatchery);
    let launch = Launch::program(&program).variable("HATCHERY_FIXTURE", "probe");
    let mut server = launch.args(["--workers", "2", "--faults"]).start();
    let workers = server.workers();
    let fails = |words: &[&str]| {
        let mark = server.log.mark();
        server.signal(Signal::SIGUSR2);
        let why = server.log.wait_after(mark, "the failure", |record| record.is(FAILED)).str("why");
        assert!(words.iter().all(|word| why.contains(word)), "{why}");
        assert_eq!(server.workers(), workers);
        greets(&server.address());
    };
    copy(directory.path(), Path::new("/bin/true"));
    fails(&["ended before it served", "exit code 0"]);
    copy(directory.path(), Path::new("/etc/hostname"));
    fails(&["cannot start", program.to_str().expect("a path"), "os error"]);
    // A program that does not know one of the flags.
    copy(directory.path(), &std::env::current_exe().expect("a path"));
    fails(&["exit code 2", "--faults"]);
    fs::remove_file(&program).expect("it was there");
    fails(&["cannot start", "No such file"]);
    copy(directory.path(), hatchery);
    server.upgrade();
    server.stop();
}

fn a_new_master_that_never_serves_is_killed_with_all_that_it_started() {
    let probe = Probe::start(&["--upgrade-timeout", "500ms"]);
    let before = probe.server.processes();
    for moment in ["preload", "start-1"] {
        probe.orders.give(moment, "hang");
        let mark = probe.server.log.mark();
        probe.begin();
        let why = probe.server.log.wait_after(mark, "the failure", |record| record.is(FAILED)).str("why");
        assert_eq!(why, "the new master did not serve within 500ms");
        probe.assert_untouched(&before);
        probe.orders.take_back(moment);
    }
    probe.stop();
}

fn kill_9_of_the_new_master_before_it_serves_leaves_the_old_one_and_nothing_of_the_new() {
    let probe = Probe::start(&[]);
    let before = probe.server.processes();
    let new = probe.begin_and_wait();
    signal_process(new, Signal::SIGKILL);
    assert!(probe.await_failure().contains("SIGKILL"));
    probe.assert_untouched(&before);
    probe.stop();
}

fn kill_9_of_the_old_master_in_the_middle_leaves_the_new_one_to_go_on_alone() {
    let mut probe = Probe::start(&[]);
    let old: Vec<i32> = probe.server.processes();
    let new = probe.begin_and_wait();
    probe.server.signal(Signal::SIGKILL);
    probe.server.wait();
    within(Duration::from_secs(2), "the old one's processes are gone", || old.iter().all(|&pid| !is_alive(pid)));
    eventually("the pid file follows", || pid_in(&probe.path("pid")) == new);
    probe.server.follow(new);
    probe.server.log.wait("it says so", |record| record.is("the old master is gone, this one goes on alone"));
    let mark = probe.server.log.mark();
    probe.orders.take_back("start-1");
    probe.server.log.wait_after(mark, "it serves", |record| record.is("serving"));
    eventually("nobody else is left", || probe.server.processes().len() == 1 + 1 + 2);
    probe.assert_untouched(&probe.server.processes());
    probe.server.upgrade();
    probe.stop();
}

fn term_to_the_new_master_before_it_serves_leaves_the_old_one_serving() {
    let probe = Probe::start(&[]);
    let before = probe.server.processes();
    let new = probe.begin_and_wait();
    signal_process(new, Signal::SIGTERM);
    probe.server.log.wait("it has heard that", |record| record.is("stopping"));
    probe.orders.take_back("start-1");
    assert!(probe.await_failure().contains("exit code 0"));
    probe.assert_untouched(&before);
    probe.stop();
}

fn a_stop_in_the_middle_ends_both_masters() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut probe = Probe::start(&[]);
        let new = probe.begin_and_wait();
        probe.server.stop_by(signal);
        assert!(!is_alive(new));
        let called_off = probe.server.log.wait("what has become of it", |record| record.is("upgrade called off"));
        assert_eq!(called_off.str("why"), "the server was stopped");
        assert_eq!(probe.server.log.count(|record| record.is(FAILED)), 0, "this master does not stay");
        assert!(!probe.path("socket").exists() && !probe.path("pid").exists());
    }
}

fn there_is_one_upgrade_at_a_time() {
    let mut probe = Probe::start(&[]);
    let new = probe.begin_and_wait();
    probe.server.signal(Signal::SIGUSR2);
    let ignored = probe.server.log.wait("it is told", |record| record.is("a signal means nothing now"));
    assert_eq!(ignored.str("signal"), "Upgrade");
    probe.orders.take_back("start-1");
    assert_eq!(probe.server.log.wait("the upgrade", |record| record.is("replaced")).pid(), new);
    assert_eq!(probe.server.wait().code(), Some(0));
    probe.server.follow(new);
    assert_eq!(probe.server.log.count(|record| record.is("upgrading, a new master starts")), 1);
    probe.stop();
}

fn reloads_and_changed_numbers_in_the_middle_are_the_old_masters() {
    let mut probe = Probe::start(&[]);
    let old = probe.server.pid;
    let new = probe.begin_and_wait();
    signal_process(old, Signal::SIGTTOU);
    probe.server.log.wait("one fewer", |record| record.is("worker drained"));
    signal_process(old, Signal::SIGHUP);
    probe.server.log.wait("the reload", |record| record.is("reloaded"));
    assert!(is_alive(new));
    probe.orders.take_back("start-1");
    assert_eq!(probe.server.log.wait("the upgrade", |record| record.is("replaced")).pid(), new);
    assert_eq!(probe.server.wait().code(), Some(0));
    probe.server.follow(new);
    eventually("the new master has the number of the command line", || probe.server.processes().len() == 1 + 1 + 2);
    probe.stop();
}
