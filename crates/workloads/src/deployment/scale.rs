//! Scaling: every set its share.

use std::cmp::Reverse;

use super::work::Work;
use super::{MAX, Strategy};

impl Work<'_> {
    /// Spreads the number of pods wanted over the sets that have pods, in proportion to their sizes.
    pub(super) fn scale(&mut self) {
        let wanted = self.deployment.replicas;
        if let Some(only) = self.active_or_latest() {
            // Also where it has as many already: it notes what is wanted.
            return self.scale_set(only, wanted);
        }
        if self.is_saturated() {
            for at in self.active_old() {
                self.scale_set(at, 0);
            }
        } else if matches!(self.deployment.strategy, Strategy::Rolling { .. }) {
            self.scale_in_proportion();
        }
    }

    /// The one set with pods; where there is none, the newest. None where there are several.
    fn active_or_latest(&self) -> Option<usize> {
        let active: Vec<usize> = (0..self.sets.len()).filter(|at| self.sets[*at].replicas > 0).collect();
        match active[..] {
            [] => self.new.or_else(|| self.sets.len().checked_sub(1)),
            [only] => Some(only),
            _ => None,
        }
    }

    /// The set of the present template has all pods, and they are available.
    fn is_saturated(&self) -> bool {
        let wanted = self.deployment.replicas;
        self.new.map(|at| &self.sets[at]).is_some_and(|set| {
            let desired = set.annotations.get(super::DESIRED).and_then(|text| text.parse::<i32>().ok());
            set.replicas == wanted && desired == Some(wanted) && set.available == wanted
        })
    }

    fn scale_in_proportion(&mut self) {
        let wanted = self.deployment.replicas;
        let allowed = if wanted > 0 { wanted.saturating_add(self.deployment.surge()) } else { 0 };
        let mut active: Vec<usize> = (0..self.sets.len()).filter(|at| self.sets[*at].replicas > 0).collect();
        let to_add = allowed - self.total();
        // The larger first; of equal ones the newer are to grow, and the older to shrink.
        match to_add {
            1.. => active.sort_by_key(|at| Reverse((self.sets[*at].replicas, *at))),
            _ => active.sort_by_key(|at| (Reverse(self.sets[*at].replicas), *at)),
        }
        let mut sizes: Vec<(usize, i32)> = Vec::new();
        let mut added = 0;
        for at in active {
            let share = if to_add == added { 0 } else { self.share(at, to_add - added, to_add > 0) };
            added += share;
            sizes.push((at, self.sets[at].replicas + share));
        }
        if let Some((_, size)) = sizes.first_mut() {
            *size = (*size + to_add - added).max(0);
        }
        for (at, size) in sizes {
            self.scale_set(at, size);
        }
    }

    /// What a set gets of what is left to be added or taken.
    fn share(&self, at: usize, left: i32, grows: bool) -> i32 {
        let (set, deployment) = (&self.sets[at], self.deployment);
        let fraction = if deployment.replicas == 0 {
            -set.replicas
        } else {
            let most = f64::from(deployment.replicas) + f64::from(deployment.surge());
            let noted = set.annotations.get(MAX).and_then(|text| text.parse::<i32>().ok()).filter(|max| *max > 0);
            match noted.unwrap_or(deployment.status.replicas) {
                before @ 1.. => {
                    let size = (f64::from(set.replicas) * most / f64::from(before)).round();
                    (size.min(f64::from(i32::MAX)) as i32) - set.replicas
                }
                _ => 0,
            }
        };
        if grows { fraction.min(left) } else { fraction.max(left) }
    }
}
