//! A small client of the kernel's nf_tables and conntrack: batches of messages over one netlink socket.
//!
//! Only what is on a capsule's way is here: a slot's own table, set elements, deletions. What is loaded once is text, for
//! the program `nft` (see `ruleset`).

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType},
};
use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NF_TABLES: u16 = 10;
const CONNTRACK_DELETE: u16 = (1 << 8) | 2;

const IPV4: u8 = libc::AF_INET as u8;

/// What a batch does, `NFT_MSG_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewElement = 12,
    DeleteElement = 14,
}

/// An attribute.
pub(super) fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    attr(kind, &value.to_be_bytes())
}

pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    attr(kind, &[value.as_bytes(), b"\0"].concat())
}

pub(super) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attr(kind | NLA_F_NESTED, &parts.concat())
}

/// Messages that take effect together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<(Act, u16, Vec<u8>)>,
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    /// `NF_INET_…`.
    pub(super) number: u32,
    pub(super) priority: i32,
}

impl Batch {
    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn new_table(&mut self, table: &str) {
        self.messages.push((Act::NewTable, NLM_F_CREATE, text(1, table)));
    }

    /// Deletes a table with all it has.
    pub fn delete_table(&mut self, table: &str) {
        self.messages.push((Act::DeleteTable, 0, text(1, table)));
    }

    pub(super) fn new_chain(&mut self, table: &str, chain: &str, hook: Hook) {
        let place = nested(4, &[number(1, hook.number), number(2, hook.priority as u32)]);
        let attrs = [text(1, table), text(3, chain), place, text(7, hook.kind)].concat();
        self.messages.push((Act::NewChain, NLM_F_CREATE, attrs));
    }

    /// A rule at the end of a chain.
    pub(super) fn new_rule(&mut self, table: &str, chain: &str, expressions: &[Vec<u8>]) {
        let attrs = [text(1, table), text(2, chain), nested(4, expressions)].concat();
        self.messages.push((Act::NewRule, NLM_F_CREATE | NLM_F_APPEND, attrs));
    }

    /// Adds an element to a set; one that is there already is no error.
    pub fn add_element(&mut self, table: &str, set: &str, key: &[u8], end: Option<&[u8]>) {
        self.messages.push((Act::NewElement, NLM_F_CREATE, element(table, set, key, end)));
    }

    /// Deletes an element, which must be there.
    pub fn delete_element(&mut self, table: &str, set: &str, key: &[u8], end: Option<&[u8]>) {
        self.messages.push((Act::DeleteElement, 0, element(table, set, key, end)));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        message(&mut bytes, BATCH_BEGIN, NLM_F_REQUEST, (0, NF_TABLES), 0, &[]);
        for (at, (act, flags, attrs)) in self.messages.iter().enumerate() {
            // Errors always come; one sign of success is enough.
            let ack = if at + 1 == self.messages.len() { NLM_F_ACK } else { 0 };
            let kind = (NF_TABLES << 8) | *act as u16;
            message(&mut bytes, kind, NLM_F_REQUEST | flags | ack, (IPV4, 0), at as u32 + 1, attrs);
        }
        message(&mut bytes, BATCH_END, NLM_F_REQUEST, (0, NF_TABLES), 0, &[]);
        bytes
    }
}

fn element(table: &str, set: &str, key: &[u8], end: Option<&[u8]>) -> Vec<u8> {
    let value = |kind: u16, bytes: &[u8]| nested(kind, &[attr(1, bytes)]);
    let mut parts = vec![value(1, key)];
    parts.extend(end.map(|end| value(10, end)));
    [text(1, table), text(2, set), nested(3, &[nested(1, &parts)])].concat()
}

/// Appends a message: its header, the family and resource of netfilter's own header, its attributes.
fn message(
    into: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    (family, resource): (u8, u16),
    sequence: u32,
    attrs: &[u8],
) {
    into.extend(((HEADER + 4 + attrs.len()) as u32).to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(flags.to_ne_bytes());
    into.extend(sequence.to_ne_bytes());
    into.extend(0_u32.to_ne_bytes());
    into.extend([family, 0]);
    into.extend(resource.to_be_bytes());
    into.extend(attrs);
}

/// A netfilter socket. It stays in the network namespace in which it was opened, whichever thread uses it.
#[derive(Debug)]
pub struct Netfilter {
    // One batch and its answers at a time.
    socket: Mutex<OwnedFd>,
}

impl Netfilter {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Applies a batch: all of it or nothing. Blocks for some ten microseconds.
    pub fn apply(&self, batch: &Batch) -> io::Result<()> {
        if batch.is_empty() { Ok(()) } else { self.exchange(&batch.bytes()) }
    }

    /// Forgets all connections that came from an address.
    pub fn forget_connections(&self, source: Ipv4Addr) -> io::Result<()> {
        /// `CTA_FILTER`, and in it the flag that says: compare the source's address.
        const FILTER: u16 = 25;
        const SOURCE: u32 = 1;
        let tuple = nested(1, &[nested(1, &[attr(1, &source.octets())])]);
        let filter = nested(FILTER, &[attr(1, &SOURCE.to_ne_bytes()), attr(2, &0_u32.to_ne_bytes())]);
        let mut bytes = Vec::new();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        message(&mut bytes, CONNTRACK_DELETE, flags, (IPV4, 0), 1, &[tuple, filter].concat());
        match self.exchange(&bytes) {
            // There were none.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn exchange(&self, bytes: &[u8]) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket::send(socket.as_raw_fd(), bytes, MsgFlags::empty())?;
        // The kernel has done it all when `send` returns; its answers wait.
        let mut answers = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => answers.extend(codes(&buffer[..length])),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match answers.iter().find(|code| **code != 0) {
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None if answers.is_empty() => Err(io::Error::other("netfilter gave no answer")),
            None => Ok(()),
        }
    }
}

/// (pure) The codes of the answers in a datagram: zero for success, else a negative error number.
fn codes(mut datagram: &[u8]) -> Vec<i32> {
    let mut codes = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [a, b, c, d, kind_low, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        if u16::from_ne_bytes([kind_low, kind_high]) == NLMSG_ERROR
            && let Some(code) = datagram[HEADER..].first_chunk::<4>()
        {
            codes.push(i32::from_ne_bytes(*code));
        }
        match datagram.get(length.next_multiple_of(4)..) {
            Some(rest) if length >= HEADER => datagram = rest,
            _ => break,
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(attr(1, b"ab"), [6, 0, 1, 0, b'a', b'b', 0, 0]);
        assert_eq!(text(3, "abc"), [8, 0, 3, 0, b'a', b'b', b'c', 0]);
        assert_eq!(nested(2, &[number(1, 7)]), [12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn answers_are_read_to_the_end_of_a_datagram() {
        let mut datagram = Vec::new();
        message(&mut datagram, NLMSG_ERROR, 0, (0, 0), 1, &[]);
        message(&mut datagram, 99, 0, (0, 0), 1, &[1, 2, 3, 4]);
        message(&mut datagram, NLMSG_ERROR, 0, (0xfe, 0), 1, &[]);
        assert_eq!(codes(&datagram).len(), 2);
        assert_eq!(codes(&datagram[..10]), Vec::<i32>::new());
        assert_eq!(codes(&[0; 40]).len(), 0);
    }

    #[test]
    fn a_batch_takes_effect_as_a_whole_or_not_at_all() {
        // In a namespace of its own, on a thread that ends.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let netfilter = Netfilter::open().unwrap();
            let mut batch = Batch::default();
            batch.new_table("one");
            netfilter.apply(&batch).unwrap();
            let mut bad = Batch::default();
            bad.new_table("two");
            bad.add_element("two", "no-such-set", &[1, 2, 3, 4], None);
            let error = netfilter.apply(&bad).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
            let mut delete = Batch::default();
            delete.delete_table("two");
            assert_eq!(netfilter.apply(&delete).unwrap_err().raw_os_error(), Some(libc::ENOENT));
            let mut delete = Batch::default();
            delete.delete_table("one");
            netfilter.apply(&delete).unwrap();
            netfilter.forget_connections(Ipv4Addr::new(10, 0, 0, 1)).unwrap();
        })
        .join()
        .unwrap();
    }
}
