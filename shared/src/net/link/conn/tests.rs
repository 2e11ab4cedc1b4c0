use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::task::Wake;
use std::thread;

use super::*;
use crate::id::{BootId, ClusterId, NodeBoot, NodeId};
use crate::member::Role;
use crate::wire::link::Hello;

/// More than any test sends.
const PLENTY: u32 = 4 << 20;

#[derive(Default)]
struct Woken(AtomicBool);

impl Woken {
    fn is(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

fn conn() -> Arc<Conn> {
    let who = NodeBoot { node: NodeId::of_name("peer"), boot: BootId(1) };
    let peer = Hello {
        oldest: 1,
        newest: 1,
        cluster: ClusterId::of_name("test"),
        who,
        role: Role::Node,
        kind: ConnectionKind::Main,
        nonce: [0; 32],
        stream_window: PLENTY,
        connection_window: PLENTY,
        streams_max: 1,
        key_tags: Vec::new(),
    };
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let info = PeerInfo { node: who.node, boot: who.boot, role: Role::Node, protocol: 1, addr };
    let windows = (SendWindow::new(PLENTY), RecvWindow::new(PLENTY));
    Conn::new(info, true, &Agreed { peer, version: 1 }, windows, LinkLimits::default())
}

/// A stream whose request was accepted.
fn accepted_stream(conn: &Conn) -> (u32, StreamId) {
    let (key, id, _) = conn.open(&Bytes::from_static(b"head"), false).unwrap();
    let mut state = conn.lock();
    state.slots.at(key).unwrap().state.receive(FrameType::Accepted, 0, 0).unwrap();
    (key, id)
}

/// The writer counts what the socket takes without the lock, while a sender looks how much is
/// queued: who is not let through is woken in the end.
#[test]
fn a_queue_that_empties_while_it_is_looked_at_wakes_who_found_it_full() {
    const ROUNDS: usize = 300;
    let queue = LinkLimits::default().queue_data;
    let body = vec![1; queue];
    for _ in 0..ROUNDS {
        let conn = conn();
        let (key, id) = accepted_stream(&conn);
        // In the hands of the writer.
        let half = &mut &body[..queue / 2];
        assert_eq!(conn.send_body(key, id, half, false, Waker::noop()), Ok(true));
        let mut taken = Vec::new();
        conn.take_output(&mut taken);

        let (woken, sent) = (Arc::new(Woken::default()), AtomicBool::new(false));
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                // Best while the sender holds the lock.
                while conn.state.try_lock().is_ok() && !sent.load(Relaxed) {
                    std::hint::spin_loop();
                }
                conn.wrote(taken.len());
                conn.flushed(1);
            });
            let waker = Waker::from(Arc::clone(&woken));
            let done = conn.send_body(key, id, &mut &body[..], true, &waker).unwrap();
            sent.store(true, Relaxed);
            done
        });
        assert_eq!(woken.is(), !done, "asleep for ever");
    }
}
