//! Every moment that the machine remembers, for those who explore its states.

use super::*;

impl Ownership {
    /// Shows `visit` every moment that is remembered, and how long after it something may happen
    /// because of it.
    ///
    /// Nothing but the differences between these sums and the first moment, which is now, decides
    /// anything: who moves all of them alike, or rounds what is left of them, has the same machine
    /// with a clock that was set, or with slower timers.
    pub fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        visit(&mut self.now, Duration::ZERO);
        visit(&mut self.started, self.config.join_max);
        self.forming.each_time(visit);
        if let Some(at) = &mut self.founded_at {
            visit(at, FOUNDING_FOR);
        }
        let quiet = match self.frozen_since {
            Some(_) => moves::THAW_AFTER,
            None => self.config.balance_quiet,
        };
        visit(&mut self.digest_since, quiet);
        self.outgoing.values_mut().for_each(|handoff| handoff.each_time(visit));
        for incoming in self.incoming.values_mut() {
            visit(&mut incoming.since, BEGIN_MAX);
            if let Some(at) = &mut incoming.orphan_since {
                visit(at, KEEP_AFTER_DEATH);
            }
        }
        if let Some(query) = &mut self.query {
            visit(&mut query.since, ASK_FOR);
            visit(&mut query.resend_at, Duration::ZERO);
        }
        let grace = self.config.orphan_grace;
        self.deaths.values_mut().for_each(|death| visit(&mut death.since, grace));
        self.suspects.values_mut().for_each(|at| visit(at, grace));
        self.asked_claims.values_mut().for_each(|at| visit(at, CLAIMS_EVERY));
        self.declined.values_mut().for_each(|at| visit(at, Duration::ZERO));
        self.stays.values_mut().for_each(|at| visit(at, Duration::ZERO));
        self.hot.values_mut().for_each(|at| visit(at, Duration::ZERO));
        self.recent_deaths.iter_mut().for_each(|at| visit(at, moves::MASS_WITHIN));
        if let Some(at) = &mut self.frozen_since {
            visit(at, Duration::ZERO);
        }
        self.counters_of.values_mut().for_each(|(at, _)| visit(at, ASK_EVERY));
        if let Some((at, _)) = &mut self.founds_by {
            visit(at, Duration::ZERO);
        }
        self.recovery.each_time(visit);
        visit(&mut self.rechecked, self.config.recheck_every);
        if let Some(at) = &mut self.recheck_at {
            visit(at, Duration::ZERO);
        }
        self.shunned.values_mut().for_each(|at| visit(at, Duration::ZERO));
        self.refused_fills.values_mut().for_each(|at| visit(at, Duration::ZERO));
        self.leaving_sets.iter_mut().for_each(|it| visit(&mut it.ask_at, Duration::ZERO));
        self.copies.values_mut().for_each(|copy| copy.each_time(visit));
        for it in self.takeovers.values_mut() {
            visit(&mut it.query.since, ASK_FOR);
            visit(&mut it.query.resend_at, Duration::ZERO);
        }
        self.majority.each_time(visit);
        if let Some(doubt) = &mut self.doubt {
            doubt.each_time(visit);
        }
    }
}
