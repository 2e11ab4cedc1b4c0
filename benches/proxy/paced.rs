//! Requests at a fixed rate, one by one, so that nothing on the way can be done in batches.
//!
//! One thread walks round the connections: at each tick it takes the answer to what it sent on
//! this connection one round ago, and sends the next request. It waits for nobody unless an
//! answer takes longer than a whole round; those are counted as late, and the clock goes on.
//! Nothing but the standard library, so that it can be built alone.
//!
//! ```text
//! paced ADDR RATE SECONDS CONNECTIONS SESSIONS
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![expect(clippy::disallowed_methods, reason = "it has no runtime whose clock could be used")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Larger than any answer's head.
const BUFFER_BYTES: usize = 4096;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [addr, rate, seconds, connections, sessions] = args.as_slice() else {
        return Err(io::Error::other("usage: paced ADDR RATE SECONDS CONNECTIONS SESSIONS"));
    };
    // Sleeps end when they should: the kernel otherwise joins those that are near each other.
    std::fs::write("/proc/self/timerslack_ns", "1")?;
    let (rate, seconds): (f64, f64) = (number(rate)?, number(seconds)?);
    let requests = requests(number(sessions)?);
    let count: usize = number(connections)?;
    let clients = (0..count).map(|_| Client::connect(addr));
    let report = run(clients.collect::<io::Result<_>>()?, &requests, rate, seconds)?;
    println!("{report:?}");
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}

fn requests(sessions: u32) -> Vec<Vec<u8>> {
    let request = |id: u32| {
        format!("GET /sessions/s{id} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-session: s{id}\r\n\r\n")
    };
    (0..sessions).map(|id| request(id).into_bytes()).collect()
}

/// What happened.
#[derive(Debug, Default)]
struct Report {
    requests: u64,
    /// Answers other than 200.
    errors: u64,
    /// Answers that took more than a round of the connections.
    late: u64,
    /// How far behind the clock a request was sent, at worst, in microseconds.
    behind_us: u128,
    seconds: f64,
}

fn run(
    mut clients: Vec<Client>,
    requests: &[Vec<u8>],
    rate: f64,
    seconds: f64,
) -> io::Result<Report> {
    let mut report = Report::default();
    let begun = Instant::now();
    let total = (rate * seconds) as usize;
    for tick in 0..total {
        let due = begun + Duration::from_secs_f64(tick as f64 / rate);
        let now = Instant::now();
        if now < due {
            std::thread::sleep(due - now);
        } else {
            report.behind_us = report.behind_us.max((now - due).as_micros());
        }
        let place = tick % clients.len();
        clients[place].take_answer(&mut report)?;
        clients[place].send(&requests[tick % requests.len()])?;
        report.requests += 1;
    }
    for client in &mut clients {
        client.take_answer(&mut report)?;
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// A connection with at most one request on its way.
struct Client {
    stream: TcpStream,
    waits: bool,
}

impl Client {
    fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, waits: false })
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.waits = true;
        self.stream.write_all(request)
    }

    fn take_answer(&mut self, report: &mut Report) -> io::Result<()> {
        if !std::mem::take(&mut self.waits) {
            return Ok(());
        }
        let mut buffer = [0; BUFFER_BYTES];
        let mut filled = 0;
        let mut late = false;
        loop {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    late = true;
                    self.stream.set_nonblocking(false)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let Some(ok) = whole_answer(&buffer[..filled])? else { continue };
            report.errors += u64::from(!ok);
            report.late += u64::from(late);
            if late {
                self.stream.set_nonblocking(true)?;
            }
            return Ok(());
        }
    }
}

/// Whether `bytes`, if they are a whole answer, are one with status 200.
fn whole_answer(bytes: &[u8]) -> io::Result<Option<bool>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let length = lines.find_map(|line| line.strip_prefix("content-length:"));
    let length = length.ok_or_else(|| io::Error::other("an answer without content-length"))?;
    let whole = head + 4 + number::<usize>(length.trim())?;
    Ok((bytes.len() >= whole).then_some(status.split(' ').nth(1) == Some("200")))
}
