//! The control socket: what a server says of itself there, how reloads end for whoever asks, and who is kept out.

mod clients;
mod reloads;
mod socket;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hatchery::control;
use hatchery::server::{ControlAddress, Status};
use libtest_mimic::Trial;

use crate::support::{Launch, PATIENCE};

pub fn tests() -> Vec<Trial> {
    [reloads::tests(), socket::tests(), clients::tests()].into_iter().flatten().collect()
}

/// A directory with a place for a control socket.
struct Place {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        Place { directory, path }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn control(&self) -> Control {
        Control(self.path.display().to_string())
    }

    /// A server that is controlled here.
    fn launch(&self, launch: Launch) -> Launch {
        launch.arg("--control").arg(&self.path)
    }
}

/// A control socket, as it is written.
struct Control(String);

impl Control {
    fn address(&self) -> ControlAddress {
        self.0.parse().expect("an address")
    }

    #[track_caller]
    fn status(&self) -> Status {
        control::status(&self.address(), Some(PATIENCE)).expect("a status")
    }

    /// `hatchery` with this command and arguments, at this socket.
    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery"));
        command.args([name, "--control", &self.0]).args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `hatchery reload`, begun.
    fn reload(&self, args: &[&str]) -> Asked {
        Asked(Some(self.command("reload", args).spawn().expect("the command runs")))
    }

    /// A client of its own making.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).expect("a server answers");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    }

    /// What such a client hears, to the end, after it has said this.
    fn heard_after(&self, words: &[u8]) -> String {
        let mut stream = self.connect();
        // Who is refused may be hung up on before he has said all.
        let _ = stream.write_all(words);
        all_of(&mut stream)
    }
}

/// Reads to the end, however the other side hangs up.
fn all_of(stream: &mut UnixStream) -> String {
    let mut heard = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => heard.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&heard)),
        }
    }
    String::from_utf8(heard).expect("text")
}

const STATUS: &[u8] = b"{\"version\":1,\"request\":\"status\"}\n";
const RELOAD: &[u8] = b"{\"version\":1,\"request\":\"reload\"}\n";

/// A command that waits for its answer; it is ended with this value.
struct Asked(Option<Child>);

impl Asked {
    fn pid(&self) -> i32 {
        self.0.as_ref().expect("it is not waited for yet").id() as i32
    }

    /// Its end, with the exit code and what it has said.
    #[track_caller]
    fn end(mut self) -> End {
        End::of(self.0.take().expect("it is waited for once").wait_with_output().expect("its end"))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Debug)]
struct End {
    code: Option<i32>,
    out: String,
    err: String,
}

impl End {
    fn of(output: Output) -> End {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        End { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn expect(&self, code: i32, words: &str) {
        assert!(self.code == Some(code) && (self.out.contains(words) || self.err.contains(words)), "{self:?}");
    }
}

/// The longest time in which a client that does nothing right is hung up on, with room for a busy machine.
const SOON: Duration = PATIENCE;
