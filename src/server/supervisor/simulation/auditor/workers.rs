//! What may be asked for, and told, of a single worker.

use super::*;

impl Auditor {
    /// A worker is worn out by what it has reached: at least four fifths of the limit.
    pub(super) fn check_worn(&mut self, id: WorkerId, by: WornBy) {
        let limits = self.policy.limits;
        let most = |limit: Option<u64>| limit.expect("there is such a limit") / 5 * 4;
        let worker = self.workers.get_mut(&id).filter(|worker| worker.is_seated()).expect("it serves");
        let age = self.now - worker.ready.expect("it is ready");
        match by {
            WornBy::Requests(requests) => assert!(requests >= most(limits.requests)),
            WornBy::Memory(bytes) => assert!(bytes >= most(limits.memory)),
            WornBy::Age(told) => assert!(told == age && age >= limits.age.expect("there is such a limit") / 5 * 4),
        }
        assert!(!worker.worn, "said twice");
        assert!(!self.standing.phase.is_leaving(), "followed on the way out");
        assert_eq!(self.consequences.health.health, Health::Sound, "everybody is needed");
        worker.worn = true;
    }

    pub(super) fn check_fork(&mut self, id: WorkerId, slot: Slot, generation: Generation, supervisor: &Supervisor) {
        assert!(id.0 > self.last_id, "an id used again");
        self.last_id = id.0;
        assert!(slot.0 < supervisor.target());
        assert!(!supervisor.phase().is_ending(), "forked on the way out");
        assert!(!is_paused(supervisor.phase()));
        assert!(supervisor.phase() != Phase::Gated || self.queued, "forked for nobody");
        let worker = Worker {
            slot,
            generation,
            asked_at: self.now,
            forked: false,
            ready: None,
            served: false,
            worn: false,
            end_by: None,
            leaving: None,
            killed: None,
            gone: false,
        };
        self.workers.insert(id, worker);
        self.consequences.check_fork(slot, generation);
        let forks = self.forks.entry((slot, generation)).or_default();
        forks.push_back(self.now);
        while forks.front().is_some_and(|&at| at + SECOND < self.now) {
            forks.pop_front();
        }
        assert!(forks.len() <= 12, "slot {slot} spins");
    }

    pub(super) fn check_drain(&mut self, id: WorkerId, supervisor: &Supervisor) {
        let worker = self.workers.get(&id).expect("drained a stranger");
        assert!(worker.is_seated(), "drained twice");
        let ending = supervisor.phase().is_ending();
        let paused = is_paused(supervisor.phase());
        let fewer = worker.slot.0 >= supervisor.target();
        let replaced = self.workers.iter().any(|(other_id, other)| {
            other.slot == worker.slot
                && other.ready.is_some()
                && other.is_seated()
                && (other.generation != worker.generation || (worker.worn && *other_id > id))
                && Some(other.generation) == self.wanted(supervisor)
        });
        let rolled = matches!(self.event, Event::TemplateReady { .. });
        let called_off = worker.ready.is_none() && (self.reload_failed || rolled);
        if let Event::Sampled(load) = &self.event
            && fewer
        {
            let busy = load.workers.iter().any(|sample| sample.id == id && sample.busy);
            assert!(!busy, "{id:?} is sent away in the middle of a request");
            let idle_for = self.idle.get(&id).and_then(|(_, since)| Some(self.now - (*since)?));
            let least = match self.policy.scaling {
                Scaling::OnDemand { idle_timeout, .. } => idle_timeout,
                _ => Duration::ZERO,
            };
            assert!(idle_for.is_some_and(|time| time >= least), "{id:?} is sent away, idle for {idle_for:?}");
        }
        assert!(ending || paused || fewer || replaced || called_off, "{id:?} was drained for nothing");
        let graceful = self.policy.graceful_timeout;
        let limit = match self.gate_shut {
            _ if self.quits > 0 => self.policy.quick_timeout,
            // At a stop the time counts from the gate.
            Some(at) if ending => (at + graceful).saturating_sub(self.now).max(self.policy.quick_timeout),
            _ => graceful,
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.leaving = Some((self.now, limit));
        }
    }

    pub(super) fn check_kill(&mut self, id: WorkerId, why: KillReason) {
        let now = self.now;
        let worker = self.workers.get_mut(&id).expect("killed a stranger");
        assert!(worker.killed.is_none(), "killed twice");
        let is_due = worker.deadline(&self.policy).is_some_and(|deadline| now >= deadline);
        assert!(!worker.gone, "killed after its end");
        if why == KillReason::NotReady {
            self.consequences.not_ready(worker);
        }
        worker.killed = Some(now);
        let just = match why {
            KillReason::NotReady => {
                let told = matches!(self.event, Event::WorkerFailed { .. });
                worker.ready.is_none() && worker.leaving.is_none() && (told || is_due)
            }
            KillReason::NotDrained => worker.leaving.is_some() && worker.end_by.is_none() && is_due,
            KillReason::Stuck => {
                matches!(self.event, Event::WorkerStuck { .. }) && (worker.ready.is_some() || worker.leaving.is_some())
            }
            KillReason::HungUp => {
                worker.end_by.is_some() && (worker.ready.is_some() || worker.leaving.is_some()) && is_due
            }
            KillReason::TemplateLost => !worker.forked,
            KillReason::BootFailed => !self.served,
            KillReason::AtOnce => self.quits > 1,
        };
        assert!(just, "{id:?} was killed for nothing ({why:?})");
    }

    /// A worker that has answered since the last look was not idle; on demand, one with connections is not either.
    pub(super) fn note_idleness(&mut self, load: &Load) {
        let on_demand = matches!(self.policy.scaling, Scaling::OnDemand { .. });
        for sample in load.workers.iter().filter(|sample| self.workers.contains_key(&sample.id)) {
            let (requests, since) = self.idle.entry(sample.id).or_default();
            let busy = sample.busy || (on_demand && sample.parked) || sample.requests != *requests;
            *requests = sample.requests;
            *since = if busy { None } else { since.or(Some(self.now)) };
        }
    }
}
