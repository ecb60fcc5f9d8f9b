//! The API server's side: objects in memory, changed by calls and by what happens to pods.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use planner::{
    Act, Answer, Blob, Call, Claim, ClaimMark, Failure, FailureKind, LiveSet, Member, Millis, Observed, Owner, Pod,
    PodPhase, Revision, Set, Trouble, claim_name,
};

/// Uids of one name before they come again. More than any history here holds at once.
const UIDS: u8 = 4;

/// All objects around one set.
///
/// An object's version is a hash of its content: equal content, equal version. So two histories that lead
/// to the same objects lead to the same world, which keeps exhaustive exploration finite.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct World {
    /// The set. Its uid never changes; `deleting` is the end of it.
    pub set: Set,
    /// Pods by name.
    pub pods: BTreeMap<String, SimPod>,
    /// Claims by name.
    pub claims: BTreeMap<String, Claim>,
    /// Revisions by name.
    pub revisions: BTreeMap<String, Revision>,
    /// The time.
    pub now: Millis,
    next_uid: BTreeMap<String, u8>,
}

/// A pod, and what only its surroundings know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimPod {
    /// The pod.
    pub pod: Pod,
    /// The selector takes it.
    pub matches: bool,
    /// The controller asked for its deletion.
    pub deleted_by_controller: bool,
}

impl World {
    /// A world with this set and nothing else.
    pub fn new(set: Set) -> Self {
        Self {
            set,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            revisions: BTreeMap::new(),
            now: 0,
            next_uid: BTreeMap::new(),
        }
    }

    /// The world as somebody has observed it.
    pub fn of(observed: &Observed, now: Millis) -> Self {
        let pods = observed.pods.iter().map(|member| {
            let pod = SimPod { pod: (*member.pod).clone(), matches: member.matches, deleted_by_controller: false };
            (pod.pod.name.clone(), pod)
        });
        let revisions = observed.revisions.iter().map(|revision| (revision.name.clone(), revision.clone()));
        Self {
            set: observed.set.clone(),
            pods: pods.collect(),
            claims: observed.claims.clone(),
            revisions: revisions.collect(),
            now,
            next_uid: BTreeMap::new(),
        }
    }

    /// What a controller would see now.
    pub fn observe(&self) -> Observed {
        let ours = |owner: Option<&Owner>| owner.is_none_or(|o| o.uid == self.set.uid);
        let pods = self.pods.values().filter(|p| ours(p.pod.controller()));
        Observed {
            set: self.set.clone(),
            pods: pods.map(|p| Member { pod: Arc::new(p.pod.clone()), matches: p.matches }).collect(),
            claims: self.claims.clone(),
            revisions: self.revisions.values().filter(|r| ours(r.controller())).cloned().collect(),
        }
    }

    /// Carries out a call.
    pub fn apply(&mut self, call: &Call) -> Answer {
        self.attempt(call).unwrap_or_else(|kind| Answer::Failed(Failure { kind, message: format!("{kind:?}") }))
    }

    fn attempt(&mut self, call: &Call) -> Result<Answer, FailureKind> {
        match call {
            Call::GetSet => Ok(Answer::Set(LiveSet { uid: self.set.uid.clone(), deleting: self.set.deleting })),
            Call::SetPodOwners { name, uid, version, owners } => {
                let entry = self.pods.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&entry.pod.uid, entry.pod.version, uid, *version)?;
                entry.pod.owners.clone_from(owners);
                Ok(touched(&mut entry.pod))
            }
            Call::SetRevisionOwners { name, uid, version, owners } => {
                let found = self.revisions.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&found.uid, found.version, uid, *version)?;
                found.owners.clone_from(owners);
                found.version = hash(&Revision { version: 0, ..found.clone() });
                Ok(Answer::Done { version: found.version })
            }
            Call::CreateRevision { name, number, data, .. } => {
                if self.revisions.contains_key(name) {
                    return Err(FailureKind::AlreadyExists);
                }
                let uid = self.uid(name);
                let owners = vec![self.set.as_owner()];
                Ok(Answer::Revision(self.put_revision(name, uid, *number, data, owners)))
            }
            Call::GetRevision { name } => {
                self.revisions.get(name).cloned().map(Answer::Revision).ok_or(FailureKind::NotFound)
            }
            Call::NumberRevision { name, uid, version, number } => {
                let found = self.revisions.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&found.uid, found.version, uid, *version)?;
                found.number = *number;
                found.held = None;
                found.version = hash(&Revision { version: 0, ..found.clone() });
                Ok(Answer::Revision(found.clone()))
            }
            Call::HoldRevision { name, uid, retry } => {
                let found = self.revisions.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&found.uid, found.version, uid, 0)?;
                found.held = Some(retry.clone());
                found.version = hash(&Revision { version: 0, ..found.clone() });
                Ok(Answer::Revision(found.clone()))
            }
            Call::DeleteRevision { name, uid, version } => {
                let found = self.revisions.get(name).ok_or(FailureKind::NotFound)?;
                expect(&found.uid, found.version, uid, *version)?;
                self.revisions.remove(name);
                Ok(Answer::Done { version: 0 })
            }
            Call::Act(act) => self.act(act),
            Call::WriteStatus { uid, status } => {
                if *uid != self.set.uid {
                    return Err(FailureKind::Conflict);
                }
                self.set.status = status.clone();
                Ok(Answer::Done { version: hash(&self.set) })
            }
        }
    }

    fn act(&mut self, act: &Act) -> Result<Answer, FailureKind> {
        match act {
            Act::CreateClaim { name, owners, .. } => {
                if self.claims.contains_key(name) {
                    return Err(FailureKind::AlreadyExists);
                }
                let uid = self.uid(name);
                let mut claim = new_claim(name, uid, owners.clone());
                claim.protected = self.set.beyond.protect == Some(true);
                claim.version = hash(&claim);
                let version = claim.version;
                self.claims.insert(name.clone(), claim);
                Ok(Answer::Done { version })
            }
            Act::CreatePod { name, ordinal, revision, .. } => {
                if self.pods.contains_key(name) {
                    return Err(FailureKind::AlreadyExists);
                }
                let owners = vec![self.set.as_owner()];
                let volumes = self.set.claim_templates.iter();
                let volumes = volumes.map(|t| (t.clone(), claim_name(t, &self.set.name, *ordinal))).collect();
                self.put_pod(name, Some(revision.clone()), owners, volumes);
                let hash = self.set.beyond.overrides.get(ordinal).cloned();
                let subdomain = self.set.service_name.clone();
                self.change_pod(name, |p| {
                    p.pod.override_hash = hash;
                    p.pod.subdomain = subdomain;
                });
                Ok(Answer::Done { version: self.pods[name].pod.version })
            }
            Act::DeletePod { name, uid, version } => {
                let entry = self.pods.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&entry.pod.uid, entry.pod.version, uid, *version)?;
                entry.pod.terminating = true;
                entry.deleted_by_controller = true;
                Ok(touched(&mut entry.pod))
            }
            Act::UpdatePod { name, uid, version, volumes, .. } => {
                let entry = self.pods.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&entry.pod.uid, entry.pod.version, uid, *version)?;
                if *volumes {
                    return Err(FailureKind::Invalid);
                }
                entry.pod.pod_name_label = Some(name.clone());
                Ok(touched(&mut entry.pod))
            }
            Act::SetClaimOwners { name, uid, version, owners, .. } => {
                let claim = self.claims.get_mut(name).ok_or(FailureKind::NotFound)?;
                expect(&claim.uid, claim.version, uid, *version)?;
                claim.owners.clone_from(owners);
                claim.version = hash(&Claim { version: 0, ..claim.clone() });
                Ok(Answer::Done { version: claim.version })
            }
            Act::MarkClaim { name, uid, mark } => self.change_claim(name, uid, |claim| match mark {
                ClaimMark::Reserved => claim.reserved = true,
                ClaimMark::Reused => (claim.reserved, claim.reuse) = (false, false),
                ClaimMark::Protected => claim.protected = true,
                ClaimMark::Unprotected => claim.protected = false,
            }),
            Act::GrowClaim { name, uid, template } => {
                let size = self.set.beyond.claim_sizes.get(template).copied().unwrap_or(0);
                self.change_claim(name, uid, |claim| claim.requested = size)
            }
            Act::LetGo { uid } => {
                if *uid != self.set.uid {
                    return Err(FailureKind::Conflict);
                }
                self.set.beyond.ordered_deletion = false;
                Ok(Answer::Done { version: hash(&self.set) })
            }
            Act::Refuse { .. } => Err(FailureKind::Other),
        }
    }

    fn change_claim(&mut self, name: &str, uid: &str, change: impl FnOnce(&mut Claim)) -> Result<Answer, FailureKind> {
        let claim = self.claims.get_mut(name).ok_or(FailureKind::NotFound)?;
        expect(&claim.uid, claim.version, uid, 0)?;
        change(claim);
        claim.version = hash(&Claim { version: 0, ..claim.clone() });
        Ok(Answer::Done { version: claim.version })
    }

    /// Puts a pod there as somebody other than the controller would.
    pub fn put_pod(
        &mut self,
        name: &str,
        revision: Option<String>,
        owners: Vec<Owner>,
        volumes: BTreeMap<String, String>,
    ) {
        let mut pod = Pod {
            name: name.to_owned(),
            uid: self.uid(name),
            version: 0,
            phase: PodPhase::Pending,
            ready_since: None,
            terminating: false,
            owners,
            revision,
            pod_name_label: Some(name.to_owned()),
            volumes,
            detail: None,
            trouble: Trouble::None,
            created: self.now,
            was_ready: Some(false),
            override_hash: None,
            subdomain: String::new(),
        };
        pod.version = hash(&pod);
        self.pods.insert(name.to_owned(), SimPod { pod, matches: true, deleted_by_controller: false });
    }

    /// Puts a revision there.
    pub fn put_revision(&mut self, name: &str, uid: String, number: i64, data: &Blob, owners: Vec<Owner>) -> Revision {
        let mut revision = Revision {
            name: name.to_owned(),
            uid,
            version: 0,
            number,
            created: 0,
            owners,
            data: data.clone(),
            meaning: data.clone(),
            held: None,
        };
        revision.version = hash(&revision);
        self.revisions.insert(name.to_owned(), revision.clone());
        revision
    }

    /// Changes a pod, if it exists, and its version with it.
    pub fn change_pod(&mut self, name: &str, change: impl FnOnce(&mut SimPod)) {
        if let Some(entry) = self.pods.get_mut(name) {
            change(entry);
            touched(&mut entry.pod);
        }
    }

    /// A pod turns running and ready, if its claims are there. False if they are not.
    pub fn make_ready(&mut self, name: &str) -> bool {
        let now = self.now;
        if !self.has_claims(name) {
            return false;
        }
        self.change_pod(name, |p| {
            p.pod.phase = PodPhase::Running;
            p.pod.trouble = Trouble::None;
            p.pod.was_ready = Some(true);
            p.pod.ready_since.get_or_insert(now);
        });
        true
    }

    /// A pod exists, and so do all its claims: it can run.
    pub fn has_claims(&self, pod: &str) -> bool {
        let claims = self.pods.get(pod).map(|p| &p.pod.volumes);
        claims.is_some_and(|c| c.values().all(|c| self.claims.contains_key(c)))
    }

    /// Somebody puts the claims of a pod back that are not there.
    pub fn restore_claims(&mut self, pod: &str) {
        let claims: Vec<String> =
            self.pods.get(pod).map(|p| p.pod.volumes.values().cloned().collect()).unwrap_or_default();
        for name in claims.into_iter().filter(|c| !self.claims.contains_key(c)).collect::<Vec<_>>() {
            let uid = self.uid(&name);
            let mut claim = new_claim(&name, uid, Vec::new());
            claim.version = hash(&claim);
            self.claims.insert(name, claim);
        }
    }

    /// Somebody lets claims be used again that were kept, or are about to be.
    pub fn allow_reuse(&mut self) {
        for claim in self.claims.values_mut().filter(|c| !c.reuse) {
            claim.reuse = true;
            claim.version = hash(&Claim { version: 0, ..claim.clone() });
        }
    }

    /// A terminating pod is gone.
    pub fn remove_pod(&mut self, name: &str) {
        self.pods.remove(name);
    }

    /// Changes the set's spec.
    pub fn edit(&mut self, edit: impl FnOnce(&mut Set)) {
        edit(&mut self.set);
        self.set.generation += 1;
    }

    /// Changes the set's template.
    pub fn edit_template(&mut self, template: &str) {
        let blob = Blob::new(template.as_bytes());
        self.edit(|set| {
            set.meaning = blob.clone();
            set.data = blob;
        });
    }

    /// One thing that the garbage collector would do now, if there is one.
    pub fn collect(&mut self) -> bool {
        let gone = |o: &Owner| match o.kind.as_str() {
            "Pod" => self.pods.get(&o.name).is_none_or(|p| p.pod.uid != o.uid),
            // What else may own a claim is none of this world's business.
            kind => kind == self.set.kind && o.name == self.set.name && o.uid != self.set.uid,
        };
        let claim = self.claims.values().find(|c| c.owners.iter().any(gone)).map(|c| c.name.clone());
        if let Some(name) = claim {
            self.claims.remove(&name);
            return true;
        }
        if self.set.deleting && !self.set.beyond.ordered_deletion {
            let pod = self.pods.values().find(|p| !p.pod.terminating && p.pod.controller().is_some());
            if let Some(name) = pod.map(|p| p.pod.name.clone()) {
                self.change_pod(&name, |p| p.pod.terminating = true);
                return true;
            }
        }
        false
    }

    /// True if an object of this name exists or ever did.
    pub fn existed(&self, name: &str) -> bool {
        self.next_uid.contains_key(name)
    }

    fn uid(&mut self, name: &str) -> String {
        let next = self.next_uid.entry(name.to_owned()).or_insert(0);
        let uid = format!("{name}#{next}");
        *next = (*next + 1) % UIDS;
        uid
    }
}

fn new_claim(name: &str, uid: String, owners: Vec<Owner>) -> Claim {
    Claim {
        name: name.to_owned(),
        uid,
        version: 0,
        terminating: false,
        owners,
        requested: 1,
        reserved: false,
        reuse: false,
        protected: false,
    }
}

fn touched(pod: &mut Pod) -> Answer {
    pod.version = hash(&Pod { version: 0, ..pod.clone() });
    Answer::Done { version: pod.version }
}

fn expect(has_uid: &str, has_version: u64, uid: &str, version: u64) -> Result<(), FailureKind> {
    if has_uid != uid || (version != 0 && has_version != version) {
        return Err(FailureKind::Conflict);
    }
    Ok(())
}

/// Never 0, which stands for "no precondition".
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() | 1
}
