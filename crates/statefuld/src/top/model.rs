//! What is shown, and what a key does about it. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::overview::acts::Act;
use crate::overview::{Overview, Row, Set};

/// Lines of a log that are kept.
const LOG_LINES: usize = 2000;
/// Most pods that a set is scaled to from here.
const MOST: u32 = 1000;

/// All that is shown.
#[derive(Clone, Debug)]
pub struct Model {
    /// The namespace.
    pub namespace: String,
    /// Its newest state.
    pub overview: Option<Overview>,
    /// The pod that keys are about.
    pub selected: Option<String>,
    /// The pod whose details are shown.
    pub detail: Option<Detail>,
    /// What is being asked.
    pub prompt: Option<Prompt>,
    /// What was done, or why not.
    pub said: Option<Result<String, String>>,
    /// Why there is nothing newer.
    pub lost: Option<String>,
    /// The first line that is shown; the drawing keeps the selected pod in sight.
    pub top: usize,
}

/// One pod in detail.
#[derive(Clone, Debug)]
pub struct Detail {
    /// Its name.
    pub pod: String,
    /// What happened to it, newest first.
    pub events: Vec<String>,
    /// What it printed.
    pub log: Vec<String>,
    /// How many lines the log is scrolled back; 0 follows it.
    pub back: usize,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// To how many pods?
    Count {
        /// Of which set.
        set: String,
        /// What was typed.
        text: String,
    },
    /// Really?
    Confirm(Act),
}

/// What is to be done beyond the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Leave.
    Quit,
    /// Ask it of the API.
    Do(Act),
    /// Follow this pod.
    Open(String),
    /// Follow no pod.
    Close,
}

impl Model {
    /// Nothing is known yet.
    pub fn new(namespace: String) -> Self {
        Self { namespace, overview: None, selected: None, detail: None, prompt: None, said: None, lost: None, top: 0 }
    }

    /// The newest state. The selection stays with its pod; where that is gone, it goes to the nearest.
    pub fn take(&mut self, overview: Overview) {
        let at = self.position();
        self.overview = Some(overview);
        self.lost = None;
        if self.position().is_none() {
            let names = self.names();
            self.selected = names.get(at.unwrap_or(0).min(names.len().saturating_sub(1))).cloned();
        }
        if self.detail.as_ref().is_some_and(|detail| self.row(&detail.pod).is_none()) {
            self.detail = None;
        }
    }

    /// A line of a pod's log.
    pub fn log(&mut self, pod: &str, line: String) {
        let Some(detail) = self.detail.as_mut().filter(|detail| detail.pod == pod) else { return };
        detail.log.push(line);
        if detail.log.len() > LOG_LINES {
            detail.log.remove(0);
        } else if detail.back > 0 {
            // What is looked at stays where it is.
            detail.back += 1;
        }
    }

    /// A pod's events.
    pub fn events(&mut self, pod: &str, events: Vec<String>) {
        if let Some(detail) = self.detail.as_mut().filter(|detail| detail.pod == pod) {
            detail.events = events;
        }
    }

    /// What came of an action.
    pub fn note(&mut self, said: Result<String, String>) {
        self.said = Some(said);
    }

    /// The container whose log is shown: the last, as init containers come first.
    pub fn container_of(&self, pod: &str) -> Option<String> {
        self.row(pod)?.1.containers.last().cloned()
    }

    /// A pod and its set.
    pub fn row(&self, pod: &str) -> Option<(Option<&Set>, &Row)> {
        self.overview.as_ref()?.rows().find(|(_, row)| row.pod == pod)
    }

    /// A key.
    pub fn press(&mut self, key: KeyEvent) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Effect::Quit;
        }
        if self.prompt.is_some() {
            return self.answer(key.code);
        }
        self.said = None;
        if self.detail.is_some() {
            return self.press_in_detail(key.code);
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Effect::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-10),
            KeyCode::PageDown => self.step(10),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Enter => {
                if let Some(pod) = self.selected.clone() {
                    self.detail = Some(Detail { pod: pod.clone(), events: Vec::new(), log: Vec::new(), back: 0 });
                    return Effect::Open(pod);
                }
            }
            KeyCode::Char(letter) => self.ask(letter),
            _ => {}
        }
        Effect::None
    }

    fn press_in_detail(&mut self, code: KeyCode) -> Effect {
        let Some(detail) = &mut self.detail else { return Effect::None };
        let last = detail.log.len();
        match code {
            KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter => {
                self.detail = None;
                return Effect::Close;
            }
            KeyCode::Up | KeyCode::Char('k') => detail.back = (detail.back + 1).min(last),
            KeyCode::Down | KeyCode::Char('j') => detail.back = detail.back.saturating_sub(1),
            KeyCode::PageUp => detail.back = (detail.back + 10).min(last),
            KeyCode::PageDown => detail.back = detail.back.saturating_sub(10),
            KeyCode::Home => detail.back = last,
            KeyCode::End => detail.back = 0,
            KeyCode::Char(letter) => self.ask(letter),
            _ => {}
        }
        Effect::None
    }

    /// Begins a question about the selected pod, or its set.
    fn ask(&mut self, letter: char) {
        let Some((set, row)) = self.selected.as_ref().and_then(|pod| self.row(pod)) else { return };
        let prompt = match (letter, set) {
            ('s', Some(set)) => Prompt::Count { set: set.name.clone(), text: set.replicas.to_string() },
            ('r', Some(set)) => Prompt::Confirm(Act::Restart { set: set.name.clone() }),
            ('u', Some(set)) => match &set.undo {
                Some(undo) => Prompt::Confirm(Act::Undo { set: set.name.clone(), revision: undo.name.clone() }),
                None => {
                    self.said = Some(Err(format!("{} has no earlier revision to return to", set.name)));
                    return;
                }
            },
            ('d', _) => match &row.uid {
                Some(uid) => Prompt::Confirm(Act::DeletePod { pod: row.pod.clone(), uid: uid.clone() }),
                None => {
                    self.said = Some(Err(format!("{} is not there", row.pod)));
                    return;
                }
            },
            ('s' | 'r' | 'u', None) => {
                self.said = Some(Err(format!("{} belongs to no StatefulSet", row.pod)));
                return;
            }
            _ => return,
        };
        self.prompt = Some(prompt);
    }

    /// A key while something is asked. Nothing but `y`, or Enter after a number, goes on.
    fn answer(&mut self, code: KeyCode) -> Effect {
        match (self.prompt.take(), code) {
            (Some(Prompt::Confirm(act)), KeyCode::Char('y' | 'Y')) => return Effect::Do(act),
            (Some(Prompt::Confirm(_)), _) | (_, KeyCode::Esc) => {
                self.said = Some(Ok("nothing was changed".to_owned()));
            }
            (Some(Prompt::Count { set, mut text }), code) => {
                match code {
                    KeyCode::Char(digit) if digit.is_ascii_digit() => text.push(digit),
                    KeyCode::Backspace => _ = text.pop(),
                    KeyCode::Enter => {
                        let wanted = text.parse().ok().filter(|wanted| *wanted <= MOST);
                        match wanted {
                            Some(replicas) => self.prompt = Some(Prompt::Confirm(Act::Scale { set, replicas })),
                            None => self.said = Some(Err(format!("{text:?} is no number of pods from 0 to {MOST}"))),
                        }
                        return Effect::None;
                    }
                    _ => {}
                }
                self.prompt = Some(Prompt::Count { set, text });
            }
            (None, _) => {}
        }
        Effect::None
    }

    fn names(&self) -> Vec<String> {
        self.overview.iter().flat_map(|all| all.rows().map(|(_, row)| row.pod.clone())).collect()
    }

    fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.names().iter().position(|name| name == selected)
    }

    fn step(&mut self, by: isize) {
        let names = self.names();
        let last = names.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = names.get(at).cloned();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::overview::{Rollout, State, Undo, Waiting};

    pub(in crate::top) fn row(set: &str, ordinal: i32, state: State) -> Row {
        let absent = state == State::Absent;
        Row {
            pod: format!("{set}-{ordinal}"),
            uid: (!absent).then(|| format!("uid-{ordinal}")),
            ordinal: Some(ordinal),
            owner: None,
            state,
            created: (!absent).then_some(jiff::Timestamp::UNIX_EPOCH),
            surplus: false,
            revision: "5d8f".into(),
            outdated: false,
            node: "box".into(),
            ip: "10.0.0.1".into(),
            restarts: 0,
            containers: vec!["init".into(), "app".into()],
            cpu_millis: Some(12),
            memory_bytes: Some(3 << 20),
            volumes: Vec::new(),
            waiting: None,
        }
    }

    pub(in crate::top) fn overview() -> Overview {
        let mut rows = vec![row("web", 0, State::Ready), row("web", 1, State::Unready), row("web", 2, State::Absent)];
        rows[1].waiting = Some(Waiting {
            object: "pod/web-1".into(),
            sentence: "web-1 is not Ready for 1m0s: readiness GET :8080/healthz answered 503, 51 times".into(),
            unblock: vec!["kubectl logs pod/web-1 -c app".into()],
        });
        let set = Set {
            name: "web".into(),
            replicas: 3,
            ready: 1,
            ordered: true,
            rollout: Rollout { revision: "5d8f".into(), done: 1, says: None },
            undo: Some(Undo { name: "web-77".into(), number: 1 }),
            rows,
            waiting: Vec::new(),
        };
        Overview {
            namespace: "default".into(),
            time: jiff::Timestamp::UNIX_EPOCH,
            sets: vec![set],
            pods: vec![Row { ordinal: None, owner: Some("job/dump".into()), ..row("dump", 7, State::Ended) }],
            waiting: Vec::new(),
        }
    }

    pub(in crate::top) fn model() -> Model {
        let mut model = Model::new("default".into());
        model.take(overview());
        model
    }

    fn press(model: &mut Model, code: KeyCode) -> Effect {
        model.press(KeyEvent::from(code))
    }

    fn letters(model: &mut Model, keys: &str) -> Effect {
        keys.chars().map(|c| press(model, KeyCode::Char(c))).last().unwrap_or(Effect::None)
    }

    #[test]
    fn the_selection_goes_from_pod_to_pod_and_stays_inside() {
        let mut model = model();
        assert_eq!(model.selected.as_deref(), Some("web-0"));
        press(&mut model, KeyCode::Up);
        assert_eq!(model.selected.as_deref(), Some("web-0"));
        letters(&mut model, "jj");
        assert_eq!(model.selected.as_deref(), Some("web-2"));
        press(&mut model, KeyCode::End);
        assert_eq!(model.selected.as_deref(), Some("dump-7"));
        press(&mut model, KeyCode::Down);
        assert_eq!(model.selected.as_deref(), Some("dump-7"));
    }

    #[test]
    fn the_selection_stays_with_its_pod_and_goes_to_the_nearest_where_that_is_gone() {
        let mut model = model();
        letters(&mut model, "j");
        let mut next = overview();
        next.sets[0].rows.insert(0, row("web", -1, State::Ready));
        model.take(next);
        assert_eq!(model.selected.as_deref(), Some("web-1"));
        let mut next = overview();
        next.sets[0].rows.truncate(1);
        model.take(next);
        assert_eq!(model.selected.as_deref(), Some("dump-7"));
        let mut next = overview();
        (next.sets, next.pods) = (Vec::new(), Vec::new());
        model.take(next);
        assert_eq!(model.selected, None);
        assert_eq!(press(&mut model, KeyCode::Enter), Effect::None);
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        for (keys, what) in [("r", "restart"), ("u", "undo"), ("d", "delete"), ("s", "scale")] {
            let mut model = model();
            letters(&mut model, keys);
            assert!(model.prompt.is_some(), "{what}");
            if keys == "s" {
                assert_eq!(press(&mut model, KeyCode::Enter), Effect::None);
            }
            assert_eq!(letters(&mut model, "n"), Effect::None, "{what}");
            assert_eq!((&model.prompt, &model.said), (&None, &Some(Ok("nothing was changed".to_owned()))), "{what}");
        }
        let mut model = model();
        letters(&mut model, "d");
        assert_eq!(letters(&mut model, "y"), Effect::Do(Act::DeletePod { pod: "web-0".into(), uid: "uid-0".into() }));
        letters(&mut model, "u");
        assert_eq!(letters(&mut model, "y"), Effect::Do(Act::Undo { set: "web".into(), revision: "web-77".into() }));
    }

    #[test]
    fn a_number_is_typed_and_then_confirmed() {
        let mut model = model();
        letters(&mut model, "s");
        press(&mut model, KeyCode::Backspace);
        letters(&mut model, "x15");
        press(&mut model, KeyCode::Enter);
        assert_eq!(letters(&mut model, "y"), Effect::Do(Act::Scale { set: "web".into(), replicas: 15 }));
        letters(&mut model, "s99999");
        press(&mut model, KeyCode::Enter);
        assert!(matches!(&model.said, Some(Err(why)) if why.contains("no number of pods")), "{:?}", model.said);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let mut model = model();
        letters(&mut model, "jjd");
        assert_eq!(model.said, Some(Err("web-2 is not there".into())));
        press(&mut model, KeyCode::End);
        letters(&mut model, "r");
        assert_eq!(model.said, Some(Err("dump-7 belongs to no StatefulSet".into())));
    }

    #[test]
    fn details_follow_one_pod_until_they_are_closed() {
        let mut model = model();
        assert_eq!(press(&mut model, KeyCode::Enter), Effect::Open("web-0".into()));
        assert_eq!(model.container_of("web-0").as_deref(), Some("app"));
        model.log("web-0", "one".into());
        model.log("web-1", "another's".into());
        press(&mut model, KeyCode::Up);
        model.log("web-0", "two".into());
        let detail = model.detail.as_ref().expect("open");
        assert_eq!((detail.log.len(), detail.back), (2, 2), "what is looked at stays where it is");
        assert_eq!(press(&mut model, KeyCode::Esc), Effect::Close);
        assert_eq!(press(&mut model, KeyCode::Esc), Effect::Quit);
    }

    #[test]
    fn control_c_always_leaves() {
        let mut model = model();
        letters(&mut model, "r");
        assert_eq!(model.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Effect::Quit);
    }
}
