//! Heads of requests and answers on the link, written by hand: they are on every request's way.
//!
//! A decoded head shares the buffer it came in: path and header values are slices of it. Names
//! that [`NAMES`] lists take one byte and no parsing; others are the one thing that allocates.
//! All numbers are big-endian. Any bytes decode to a head or to an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BufMut, Bytes};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request, response};

use crate::id::{BootId, Epoch, NodeId, RequestId, SessionKey, ShardId};
use crate::refusal::Refusal;

mod names;

pub use names::NAMES;

/// Layout of the heads of this version.
const LAYOUT: u8 = 1;

/// Most bytes of an encoded head; the link takes no longer ones.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most headers of one head.
pub const HEADERS_MAX: usize = 256;

mod bit {
    pub(super) const EPOCH: u8 = 1;
    pub(super) const UPGRADE: u8 = 2;
    pub(super) const IPV6: u8 = 4;
    pub(super) const LENGTH: u8 = 8;
}

/// What travels with a request besides its HTTP head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMeta {
    /// The shard of the key.
    pub shard: ShardId,
    /// The epoch under which the sender believes the receiver owns it; none: no claim is known.
    pub epoch: Option<Epoch>,
    /// The session.
    pub key: SessionKey,
    /// The request, across its attempts.
    pub id: RequestId,
    /// 1 for the first one.
    pub attempt: u16,
    /// When the first attempt was made, in Unix milliseconds.
    pub first_sent_ms: u64,
    /// How long the sender still waits for the answer's head, in milliseconds.
    pub deadline_ms: u32,
    /// The client's address.
    pub client: IpAddr,
    /// The client asks for another protocol (WebSocket).
    pub upgrade: bool,
}

/// What travels with an answer besides its HTTP head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    /// The shard that was asked.
    pub shard: ShardId,
    /// The epoch under which the request was executed.
    pub epoch: Epoch,
    /// Bytes of the body, where known.
    pub length: Option<u64>,
    /// How busy the shard is: 0 idle, 255 about to shed.
    pub pressure: u8,
}

/// A head that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadTooLarge {
    /// More than [`HEADERS_MAX`] headers.
    #[error("more than {HEADERS_MAX} headers")]
    Headers,
    /// More than [`HEAD_BYTES_MAX`] bytes.
    #[error("a head of more than {HEAD_BYTES_MAX} bytes")]
    Bytes,
}

/// Bytes that are not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It ends too early.
    #[error("the head is cut short")]
    Short,
    /// A layout that this version does not know.
    #[error("the head has layout {0}")]
    Layout(u8),
    /// A field holds what it cannot hold.
    #[error("the head's {0} is not valid")]
    Invalid(&'static str),
    /// Longer, or with more headers, than allowed.
    #[error("the head is too large")]
    TooLarge,
}

/// Encodes the head of a request.
///
/// # Errors
/// The head is too large.
pub fn encode_request(meta: &RequestMeta, parts: &request::Parts) -> Result<Bytes, HeadTooLarge> {
    let mut out = Vec::with_capacity(128 + headers_size(&parts.headers));
    out.put_u8(LAYOUT);
    let mut bits = 0;
    bits |= if meta.epoch.is_some() { bit::EPOCH } else { 0 };
    bits |= if meta.upgrade { bit::UPGRADE } else { 0 };
    bits |= if meta.client.is_ipv6() { bit::IPV6 } else { 0 };
    out.put_u8(bits);
    out.put_u32(meta.shard.0);
    if let Some(epoch) = meta.epoch {
        put_epoch(&mut out, epoch);
    }
    out.put_u64(meta.id.boot.0);
    out.put_u64(meta.id.counter);
    out.put_u16(meta.attempt);
    out.put_u64(meta.first_sent_ms);
    out.put_u32(meta.deadline_ms);
    match meta.client {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
    put_long(&mut out, meta.key.as_bytes())?;
    put_method(&mut out, &parts.method)?;
    out.put_u8(version_code(parts.version));
    put_uri(&mut out, &parts.uri)?;
    put_headers(&mut out, &parts.headers)?;
    finish(out)
}

/// Decodes the head of a request.
///
/// # Errors
/// The bytes are not one.
pub fn decode_request(head: Bytes) -> Result<(RequestMeta, request::Parts), HeadError> {
    let mut from = Cursor::new(head)?;
    let bits = from.u8()?;
    let shard = ShardId(from.u32()?);
    let epoch = if bits & bit::EPOCH != 0 { Some(from.epoch()?) } else { None };
    let id = RequestId { boot: BootId(from.u64()?), counter: from.u64()? };
    let attempt = from.u16()?;
    let first_sent_ms = from.u64()?;
    let deadline_ms = from.u32()?;
    let client = if bits & bit::IPV6 != 0 {
        IpAddr::V6(Ipv6Addr::from(from.array::<16>()?))
    } else {
        IpAddr::V4(Ipv4Addr::from(from.array::<4>()?))
    };
    let key = from.long()?;
    let key = SessionKey::new(key).map_err(|_| HeadError::Invalid("key"))?;
    let upgrade = bits & bit::UPGRADE != 0;

    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = from.method()?;
    parts.version = from.version()?;
    parts.uri = from.uri()?;
    parts.headers = from.headers(HeaderMap::new())?;
    let meta =
        RequestMeta { shard, epoch, key, id, attempt, first_sent_ms, deadline_ms, client, upgrade };
    Ok((meta, parts))
}

/// Encodes the head of an answer.
///
/// # Errors
/// The head is too large.
pub fn encode_response(
    meta: &ResponseMeta,
    parts: &response::Parts,
) -> Result<Bytes, HeadTooLarge> {
    let mut out = Vec::with_capacity(64 + headers_size(&parts.headers));
    out.put_u8(LAYOUT);
    out.put_u8(if meta.length.is_some() { bit::LENGTH } else { 0 });
    out.put_u32(meta.shard.0);
    put_epoch(&mut out, meta.epoch);
    out.put_u8(meta.pressure);
    if let Some(length) = meta.length {
        out.put_u64(length);
    }
    out.put_u16(parts.status.as_u16());
    out.put_u8(version_code(parts.version));
    put_headers(&mut out, &parts.headers)?;
    finish(out)
}

/// Decodes the head of an answer.
///
/// # Errors
/// The bytes are not one.
pub fn decode_response(head: Bytes) -> Result<(ResponseMeta, response::Parts), HeadError> {
    let head = ResponseHead::decode(head)?;
    let meta = head.meta.clone();
    Ok((meta, head.into_parts(HeaderMap::new())?))
}

/// The head of an answer whose HTTP part is still encoded.
#[derive(Debug)]
pub struct ResponseHead {
    /// What travels besides it.
    pub meta: ResponseMeta,
    rest: Cursor,
}

impl ResponseHead {
    /// Decodes what travels besides the HTTP part.
    ///
    /// # Errors
    /// The bytes are no head. What follows may be broken all the same.
    pub fn decode(head: Bytes) -> Result<Self, HeadError> {
        let mut from = Cursor::new(head)?;
        let bits = from.u8()?;
        let shard = ShardId(from.u32()?);
        let epoch = from.epoch()?;
        let pressure = from.u8()?;
        let length = if bits & bit::LENGTH != 0 { Some(from.u64()?) } else { None };
        Ok(Self { meta: ResponseMeta { shard, epoch, length, pressure }, rest: from })
    }

    /// Decodes the HTTP part. Its headers take the place of those in `headers`: a map that was
    /// in use before has room for them, and nothing is allocated.
    ///
    /// # Errors
    /// The bytes are no head.
    pub fn into_parts(self, headers: HeaderMap) -> Result<response::Parts, HeadError> {
        let mut from = self.rest;
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status =
            StatusCode::from_u16(from.u16()?).map_err(|_| HeadError::Invalid("status"))?;
        parts.version = from.version()?;
        parts.headers = from.headers(headers)?;
        Ok(parts)
    }
}

/// Encodes why a request was not executed.
#[must_use]
pub fn encode_refusal(refusal: &Refusal) -> Bytes {
    let bytes = postcard::to_extend(refusal, vec![LAYOUT]).expect("a vector takes everything");
    Bytes::from(bytes)
}

/// Decodes a refusal.
///
/// # Errors
/// The bytes are not one.
pub fn decode_refusal(bytes: &[u8]) -> Result<Refusal, HeadError> {
    let (layout, body) = bytes.split_first().ok_or(HeadError::Short)?;
    if *layout != LAYOUT {
        return Err(HeadError::Layout(*layout));
    }
    postcard::from_bytes(body).map_err(|_| HeadError::Invalid("refusal"))
}

/// Encodes trailers.
///
/// # Errors
/// They are too large.
pub fn encode_trailers(trailers: &HeaderMap) -> Result<Bytes, HeadTooLarge> {
    let mut out = Vec::with_capacity(16 + headers_size(trailers));
    out.put_u8(LAYOUT);
    put_headers(&mut out, trailers)?;
    finish(out)
}

/// Decodes trailers.
///
/// # Errors
/// The bytes are none.
pub fn decode_trailers(bytes: Bytes) -> Result<HeaderMap, HeadError> {
    Cursor::new(bytes)?.headers(HeaderMap::new())
}

// ---- writing --------------------------------------------------------------------------------

fn headers_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

fn finish(out: Vec<u8>) -> Result<Bytes, HeadTooLarge> {
    if out.len() > HEAD_BYTES_MAX { Err(HeadTooLarge::Bytes) } else { Ok(Bytes::from(out)) }
}

fn put_epoch(out: &mut Vec<u8>, epoch: Epoch) {
    out.put_u64(epoch.counter);
    out.put_u64(epoch.node.0);
}

/// Up to 64 KiB with their length in two bytes.
fn put_long(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), HeadTooLarge> {
    let len = u16::try_from(bytes.len()).map_err(|_| HeadTooLarge::Bytes)?;
    out.put_u16(len);
    out.put_slice(bytes);
    Ok(())
}

/// Methods with a code of their own, from 1 on; 0 is spelled out.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::HEAD,
    Method::PATCH,
    Method::OPTIONS,
    Method::TRACE,
    Method::CONNECT,
];

fn put_method(out: &mut Vec<u8>, method: &Method) -> Result<(), HeadTooLarge> {
    match METHODS.iter().position(|known| known == method) {
        Some(at) => out.put_u8(at as u8 + 1),
        None => {
            out.put_u8(0);
            put_long(out, method.as_str().as_bytes())?;
        }
    }
    Ok(())
}

/// Versions have their decimal digits as codes; a later one travels as HTTP/1.1.
fn version_code(version: Version) -> u8 {
    match version {
        Version::HTTP_09 => 9,
        Version::HTTP_10 => 10,
        Version::HTTP_2 => 20,
        Version::HTTP_3 => 30,
        _ => 11,
    }
}

fn put_uri(out: &mut Vec<u8>, uri: &Uri) -> Result<(), HeadTooLarge> {
    match uri.path_and_query() {
        Some(path) if uri.authority().is_none() => put_long(out, path.as_str().as_bytes()),
        Some(_) | None => put_long(out, uri.to_string().as_bytes()),
    }
}

fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap) -> Result<(), HeadTooLarge> {
    if headers.len() > HEADERS_MAX {
        return Err(HeadTooLarge::Headers);
    }
    out.put_u16(headers.len() as u16);
    for (name, value) in headers {
        match names::code(name) {
            Some(code) => out.put_u8(code),
            None => {
                out.put_u8(0);
                put_long(out, name.as_str().as_bytes())?;
            }
        }
        put_long(out, value.as_bytes())?;
    }
    Ok(())
}

// ---- reading --------------------------------------------------------------------------------

/// The rest of a head.
#[derive(Debug)]
struct Cursor {
    rest: Bytes,
}

impl Cursor {
    fn new(head: Bytes) -> Result<Self, HeadError> {
        if head.len() > HEAD_BYTES_MAX {
            return Err(HeadError::TooLarge);
        }
        let mut cursor = Self { rest: head };
        match cursor.u8()? {
            LAYOUT => Ok(cursor),
            other => Err(HeadError::Layout(other)),
        }
    }

    fn u8(&mut self) -> Result<u8, HeadError> {
        self.rest.try_get_u8().map_err(|_| HeadError::Short)
    }

    fn u16(&mut self) -> Result<u16, HeadError> {
        self.rest.try_get_u16().map_err(|_| HeadError::Short)
    }

    fn u32(&mut self) -> Result<u32, HeadError> {
        self.rest.try_get_u32().map_err(|_| HeadError::Short)
    }

    fn u64(&mut self) -> Result<u64, HeadError> {
        self.rest.try_get_u64().map_err(|_| HeadError::Short)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeadError> {
        let array = *self.rest.first_chunk::<N>().ok_or(HeadError::Short)?;
        self.rest.advance(N);
        Ok(array)
    }

    fn epoch(&mut self) -> Result<Epoch, HeadError> {
        Ok(Epoch { counter: self.u64()?, node: NodeId(self.u64()?) })
    }

    /// Bytes behind their two-byte length; they share the buffer.
    fn long(&mut self) -> Result<Bytes, HeadError> {
        let len = usize::from(self.u16()?);
        if len > self.rest.len() {
            return Err(HeadError::Short);
        }
        Ok(self.rest.split_to(len))
    }

    fn method(&mut self) -> Result<Method, HeadError> {
        let code = usize::from(self.u8()?);
        if code == 0 {
            return Method::from_bytes(&self.long()?).map_err(|_| HeadError::Invalid("method"));
        }
        METHODS.get(code - 1).cloned().ok_or(HeadError::Invalid("method"))
    }

    fn version(&mut self) -> Result<Version, HeadError> {
        match self.u8()? {
            9 => Ok(Version::HTTP_09),
            10 => Ok(Version::HTTP_10),
            11 => Ok(Version::HTTP_11),
            20 => Ok(Version::HTTP_2),
            30 => Ok(Version::HTTP_3),
            _ => Err(HeadError::Invalid("version")),
        }
    }

    fn uri(&mut self) -> Result<Uri, HeadError> {
        Uri::from_maybe_shared(self.long()?).map_err(|_| HeadError::Invalid("target"))
    }

    fn headers(&mut self, mut headers: HeaderMap) -> Result<HeaderMap, HeadError> {
        let n = usize::from(self.u16()?);
        if n > HEADERS_MAX {
            return Err(HeadError::TooLarge);
        }
        headers.clear();
        headers.reserve(n);
        for _ in 0..n {
            let name = self.header_name()?;
            let value = HeaderValue::from_maybe_shared(self.long()?)
                .map_err(|_| HeadError::Invalid("header value"))?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    fn header_name(&mut self) -> Result<HeaderName, HeadError> {
        let code = self.u8()?;
        if code != 0 {
            return names::name(code).ok_or(HeadError::Invalid("header name"));
        }
        HeaderName::from_lowercase(&self.long()?).map_err(|_| HeadError::Invalid("header name"))
    }
}

#[cfg(test)]
mod tests;
