//! The first boot: all slots ready, or an end with the reason.

use super::*;

#[test]
fn a_boot_starts_a_template_and_then_forks_every_slot() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    assert_eq!(bench.asked(), [start(1)]);
    bench.template_ready(1);
    assert_eq!(bench.asked(), [fork(1, 0, 1), fork(2, 1, 1)]);
    assert_eq!(bench.state(1), Some(WorkerState::Asked));
    bench.forked(1);
    assert_eq!(bench.state(1), Some(WorkerState::Starting));
}

#[test]
fn serving_is_said_once_when_all_slots_have_become_ready() {
    let mut bench = Bench::new(2);
    let serving = |bench: &mut Bench| {
        let said = |action: &&Action| matches!(action, Action::Notice(Notice::Serving { .. }));
        bench.take().iter().filter(said).count()
    };
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    assert_eq!(serving(&mut bench), 0);
    bench.ready(2);
    assert_eq!(serving(&mut bench), 1);
    assert_eq!(bench.supervisor.phase(), Phase::Serving);
    bench.exits(1, Exit::Signal(9));
    bench.wait(SECOND);
    bench.ready(3);
    assert_eq!(serving(&mut bench), 0);
}

#[test]
fn a_worker_that_refuses_at_first_boot_ends_the_server_with_its_words_once_all_are_gone() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.ready(1);
    bench.forked(2);
    bench.take();
    bench.refuses(2, "the database said no");
    assert_eq!(
        bench.asked(),
        [Action::CloseListeners, kill(2, KillReason::BootFailed), drain(1)],
        "who was ready may have a request in hand"
    );
    bench.exits(1, Exit::Clean);
    assert_eq!(bench.asked(), []);
    bench.exits(2, Exit::Code(1));
    assert_eq!(
        bench.asked(),
        [close(1), boot_failed("the start of the worker of slot 1 failed: the database said no")]
    );
}

#[test]
fn a_worker_that_dies_before_it_is_ready_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.forked(1);
    bench.take();
    bench.exits(1, Exit::Signal(11));
    assert_eq!(
        bench.asked(),
        [
            Action::CloseListeners,
            close(1),
            boot_failed("the worker of slot 0 was killed by signal 11 before it was ready")
        ]
    );
}

#[test]
fn a_worker_that_is_never_ready_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.template_ready(1);
    bench.forked(1);
    bench.take();
    bench.wait(30 * SECOND);
    assert_eq!(bench.asked(), [kill(1, KillReason::NotReady), Action::CloseListeners]);
    bench.exits(1, Exit::Signal(9));
    let words = "the worker of slot 0 was not ready within 30s";
    assert_eq!(bench.asked(), [close(1), boot_failed(words)]);
}

#[test]
fn a_preload_that_fails_at_first_boot_ends_the_server_with_its_words() {
    let mut bench = Bench::new(2);
    bench.tell(Event::Boot);
    bench.take();
    bench.template_fails(1, "no such index");
    assert_eq!(bench.asked(), [close(1), Action::CloseListeners, boot_failed("no such index")]);
}

#[test]
fn a_preload_that_hangs_at_first_boot_ends_the_server() {
    let mut bench = Bench::new(1);
    bench.tell(Event::Boot);
    bench.take();
    bench.wait(120 * SECOND);
    let words = "the template did not end its preload within 120s";
    assert_eq!(bench.asked(), [close(1), Action::CloseListeners, boot_failed(words)]);
}
