//! A strict second look at how a client frames its requests.
//!
//! The HTTP library is lenient where the old RFCs asked it to be: it takes a bare LF as the end
//! of a line, lets `Transfer-Encoding` silently override `Content-Length`, and cuts `#…` off a
//! target. Each of these is harmless alone and a smuggled request behind a proxy that reads it
//! otherwise. [`Framing`] watches the same bytes go by, finds where heads and bodies end, and
//! reports the first deviation together with the number of the request it belongs to. It never
//! changes a byte; the proxy answers that request with an error and closes the connection.
//!
//! Invariant: until the first violation it agrees with the HTTP library on every boundary.

/// Most bytes of a request's head, all lines together. Browsers and proxies commonly stop at
/// 8 to 16 KiB; cookies make up the rest.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Most bytes of one chunk-size line, extensions included, and of all trailers together.
const CHUNK_LINE_BYTES_MAX: usize = 4 * 1024;

/// What is wrong with the framing of a request (RFC 9112).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A line that ends with LF alone (§2.2).
    BareLf,
    /// A CR inside a line (§2.2).
    BareCr,
    /// A header continued on the next line (§5.2).
    ObsFold,
    /// `#` in the request target (§3.2).
    Fragment,
    /// A `Content-Length` that is not a plain decimal number, or one given twice (§6.2).
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding` (§6.1).
    LengthAndEncoding,
    /// A `Transfer-Encoding` other than `chunked`, or given twice, or in an HTTP/1.0 request
    /// (§6.1).
    TransferEncoding,
    /// A malformed chunk (§7.1).
    Chunk,
    /// More header bytes than [`HEAD_BYTES_MAX`].
    HeadTooLarge,
}

impl Violation {
    /// One sentence for the client.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::BareLf => "a line of the request ends with LF alone, it must end with CR LF",
            Self::BareCr => "a line of the request has a CR inside",
            Self::ObsFold => "a header is continued on a second line",
            Self::Fragment => "the request target has a `#`",
            Self::ContentLength => "Content-Length must be one plain decimal number",
            Self::LengthAndEncoding => "the request has Content-Length and Transfer-Encoding",
            Self::TransferEncoding => "Transfer-Encoding must be exactly `chunked`, in HTTP/1.1",
            Self::Chunk => "a chunk of the body is malformed",
            Self::HeadTooLarge => "the request's head is larger than 32 KiB",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before or in a request's head.
    Head,
    /// In a body of known length, with this much to come.
    Body(u64),
    /// At a line with a chunk's size.
    ChunkSize,
    /// In a chunk, with this much to come.
    ChunkData(u64),
    /// At the line end that follows a chunk's data.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// After a violation: nothing that follows can be trusted.
    Broken,
}

/// What the head says so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    bytes: usize,
    begun: bool,
    http10: bool,
    length: Option<u64>,
    chunked: bool,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Framing {
    state: State,
    head: Head,
    heads: u64,
    /// The begin of a line whose end has not arrived.
    partial: Vec<u8>,
    violation: Option<(u64, Violation)>,
}

impl Default for Framing {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing {
    /// At the begin of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Head,
            head: Head::default(),
            heads: 0,
            partial: Vec::new(),
            violation: None,
        }
    }

    /// The first violation, and which request of the connection (from 1) it makes unusable.
    #[must_use]
    pub fn violation(&self) -> Option<(u64, Violation)> {
        self.violation
    }

    /// Whether some of a request's head has arrived, and not all of it.
    #[must_use]
    pub fn is_inside_head(&self) -> bool {
        self.state == State::Head && (self.head.begun || !self.partial.is_empty())
    }

    /// Takes note of the next bytes that the client sent.
    pub fn feed(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            let step = match self.state {
                State::Broken => return,
                State::Body(left) => {
                    let left = skip(&mut input, left);
                    self.state = if left == 0 { State::Head } else { State::Body(left) };
                    Ok(())
                }
                State::ChunkData(left) => {
                    let left = skip(&mut input, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    Ok(())
                }
                State::Head | State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    self.take_line(&mut input)
                }
            };
            if let Err(violation) = step {
                self.break_off(violation);
            }
        }
    }

    fn break_off(&mut self, violation: Violation) {
        let inside_head = self.state == State::Head;
        self.violation = Some((self.heads + u64::from(inside_head), violation));
        self.state = State::Broken;
        self.partial = Vec::new();
    }

    fn take_line(&mut self, input: &mut &[u8]) -> Result<(), Violation> {
        let Some(end) = find_lf(input) else {
            self.count(input.len())?;
            self.partial.extend_from_slice(input);
            *input = &[];
            return Ok(());
        };
        let (line, rest) = input.split_at(end + 1);
        *input = rest;
        self.count(line.len())?;
        if self.partial.is_empty() {
            return self.line(line);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(line);
        self.line(&whole)
    }

    /// Keeps what a head, a chunk's size or the trailers may take within bounds.
    fn count(&mut self, bytes: usize) -> Result<(), Violation> {
        self.head.bytes += bytes;
        match self.state {
            State::Head if HEAD_BYTES_MAX < self.head.bytes => Err(Violation::HeadTooLarge),
            State::Head => Ok(()),
            _ if CHUNK_LINE_BYTES_MAX < self.head.bytes => Err(Violation::Chunk),
            _ => Ok(()),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let line = line.strip_suffix(b"\r\n").ok_or(Violation::BareLf)?;
        match self.state {
            State::Head if !self.head.begun => self.request_line(line),
            State::Head if line.is_empty() => self.end_of_head(),
            State::Head => self.header(line),
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if !line.is_empty() => Err(Violation::Chunk),
            State::ChunkEnd => {
                self.expect_line(State::ChunkSize);
                Ok(())
            }
            State::Trailers => {
                if line.is_empty() {
                    self.expect_line(State::Head);
                }
                Ok(())
            }
            State::Body(_) | State::ChunkData(_) | State::Broken => Ok(()),
        }
    }

    /// `=> (Head | ChunkSize | Trailers)`, with a count of its own.
    fn expect_line(&mut self, state: State) {
        self.head = Head::default();
        self.state = state;
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        // Empty lines before a request are left over from old clients' POSTs (§2.2).
        if line.is_empty() {
            return Ok(());
        }
        self.head.begun = true;
        self.head.http10 = line.ends_with(b" HTTP/1.0");
        let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        if target.contains(&b'#') { Err(Violation::Fragment) } else { Ok(()) }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Violation> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Violation::ObsFold);
        }
        // Both names are told from most others by their lengths; 14 and 17 with the colon after.
        match (line.get(14), line.get(17)) {
            (Some(b':'), _) if line[..14].eq_ignore_ascii_case(b"content-length") => {
                self.content_length(line[15..].trim_ascii())
            }
            (_, Some(b':')) if line[..17].eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encoding(line[18..].trim_ascii())
            }
            _ if line.contains(&b'\r') => Err(Violation::BareCr),
            _ => Ok(()),
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Violation> {
        if self.head.chunked {
            return Err(Violation::LengthAndEncoding);
        }
        let plain = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        if !plain || self.head.length.is_some() {
            return Err(Violation::ContentLength);
        }
        let number = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        self.head.length = Some(number);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Violation> {
        if self.head.length.is_some() {
            return Err(Violation::LengthAndEncoding);
        }
        if self.head.chunked || self.head.http10 {
            return Err(Violation::TransferEncoding);
        }
        self.head.chunked = true;
        let is_chunked = value.eq_ignore_ascii_case(b"chunked");
        if is_chunked { Ok(()) } else { Err(Violation::TransferEncoding) }
    }

    /// `Head => (Head | Body | ChunkSize)`: the head is complete and the library sees it now.
    fn end_of_head(&mut self) -> Result<(), Violation> {
        self.heads += 1;
        let next = match self.head {
            Head { chunked: true, .. } => State::ChunkSize,
            Head { length: Some(length), .. } if 0 < length => State::Body(length),
            Head { .. } => State::Head,
        };
        self.expect_line(next);
        Ok(())
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Violation> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        if !(1..=15).contains(&digits) || !is_extension(extension) {
            return Err(Violation::Chunk);
        }
        let text = std::str::from_utf8(size).map_err(|_| Violation::Chunk)?;
        let size = u64::from_str_radix(text, 16).map_err(|_| Violation::Chunk)?;
        self.expect_line(if size == 0 { State::Trailers } else { State::ChunkData(size) });
        Ok(())
    }
}

/// Nothing, or `;name…` in printable characters.
fn is_extension(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b';', name, rest @ ..] => {
            name.is_ascii_alphanumeric()
                && rest.iter().all(|&byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
        }
        _ => false,
    }
}

/// Drops up to `left` bytes from the front; what remains of `left`.
fn skip(input: &mut &[u8], left: u64) -> u64 {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    *input = &input[n..];
    left - n as u64
}

/// Position of the first LF: eight bytes at a time, since every byte of every head passes here.
fn find_lf(input: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xFF;
    const HIGHS: u64 = ONES << 7;
    let (words, _) = input.as_chunks::<8>();
    let word_idx = words.iter().position(|word| {
        // A byte of `x` is zero where the input has an LF (Hacker's Delight §6-1).
        let x = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        x.wrapping_sub(ONES) & !x & HIGHS != 0
    });
    let from = word_idx.unwrap_or(words.len()) * 8;
    input[from..].iter().position(|&byte| byte == b'\n').map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed(input: &[u8]) -> Framing {
        let mut framing = Framing::new();
        framing.feed(input);
        framing
    }

    fn check(input: &str, want: Option<(u64, Violation)>) {
        assert_eq!(fed(input.as_bytes()).violation(), want, "{input:?}");
        let mut bytewise = Framing::new();
        input.bytes().for_each(|byte| bytewise.feed(&[byte]));
        assert_eq!(bytewise.violation(), want, "byte by byte: {input:?}");
    }

    #[test]
    fn well_framed_requests_pass() {
        for input in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab\ncdGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nab\ncd\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nt: v\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Lengthy: x\r\nX-Transfer-Encoding: y\r\n\r\n",
        ] {
            check(input, None);
            assert!(!fed(input.as_bytes()).is_inside_head(), "{input:?}");
        }
    }

    #[test]
    fn each_violation_is_found() {
        use Violation as V;
        for (input, want) in [
            ("GET / HTTP/1.1\n", V::BareLf),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", V::BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", V::BareLf),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n", V::BareCr),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n", V::ObsFold),
            ("GET /a#b HTTP/1.1\r\n", V::Fragment),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 0x5\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 5 5\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: \r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 12345678901234567890\r\n", V::ContentLength),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 6\r\n", V::ContentLength),
            (
                "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                V::LengthAndEncoding,
            ),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\nCONTENT-LENGTH: 5\r\n",
                V::LengthAndEncoding,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: ,chunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: deflate, chunked\r\n", V::TransferEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", V::TransferEncoding),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                V::TransferEncoding,
            ),
        ] {
            check(input, Some((1, want)));
        }
    }

    #[test]
    fn malformed_chunks_are_found() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for chunk in [
            "0x1\r\n",
            "1_0\r\n",
            "+1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1;\r\n",
            "\r\n",
            ";a\r\n",
            "fffffffffffffffff\r\n",
            "1\r\nab\r\n",
            "1\r\nab",
            "1\r\na\rb\r\n",
        ] {
            let framing = fed(format!("{head}{chunk}\r\n").as_bytes());
            assert_eq!(framing.violation(), Some((1, Violation::Chunk)), "{chunk:?}");
        }
        check(&format!("{head}1\n"), Some((1, Violation::BareLf)));
        check(&format!("{head}1\r\na\n"), Some((1, Violation::BareLf)));
    }

    #[test]
    fn a_violation_names_the_request_it_belongs_to() {
        let good = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        check(&format!("{good}{good}GET / HTTP/1.1\n\n"), Some((3, Violation::BareLf)));
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n";
        check(&format!("{good}{chunked}"), Some((2, Violation::Chunk)));
    }

    #[test]
    fn a_head_without_end_is_cut_off() {
        let mut framing = Framing::new();
        framing.feed(b"GET / HTTP/1.1\r\nx: ");
        assert!(framing.is_inside_head());
        for _ in 0..HEAD_BYTES_MAX / 1024 {
            framing.feed(&[b'a'; 1024]);
        }
        assert_eq!(framing.violation(), Some((1, Violation::HeadTooLarge)));
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_same_result(
            input in "(GET |POST |/|#| HTTP/1.[01]|\r\n|\n|\r|Content-Length: |Transfer-Encoding: |chunked|[0-9]|a|;| ){0,60}",
            cut in 0usize..200,
        ) {
            let input = input.as_bytes();
            let cut = cut.min(input.len());
            let mut framing = Framing::new();
            framing.feed(&input[..cut]);
            framing.feed(&input[cut..]);
            prop_assert_eq!(framing.violation(), fed(input).violation());
        }

        #[test]
        fn the_first_line_feed_is_found(input in proptest::collection::vec(8u8..12, 0..40)) {
            prop_assert_eq!(find_lf(&input), input.iter().position(|&byte| byte == b'\n'));
        }
    }
}
