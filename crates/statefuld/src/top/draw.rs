//! From the model to what a terminal shows. Pure: it knows a size and nothing else.
//!
//! Colours are the terminal's own sixteen, so that they fit dark and light ones; every state is also a word.

use crossterm::style::{ContentStyle, Stylize as _};
use jiff::Timestamp;

use super::model::{Detail, Model, Prompt};
use super::screen::{Line, Size, columns, head as start};
use super::words;
use crate::overview::{Row, Set, State, Volume, Waiting};

/// Cells of a volume's bar.
const BAR: u64 = 8;
/// Widest column of pods' names.
const NAME_MAX: usize = 40;

const KEYS: &str = "↑↓ pod  Enter details  s scale  r restart  u undo  d stop pod  q leave";
const DETAIL_KEYS: &str = "↑↓ scroll the log  s scale  r restart  u undo  d stop pod  Esc back";

/// Draws all: as many lines as the terminal has.
pub fn draw(model: &mut Model, size: Size, now: Timestamp) -> Vec<Line> {
    let Size { width, height } = size;
    let room = height.saturating_sub(2);
    let mut lines = vec![title(model, width)];
    match &model.detail {
        Some(detail) => lines.extend(details(model, detail, width, room, now)),
        None => lines.extend(in_sight(model, width, room, now)),
    }
    lines.resize(height.saturating_sub(1), Line::default());
    lines.push(footer(model));
    lines
}

fn title(model: &Model, width: usize) -> Line {
    let left = format!(" statefuld  namespace {}", model.namespace);
    let right = match (&model.lost, &model.overview) {
        (Some(why), _) => format!("{why} "),
        (None, Some(all)) => {
            let rows = || all.rows().filter(|(_, row)| !row.surplus && row.state != State::Ended);
            let ready = rows().filter(|(_, row)| row.state == State::Ready).count();
            format!("{ready} of {} pods Ready ", rows().count())
        }
        (None, None) => String::new(),
    };
    let room = width.saturating_sub(columns(&left));
    let right = start(&right, room);
    Line::plain(format!("{left}{right:>room$}")).reversed(width)
}

fn footer(model: &Model) -> Line {
    let plain = ContentStyle::new();
    match (&model.prompt, &model.said) {
        (Some(Prompt::Confirm(act)), _) => {
            let mut line = Line::styled(format!(" {}", act.question()), plain.bold());
            line.push("  y yes, any other key no", plain);
            line
        }
        (Some(Prompt::Count { set, text }), _) => {
            let mut line = Line::styled(format!(" How many pods shall {set} have? {text}"), plain.bold());
            line.push("▏  Enter goes on, Esc leaves it", plain);
            line
        }
        (None, Some(Ok(said))) => Line::styled(format!(" {said}"), plain.green()),
        (None, Some(Err(why))) => Line::styled(format!(" {why}"), plain.red()),
        (None, None) => {
            let keys = if model.detail.is_some() { DETAIL_KEYS } else { KEYS };
            Line::styled(format!(" {keys}"), plain.dim())
        }
    }
}

/// The part of the list that is shown: the selected pod is in it, and so is the first line where that fits.
fn in_sight(model: &mut Model, width: usize, height: usize, now: Timestamp) -> Vec<Line> {
    let (lines, at) = list(model, width, now);
    if let Some((first, last)) = at {
        if first < model.top + 1 {
            model.top = first.saturating_sub(3);
        } else if last >= model.top + height {
            model.top = (last + 1).saturating_sub(height);
        }
    }
    model.top = model.top.min(lines.len().saturating_sub(height));
    lines.into_iter().skip(model.top).take(height).collect()
}

/// All lines, and which of them the selected pod has.
fn list(model: &Model, width: usize, now: Timestamp) -> (Vec<Line>, Option<(usize, usize)>) {
    let mut lines = Vec::new();
    let mut at = None;
    let Some(all) = &model.overview else { return (vec![Line::plain(" …")], None) };
    let longest = all.rows().map(|(_, row)| row.pod.chars().count()).max().unwrap_or(0);
    let columns = Columns::fit(width, longest);
    let mut rows = |lines: &mut Vec<Line>, rows: &[Row]| {
        for row in rows {
            let selected = model.selected.as_deref() == Some(&row.pod);
            let first = lines.len();
            let line = columns.row(row, now);
            lines.push(if selected { line.reversed(width) } else { line });
            if let Some(waits) = &row.waiting {
                lines.extend(sentence(waits, width));
            }
            if selected {
                at = Some((first, lines.len() - 1));
            }
        }
    };
    for set in &all.sets {
        lines.push(Line::default());
        lines.push(head(set));
        if let Some(says) = &set.rollout.says {
            lines.push(Line::plain(format!("   {says}")));
        }
        set.waiting.iter().for_each(|waits| lines.extend(sentence(waits, width)));
        lines.push(columns.head());
        rows(&mut lines, &set.rows);
    }
    if !all.pods.is_empty() {
        lines.push(Line::default());
        lines.push(Line::styled(" Other pods", ContentStyle::new().bold()));
        lines.push(columns.head());
        rows(&mut lines, &all.pods);
    }
    if lines.is_empty() {
        lines.push(Line::default());
        lines.push(Line::plain(format!(" There are no StatefulSets and no pods in namespace {}.", model.namespace)));
    }
    if !all.waiting.is_empty() {
        lines.push(Line::default());
        all.waiting.iter().for_each(|waits| lines.extend(sentence(waits, width)));
    }
    (lines, at)
}

/// A set's name, its ordinals as a ladder, and how many are Ready.
fn head(set: &Set) -> Line {
    let plain = ContentStyle::new();
    let mut line = Line::styled(format!(" {} ", set.name), plain.bold());
    for row in &set.rows {
        line.push(if row.state == State::Absent { "□" } else { "■" }, colour(row.state));
    }
    line.push(format!(" {} of {} Ready", set.ready, set.replicas), plain);
    if !set.rollout.revision.is_empty() {
        line.push(format!(", revision {}", set.rollout.revision), plain.dim());
    }
    line
}

fn colour(state: State) -> ContentStyle {
    let plain = ContentStyle::new();
    match state {
        State::Ready => plain.green(),
        State::Unready => plain.yellow(),
        State::Stopping => plain.blue(),
        State::Failed => plain.red(),
        State::Absent | State::Ended => plain.dim(),
    }
}

/// A sentence below its pod, and what would help.
fn sentence(waits: &Waiting, width: usize) -> Vec<Line> {
    let room = width.saturating_sub(6).max(10);
    let plain = ContentStyle::new();
    let said = wrap(&waits.sentence, room).into_iter().map(|text| (text, plain.yellow()));
    let remedies = waits.unblock.iter().flat_map(|remedy| wrap(&format!("to unblock: {remedy}"), room));
    let all = said.chain(remedies.map(|text| (text, plain.dim())));
    all.map(|(text, style)| Line::styled(format!("   │ {text}"), style)).collect()
}

/// The columns that fit, by the width of each; 0 is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    name: usize,
    volume: usize,
    node: usize,
    revision: usize,
    usage: usize,
    times: usize,
}

impl Columns {
    /// Pod and state are always there; the others as long as there is room, in order of what people look for.
    fn fit(width: usize, longest: usize) -> Self {
        let name = longest.clamp(8, NAME_MAX);
        let mut left = width.saturating_sub(3 + name + 2 + 10);
        let mut take = |wanted: usize| {
            let fits = left > wanted;
            left -= if fits { wanted + 1 } else { 0 };
            if fits { wanted } else { 0 }
        };
        let (volume, times, node, usage) = (take(31), take(15), take(16), take(18));
        Self { name, volume, node, revision: take(11), usage, times }
    }

    fn head(&self) -> Line {
        let mut text = format!("   {:<name$}  {:<10}", "POD", "STATE", name = self.name);
        let mut put = |width: usize, words: String| {
            if width > 0 {
                text.push_str(&format!(" {words:<width$}"));
            }
        };
        put(self.volume, "VOLUME".to_owned());
        put(self.node, "NODE".to_owned());
        put(self.revision, "REVISION".to_owned());
        put(self.usage, format!("{:>7} {:>10}", "CPU", "MEMORY"));
        put(self.times, format!("{:>8} {:>6}", "RESTARTS", "AGE"));
        Line::styled(text, ContentStyle::new().dim())
    }

    fn row(&self, row: &Row, now: Timestamp) -> Line {
        let plain = ContentStyle::new();
        let name = cut(&row.pod, self.name);
        let mark = if row.surplus { "-" } else { " " };
        let mut line = Line::plain(format!(" {mark} {name:<width$}  ", width = self.name));
        line.push(format!("{:<10}", row.state.word()), colour(row.state));
        let mut put = |width: usize, words: String, style: ContentStyle| {
            if width > 0 {
                line.push(format!(" {:<width$}", cut(&words, width)), style);
            }
        };
        let fullest = words::fullest(row);
        let is_full = fullest.and_then(|volume| volume.percent).is_some_and(|percent| percent >= 95);
        let volume = fullest.map(|v| format!("{} {}", bar(v.percent), words::room(v))).unwrap_or_default();
        put(self.volume, volume, if is_full { plain.red() } else { plain });
        put(self.node, row.node.clone(), plain);
        put(self.revision, row.revision.clone(), if row.outdated { plain.yellow() } else { plain });
        put(self.usage, format!("{:>7} {:>10}", words::processors(row), words::memory(row)), plain);
        put(self.times, format!("{:>8} {:>6}", words::restarts(row), words::age(row, now)), plain);
        line
    }
}

/// A bar of eight cells.
fn bar(percent: Option<u64>) -> String {
    let Some(percent) = percent else { return String::new() };
    let full = (percent * BAR).div_ceil(100).min(BAR);
    (0..BAR).map(|cell| if cell < full { '▰' } else { '▱' }).collect()
}

/// No longer than that; what is cut off is marked.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Words in lines of that width; longer words are broken.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("begins with one");
            let used = line.chars().count();
            let space = usize::from(used > 0);
            if used + space + rest.len() <= width {
                line.extend([' '].iter().take(space));
                line.extend(rest);
                break;
            }
            if used == 0 {
                let later = rest.split_off(width);
                line.extend(rest);
                rest = later;
            }
            lines.push(String::new());
        }
    }
    lines
}

/// One pod: what it is, what happened to it, and the end of its log, in that many lines.
fn details(model: &Model, detail: &Detail, width: usize, height: usize, now: Timestamp) -> Vec<Line> {
    let dim = ContentStyle::new().dim();
    let mut lines = about(model, detail, width, now);
    lines.extend([Line::default(), Line::styled(" EVENTS", dim)]);
    if detail.events.is_empty() {
        lines.push(Line::plain("   none that is still kept"));
    }
    let most = (height / 4).max(2);
    let events = detail.events.iter().flat_map(|event| wrap(event, width.saturating_sub(4).max(10)));
    lines.extend(events.take(most).map(|text| Line::plain(format!("   {text}"))));
    lines.extend([Line::default(), Line::styled(" LOG", dim)]);
    let room = height.saturating_sub(lines.len());
    let end = detail.log.len() - detail.back.min(detail.log.len().saturating_sub(room));
    let shown = &detail.log[end.saturating_sub(room)..end];
    lines.extend(shown.iter().map(|line| Line::plain(format!("   {line}"))));
    lines.truncate(height);
    lines
}

/// What the pod is, and what it waits for.
fn about(model: &Model, detail: &Detail, width: usize, now: Timestamp) -> Vec<Line> {
    let Some((set, row)) = model.row(&detail.pod) else { return Vec::new() };
    let of = set.map_or_else(|| row.owner.clone().unwrap_or_default(), |set| format!("sts/{}", set.name));
    let mut name = Line::styled(format!(" {} ", row.pod), ContentStyle::new().bold());
    name.push(row.state.word(), colour(row.state));
    name.push(format!("  {of}"), ContentStyle::new().dim());
    let mut lines = vec![Line::default(), name];
    if let Some(waits) = &row.waiting {
        lines.extend(sentence(waits, width));
    }
    let facts = [
        ("node", row.node.clone()),
        ("address", row.ip.clone()),
        ("revision", row.revision.clone()),
        ("age", words::age(row, now)),
        ("restarts", words::restarts(row)),
        ("cpu", words::processors(row)),
        ("memory", words::memory(row)),
    ];
    let known = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let told: Vec<String> = known.map(|(word, value)| format!("{word} {value}")).collect();
    let told = wrap(&told.join(", "), width.saturating_sub(4).max(10));
    lines.extend(told.into_iter().map(|text| Line::plain(format!("   {text}"))));
    let volume = |v: &Volume| Line::plain(format!("   {} {} {}", v.claim, bar(v.percent), words::room(v)));
    lines.extend(row.volumes.iter().map(volume));
    lines
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent};

    use super::*;
    use crate::top::model::tests::{model, row};

    /// What the terminal shows, line by line.
    fn screen(model: &mut Model, width: usize, height: usize) -> Vec<String> {
        let lines = draw(model, Size { width, height }, Timestamp::from_second(61).unwrap());
        assert_eq!(lines.len(), height.max(1));
        lines.iter().map(|line| start(&line.text(), width).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_set_is_shown_as_its_ordinals_with_the_sentence_beside_what_waits() {
        let mut model = model();
        if let Some(all) = &mut model.overview {
            let volume = Volume {
                claim: "data-web-0".into(),
                promised_bytes: Some(1 << 30),
                used_bytes: Some(600 << 20),
                available_bytes: None,
                percent: Some(59),
            };
            all.sets[0].rows[0].volumes.push(volume);
        }
        let shown = screen(&mut model, 140, 16);
        assert!(
            shown[0].starts_with(" statefuld  namespace default") && shown[0].ends_with("1 of 3 pods Ready"),
            "{shown:#?}"
        );
        assert_eq!(shown[2], " web ■■□ 1 of 3 Ready, revision 5d8f");
        assert!(shown[3].contains("POD") && shown[3].contains("REVISION") && shown[3].contains("MEMORY"), "{shown:#?}");
        assert!(shown[4].contains("web-0     Ready      ▰▰▰▰▰▱▱▱ 600 MiB of 1 GiB"), "{shown:#?}");
        assert!(shown[4].ends_with("1m1s"), "{shown:#?}");
        assert!(shown[6].starts_with("   │ web-1 is not Ready for 1m0s: readiness GET"), "{shown:#?}");
        assert!(shown[7].contains("to unblock: kubectl logs pod/web-1 -c app"), "{shown:#?}");
        assert!(shown[8].contains("web-2     Absent"), "{shown:#?}");
        assert!(shown[15].contains("Enter details"), "{shown:#?}");
    }

    #[test]
    fn narrow_terminals_show_less_and_wrap_sentences() {
        let shown = screen(&mut model(), 40, 20);
        assert!(shown.iter().all(|line| line.chars().count() <= 40));
        assert!(shown.iter().any(|line| line.contains("web-1") && line.contains("Not ready")), "{shown:#?}");
        assert!(!shown.concat().contains("REVISION"), "{shown:#?}");
        assert!(shown.iter().any(|line| line.trim_start().starts_with("│ answered 503")), "{shown:#?}");
    }

    #[test]
    fn the_selected_pod_is_always_in_sight() {
        let mut model = model();
        if let Some(all) = &mut model.overview {
            all.sets[0].rows = (0..100).map(|ordinal| row("web", ordinal, State::Ready)).collect();
        }
        for (key, pod) in [(KeyCode::End, "dump-7"), (KeyCode::Up, "web-99"), (KeyCode::Home, "web-0")] {
            model.press(KeyEvent::from(key));
            let shown = screen(&mut model, 80, 12);
            assert!(shown.iter().any(|line| line.contains(&format!(" {pod} "))), "{pod}: {shown:#?}");
        }
        assert_eq!(model.top, 0);
    }

    #[test]
    fn details_show_the_end_of_the_log_until_it_is_scrolled_back() {
        let mut model = model();
        model.press(KeyEvent::from(KeyCode::Enter));
        (0..50).for_each(|n| model.log("web-0", format!("line {n}.")));
        model.events("web-0", vec!["Pulled: image is there (5s ago)".into()]);
        let shown = screen(&mut model, 80, 24).join("\n");
        assert!(shown.contains("line 49.") && shown.contains("Pulled: image is there"), "{shown}");
        model.press(KeyEvent::from(KeyCode::Home));
        let shown = screen(&mut model, 80, 24).join("\n");
        assert!(shown.contains("line 0.") && !shown.contains("line 49."), "{shown}");
    }

    #[test]
    fn what_is_asked_and_what_came_of_it_is_in_the_last_line() {
        let mut model = model();
        model.press(KeyEvent::from(KeyCode::Char('r')));
        let asked = screen(&mut model, 90, 10);
        assert!(asked[9].contains("Replace all pods of web, one after the other?  y yes"), "{asked:#?}");
        model.prompt = None;
        model.note(Err("forbidden".into()));
        assert_eq!(screen(&mut model, 90, 10)[9], " forbidden");
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(1, 1), (3, 2), (10, 4)] {
            let mut model = model();
            screen(&mut model, width, height);
            model.press(KeyEvent::from(KeyCode::Enter));
            (0..9).for_each(|n| model.log("web-0", format!("line {n}")));
            screen(&mut model, width, height);
        }
    }

    #[test]
    fn words_are_wrapped_and_long_ones_broken() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
