//! What listeners promise, on real sockets.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::*;

fn address(text: &str) -> Address {
    text.parse().expect(text)
}

fn port(listener: &Listener) -> u16 {
    match listener.address() {
        Address::Tcp(at) => at.port(),
        other => panic!("{other} has no port"),
    }
}

/// `socket` at a number that no other test claims, and without CLOEXEC, as a parent passes it.
fn pass_at(number: RawFd, socket: &impl AsFd) -> Address {
    let got = fcntl(socket, FcntlArg::F_DUPFD(number)).expect("dup");
    assert_eq!(got, number, "the number is taken");
    address(&format!("fd:{number}"))
}

fn is_cloexec(fd: &impl AsFd) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFD).expect("F_GETFD");
    FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC)
}

fn is_nonblocking(fd: &impl AsFd) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFL).expect("F_GETFL");
    OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK)
}

#[test]
fn port_0_gives_a_real_address_that_answers() {
    for text in ["127.0.0.1:0", "[::1]:0", "tcp:localhost:0"] {
        let listener = Listener::bind(&address(text)).expect(text);
        assert_ne!(port(&listener), 0);
        TcpStream::connect(listener.address().to_string()).expect("connect");
        assert!(is_cloexec(&listener) && is_nonblocking(&listener));
    }
}

#[test]
fn an_abstract_name_answers_and_cannot_be_bound_twice() {
    let name = format!("hatchery-test-{}", std::process::id());
    let at = address(&format!("unix:@{name}"));
    let listener = Listener::bind(&at).expect("bind");
    assert_eq!(listener.address(), &at);
    assert!(is_cloexec(&listener) && is_nonblocking(&listener));
    let peer = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
    UnixStream::connect_addr(&peer).expect("connect");
    assert!(matches!(Listener::bind(&at), Err(BindError::InUse { .. })));
}

#[test]
fn all_of_ipv4_and_all_of_ipv6_share_a_port_number() {
    let six = Listener::bind(&address("[::]:0")).expect("IPv6");
    Listener::bind(&address(&format!("0.0.0.0:{}", port(&six)))).expect("IPv4 beside it");
}

#[test]
fn another_process_on_the_port_is_told_from_the_same_port_written_twice() {
    let other = TcpListener::bind("127.0.0.1:0").expect("another server");
    let taken = other.local_addr().expect("its address").into();
    let error = Listener::bind_all(&[address("127.0.0.1:0"), taken]).expect_err("in use");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    for part in [&other.local_addr().expect("its address").to_string(), "bind", "os error 98"] {
        assert!(error.to_string().contains(part), "{error}\nshould say: {part}");
    }

    let held = [Listener::bind(&address("127.0.0.1:0")).expect("a port")];
    let port = port(&held[0]);
    for twice in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"), format!("tcp:127.0.0.1:{port}")] {
        let error = bind_beside(&address(&twice), &held).expect_err("twice");
        assert!(matches!(error, BindError::Twice { .. }), "{error}");
    }
}

#[test]
fn all_are_bound_or_none_and_no_path_stays_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("first.sock");
    let first = address(&format!("unix:{}", path.display()));
    let second = address(&format!("unix:{}", directory.path().display()));
    Listener::bind_all(&[first, second]).expect_err("the second is a directory");
    assert!(!path.exists());
}

/// What the next master inherits of these.
fn pass_on(listeners: &[Listener]) -> Vec<Listener> {
    let passed = listeners.iter().map(|listener| listener.pass().expect("a descriptor"));
    passed.map(|(passed, fd)| Listener::inherit(&passed, fd).expect("a listener")).collect()
}

#[test]
fn an_inherited_unix_socket_is_taken_where_its_path_is_in_place_and_else_bound_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let addresses = [address("127.0.0.1:0"), address(&format!("unix:{}", path.display()))];
    let old = Listener::bind_all(&addresses).expect("they are free");
    let mut inherited = pass_on(&old);
    let taken = Listener::bind_all_but(&addresses, &mut inherited).expect("all is there");
    assert!(inherited.is_empty() && taken[1].is_lent);

    let remove = || std::fs::remove_file(&path).expect("it is there");
    let leave_a_dead_socket = || {
        remove();
        drop(UnixListener::bind(&path).expect("bind the socket that dies"));
    };
    for change in [&remove as &dyn Fn(), &leave_a_dead_socket] {
        change();
        let mut inherited = pass_on(&old);
        let new = Listener::bind_all_but(&addresses, &mut inherited).expect("the path is free");
        assert_eq!(new[0].address(), old[0].address());
        assert_eq!(
            inherited.iter().map(Listener::address).collect::<Vec<_>>(),
            [&addresses[1]],
            "what is of no use stays"
        );
        let client = UnixStream::connect(&path).expect("it is found again");
        new[1].socket.accept().expect("by the new one");
        drop(client);
        old[1].remove_path().expect("it is not the old one's");
        assert!(path.exists());
    }
}

#[test]
fn what_has_taken_an_inherited_unix_sockets_path_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let addresses = [address(&format!("unix:{}", path.display()))];
    let old = Listener::bind_all(&addresses).expect("it is free");
    std::fs::remove_file(&path).expect("it is there");
    std::fs::write(&path, "precious").expect("a file");
    let error = Listener::bind_all_but(&addresses, &mut pass_on(&old)).expect_err("a file is in the way");
    assert!(matches!(error, BindError::OtherFile { .. }), "{error}");
    assert_eq!(std::fs::read(&path).expect("it is there"), b"precious");

    std::fs::remove_file(&path).expect("it is there");
    let _other = UnixListener::bind(&path).expect("another server");
    let error = Listener::bind_all_but(&addresses, &mut pass_on(&old)).expect_err("it is another's");
    assert!(matches!(error, BindError::ServerRunning { .. }), "{error}");
    UnixStream::connect(&path).expect("the other server answers");
}

#[test]
fn a_low_port_without_the_right_says_what_to_do() {
    let words = BindError::call(&address("0.0.0.0:80"), "bind")(io::Error::from_raw_os_error(libc::EACCES)).to_string();
    for part in ["0.0.0.0:80", "bind", "Permission denied", "CAP_NET_BIND_SERVICE"] {
        assert!(words.contains(part), "{words}\nshould say: {part}");
    }
}

#[test]
fn an_address_of_another_machine_is_refused_with_what_to_do() {
    let words = Listener::bind(&address("192.0.2.1:0")).expect_err("not ours").to_string();
    assert!(words.contains("192.0.2.1:0") && words.contains("this machine has no"), "{words}");
}

#[test]
fn a_passed_listener_is_adopted_once_closed_on_exec_and_non_blocking() {
    let passed = TcpListener::bind("127.0.0.1:0").expect("the parent's listener");
    let at = pass_at(700, &passed);
    let listener = Listener::bind(&at).expect("adopt");
    assert_eq!(listener.as_fd().as_raw_fd(), 700);
    assert_eq!(listener.address(), &passed.local_addr().expect("its address").into());
    assert!(is_cloexec(&listener) && is_nonblocking(&listener));
    assert!(matches!(Listener::bind(&at), Err(BindError::AlreadyAdopted { .. })));
    listener.remove_path().expect("nothing to remove");
}

#[test]
fn a_passed_unix_listener_keeps_its_path_which_is_not_ours_to_remove() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("passed.sock");
    let passed = UnixListener::bind(&path).expect("the parent's listener");
    let listener = Listener::bind(&pass_at(720, &passed)).expect("adopt");
    assert_eq!(listener.address().to_string(), format!("unix:{}", path.display()));
    listener.remove_path().expect("leave it");
    assert!(path.exists());
}

#[test]
fn what_is_no_listening_stream_socket_is_refused_and_stays_open() {
    let file = std::fs::File::open("/dev/null").expect("a file");
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a datagram socket");
    let (connected, _peer) = UnixStream::pair().expect("a pair");
    for (at, says) in [
        (pass_at(740, &file), "no socket"),
        (pass_at(741, &datagrams), "a socket of another type"),
        (pass_at(742, &connected), "a stream socket that does not listen"),
    ] {
        for _ in 0..2 {
            let error = Listener::bind(&at).expect_err(says);
            assert!(matches!(error, BindError::NotAListener { .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.to_string().contains(&at.to_string()), "{error}");
        }
    }
    let words = Listener::bind(&address("fd:760")).expect_err("closed").to_string();
    for part in ["fd:760", "os error 9", "nothing was passed"] {
        assert!(words.contains(part), "{words}\nshould say: {part}");
    }
}

#[test]
fn a_name_without_an_address_is_told_without_listening() {
    assert!(resolves(&address("tcp:localhost:80")).is_ok());
    assert!(resolves(&address("127.0.0.1:1")).is_ok());
    let words = resolves(&address("tcp:no-such-host.invalid:80")).expect_err("no name");
    assert!(words.to_string().contains("tcp:no-such-host.invalid:80"), "{words}");
}
