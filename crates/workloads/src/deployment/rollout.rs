//! Rolling out a template.

use super::work::Work;
use super::{Status, Strategy};

impl Work<'_> {
    /// A few pods at a time: new ones up first; where that did nothing, old ones down.
    pub(super) fn roll(&mut self) {
        let was = self.new.map(|at| self.sets[at].replicas);
        self.sync_revision(true);
        let Some(new) = self.new else { return };
        if was.is_some() {
            let size = self.sets[new].replicas;
            let wanted = if size > self.deployment.replicas { self.deployment.replicas } else { self.room_for_new() };
            if size != wanted {
                self.scale_set(new, wanted);
                return;
            }
        }
        if self.shrink_old(new) {
            return;
        }
        if self.is_complete(&self.deployment.status) {
            self.clean_up();
        }
    }

    /// All old pods go before the first new one comes.
    pub(super) fn recreate(&mut self) {
        self.sync_revision(false);
        let old = self.active_old();
        if !old.is_empty() {
            old.into_iter().for_each(|at| self.scale_set(at, 0));
            return;
        }
        let runs = |at: &usize| self.sets[*at].present > 0 || self.sets[*at].alive > 0;
        if self.old().iter().any(runs) {
            return;
        }
        self.sync_revision(true);
        let Some(new) = self.new else { return };
        if self.sets[new].replicas != self.deployment.replicas {
            self.scale_set(new, self.deployment.replicas);
        }
        if self.is_complete(&self.deployment.status) {
            self.clean_up();
        }
    }

    /// How many pods the set of the present template may have now.
    pub(super) fn room_for_new(&self) -> i32 {
        let wanted = self.deployment.replicas;
        let has = self.new.map_or(0, |at| self.sets[at].replicas);
        match self.deployment.strategy {
            Strategy::Recreate => wanted,
            Strategy::Rolling { .. } => {
                let room = wanted.saturating_add(self.deployment.surge()) - self.total();
                if room <= 0 { has } else { has + room.min(wanted - has) }
            }
        }
    }

    /// Takes pods from old sets as far as enough stay available; tells whether it took any.
    fn shrink_old(&mut self, new: usize) -> bool {
        let old = self.active_old();
        let least = self.deployment.replicas - self.deployment.unavailable();
        let new_unavailable = self.sets[new].replicas - self.sets[new].available;
        let spare = self.total() - least - new_unavailable;
        if old.is_empty() || spare <= 0 {
            return false;
        }
        // Pods that are not available are no loss.
        let mut taken = 0;
        for &at in &old {
            let (size, available) = (self.sets[at].replicas, self.sets[at].available);
            let count = (size - available).min(spare - taken);
            if count > 0 {
                self.scale_set(at, size - count);
                taken += count;
            }
        }
        let available: i32 = self.sets.iter().map(|set| set.available).sum();
        let mut more = available - least;
        for &at in &old {
            let size = self.sets[at].replicas;
            let count = size.min(more);
            if count > 0 {
                self.scale_set(at, size - count);
                more -= count;
                taken += count;
            }
        }
        taken > 0
    }

    /// Every pod is of the present template and available, and nothing else is left.
    pub(super) fn is_complete(&self, status: &Status) -> bool {
        let wanted = self.deployment.replicas;
        status.updated == wanted
            && status.replicas == wanted
            && status.available == wanted
            && status.observed_generation >= self.deployment.generation
    }
}
