//! A client: lines and HTTP over TCP and Unix sockets.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use socket2::SockRef;

use super::PATIENCE;

/// An answer to an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The server will close the connection.
    pub closes: bool,
    pub body: String,
}

impl Answer {
    /// Slot, pid and generation, out of `hello`'s greeting, which must be exactly that.
    #[track_caller]
    pub fn greeting(&self) -> (u64, i32, u64) {
        assert_eq!(self.status, 200, "{self:?}");
        let words: Vec<&str> = self.body.split(' ').collect();
        let ["hello", "from", "slot", slot, "pid", pid, "generation", generation] = words[..] else {
            panic!("no greeting: {self:?}");
        };
        let generation = generation.strip_suffix('\n').expect("a newline at the end");
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("no number: {self:?}"));
        (number(slot), number(pid) as i32, number(generation))
    }

    /// The worker that has answered.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.greeting().1
    }
}

trait Socket: Read + Write + Send + AsFd {}
impl<T: Read + Write + Send + AsFd> Socket for T {}

/// A connection.
pub struct Client {
    socket: BufReader<Box<dyn Socket>>,
    local_address: String,
}

impl Client {
    /// Connects to an address as the server writes it.
    pub fn connect(address: &str) -> io::Result<Client> {
        let unix = |stream: UnixStream| -> io::Result<Box<dyn Socket>> {
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Box::new(stream))
        };
        let local_address = "unix".to_owned();
        let socket = match address.strip_prefix("unix:") {
            Some(path) => match path.strip_prefix('@') {
                Some(name) => unix(UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?)?,
                None => unix(UnixStream::connect(path)?)?,
            },
            None => return Client::over(TcpStream::connect(address)?),
        };
        Ok(Client { socket: BufReader::new(socket), local_address })
    }

    /// This end, as the server sees it.
    pub fn local_address(&self) -> &str {
        &self.local_address
    }

    /// A client over a connection that exists, or is being made.
    pub fn over(stream: TcpStream) -> io::Result<Client> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let local_address = stream.local_addr()?.to_string();
        Ok(Client { socket: BufReader::new(Box::new(stream)), local_address })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.get_mut().write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&self) {
        SockRef::from(&self.socket.get_ref().as_fd()).shutdown(Shutdown::Write).expect("a connected socket");
    }

    /// Leaves by a reset (TCP): closes without waiting for anything.
    pub fn reset(self) {
        let linger = SockRef::from(&self.socket.get_ref().as_fd()).set_linger(Some(Duration::ZERO));
        linger.expect("a TCP socket");
    }

    /// Waits until something comes.
    pub fn first_byte(&mut self) -> io::Result<u8> {
        self.socket.fill_buf()?.first().copied().ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// Asks and leaves the connection open.
    pub fn ask(&mut self, path: &str) -> io::Result<()> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.ask(path)?;
        self.answer()
    }

    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.socket.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    /// One request of a service of lines.
    pub fn exchange(&mut self, line: &str) -> io::Result<String> {
        self.send(format!("{line}\n"))?;
        Ok(self.line()?.trim_end().to_owned())
    }

    /// Reads one whole answer. An answer that breaks off is `InvalidData`, unlike one that never began.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let first = self.line()?;
        self.rest_of_answer(&first).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn rest_of_answer(&mut self, first: &str) -> io::Result<Answer> {
        let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad(first))?;
        let (mut length, mut closes) = (0, first.starts_with("HTTP/1.0"));
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().map_err(|_| bad(&line))?,
                Some(("connection", value)) => closes = value == "close",
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.socket.read_exact(&mut body)?;
        let body = String::from_utf8(body).map_err(|_| bad("a body that is no text"))?;
        Ok(Answer { status, closes, body })
    }

    /// Reads to the end: all that came, however the connection was closed.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.socket.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the connection stays open"),
            _ => bytes,
        }
    }
}
