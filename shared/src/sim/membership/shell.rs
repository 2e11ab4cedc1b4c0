//! What a shell does for its machine, on the simulated network.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::{Change, Event, MembershipSim, addr_of, host_of};
use crate::id::{BootId, NodeBoot};
use crate::sim::kernel::{Connect, Host};
use crate::swim::{SwimAction, SwimEvent, SwimState};

/// How long a call waits for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

impl MembershipSim {
    pub(super) fn happen(&mut self, host: Host, event: Event) {
        let now = self.sim.now();
        let Some(process) = self.processes.get_mut(&host) else { return };
        match event {
            Event::Tick => {
                if process.tick_at.is_some_and(|at| at <= now) {
                    process.tick_at = None;
                    self.feed(host, SwimEvent::Tick);
                }
            }
            Event::Swim(event) => self.feed(host, event),
            Event::Datagram { to, from, source, payload } => {
                if process.swim.me() == to {
                    self.feed(host, SwimEvent::Datagram { from, source, payload });
                }
            }
            Event::Call { call, source, from, state } => {
                self.called(host, call, source, from, state);
            }
            Event::Answer { call, from, state } => {
                if process.calls.remove(&call).is_some() {
                    self.feed(host, SwimEvent::PushPull { from, state });
                }
            }
            Event::CallFailed { call } => {
                if let Some(addr) = process.calls.remove(&call) {
                    self.feed(host, SwimEvent::PushPullFailed { addr });
                }
            }
            Event::NameAsked { source, old } => {
                let boot = process.swim.me().boot;
                self.sim.stream(host, source, Event::NameAnswer { old, boot });
            }
            Event::NameAnswer { old, boot } => self.name_answer(host, old, Some(boot)),
            Event::NameOver { old } => self.name_answer(host, old, None),
        }
    }

    fn called(&mut self, host: Host, call: u64, source: Host, from: NodeBoot, state: SwimState) {
        let asked = state.clone();
        self.feed(host, SwimEvent::PushPull { from, state });
        let Some(process) = self.processes.get(&host) else { return };
        let answer = process.swim.answer(&asked);
        let from = process.swim.me();
        self.count_list(&answer);
        self.sim.stream(host, source, Event::Answer { call, from, state: answer });
    }

    fn name_answer(&mut self, host: Host, old: NodeBoot, boot: Option<BootId>) {
        let Some(process) = self.processes.get_mut(&host) else { return };
        if process.asking != Some(old) {
            return;
        }
        process.asking = None;
        let event = match boot {
            Some(boot) if boot == old.boot => SwimEvent::NameHeldBy { boot },
            Some(_) | None => SwimEvent::NameFree,
        };
        self.feed(host, event);
    }

    fn count_list(&mut self, state: &SwimState) {
        self.traffic.lists += 1;
        self.traffic.list_bytes += state.encode().len() as u64;
    }

    fn feed(&mut self, host: Host, event: SwimEvent) {
        let now = self.sim.now();
        let Some(process) = self.processes.get_mut(&host) else { return };
        let mut actions = Vec::new();
        process.swim.handle(now, event, &mut actions);
        for action in actions {
            self.act(host, action);
        }
        self.set_tick(host);
    }

    pub(super) fn set_tick(&mut self, host: Host) {
        let Some(process) = self.processes.get_mut(&host) else { return };
        let Some(due) = process.swim.deadline() else { return };
        if process.tick_at.is_none_or(|at| due < at) {
            process.tick_at = Some(due);
            self.sim.timer(host, due, Event::Tick);
        }
    }

    fn act(&mut self, host: Host, action: SwimAction) {
        match action {
            SwimAction::Send { to, to_boot, addr, payload } => {
                self.send(host, NodeBoot { node: to, boot: to_boot }, addr, payload);
            }
            SwimAction::ResolveSeeds => {
                let addrs = self.config.seeds.iter().copied().map(addr_of).collect();
                let event = Event::Swim(SwimEvent::SeedAddrs(addrs));
                self.sim.timer(host, self.sim.now(), event);
            }
            SwimAction::PushPull { addr, node: _ } => self.call(host, addr),
            SwimAction::Dial { who, addr } => self.dial(host, who, addr),
            SwimAction::Changed => self.publish(host),
            SwimAction::Synced { .. } => {}
            SwimAction::Died { who, confirmed } => {
                self.note(host, Change::Died { who, confirmed });
            }
            SwimAction::ProbeName { addr, old } => self.ask_name(host, addr, old),
            SwimAction::BootIs(_) => self.judge_all(),
            SwimAction::Fatal(reason) => {
                self.note(host, Change::Fatal(reason));
                self.crash(host);
            }
            SwimAction::Left => {
                self.note(host, Change::Left);
                self.crash(host);
            }
        }
    }

    fn send(&mut self, host: Host, to: NodeBoot, addr: SocketAddr, payload: Bytes) {
        self.traffic.packets += 1;
        self.traffic.packet_bytes += payload.len() as u64;
        let Some(at) = self.known_host(addr) else { return };
        let from = self.process(host).swim.me();
        let source = addr_of(host);
        self.sim.datagram(host, at, Event::Datagram { to, from, source, payload });
    }

    fn known_host(&self, addr: SocketAddr) -> Option<Host> {
        host_of(addr).filter(|host| host.0 < self.config.n_hosts)
    }

    fn call(&mut self, host: Host, addr: SocketAddr) {
        self.n_calls += 1;
        let call = self.n_calls;
        let now = self.sim.now();
        let process = self.processes.get_mut(&host).expect("a process acts");
        process.calls.insert(call, addr);
        let (from, state) = (process.swim.me(), process.swim.state());
        let found = self.known_host(addr).map(|to| (to, self.sim.connect(host, to)));
        match found {
            Some((to, Connect::Open)) => {
                self.count_list(&state);
                self.sim.stream(host, to, Event::Call { call, source: host, from, state });
                self.sim.timer(host, now + CALL_TIMEOUT, Event::CallFailed { call });
            }
            Some((_, Connect::Silent)) | None => {
                self.sim.timer(host, now + CALL_TIMEOUT, Event::CallFailed { call });
            }
            Some((_, Connect::Refused)) => {
                let at = now + self.sim.latency() * 2;
                self.sim.timer(host, at, Event::CallFailed { call });
            }
        }
    }

    pub(super) fn dial(&mut self, host: Host, who: NodeBoot, addr: SocketAddr) {
        let Some(to) = self.known_host(addr) else { return };
        let Some(by) = self.processes.get(&host).map(|process| process.swim.me().node) else {
            return;
        };
        let event = match self.sim.connect(host, to) {
            Connect::Silent => return,
            Connect::Refused => SwimEvent::Refused { node: who, by },
            Connect::Open => {
                let Some(there) = self.processes.get(&to).map(|process| process.swim.me()) else {
                    return;
                };
                if there.node != who.node {
                    return;
                }
                SwimEvent::OtherBootAnswered { node: there.node, boot: there.boot }
            }
        };
        let at = self.sim.now() + self.sim.latency() * 2;
        self.sim.timer(host, at, Event::Swim(event));
    }

    fn ask_name(&mut self, host: Host, addr: SocketAddr, old: NodeBoot) {
        self.processes.get_mut(&host).expect("a process acts").asking = Some(old);
        let at = self.sim.now() + self.config.swim.name_timeout;
        self.sim.timer(host, at, Event::NameOver { old });
        if let Some(to) = self.known_host(addr) {
            self.sim.stream(host, to, Event::NameAsked { source: host, old });
        }
    }
}
