//! Manifests from files: YAML or JSON, many documents a file, every object with the place it came from.
//!
//! ```text
//!   files ──read──▶ documents ──sort (which kinds are served?)──▶ objects, in the order in which they are applied
//!                                                            └──▶ what is skipped, what was rewritten: in words
//! ```
//! Nothing here talks to a server. What can be seen from the text alone is found here, before anything
//! is applied: syntax, duplicate keys, missing or unknown kinds, the same object twice.

mod old;
mod sort;

pub use sort::{Rules, Sorted, sort, with_definitions};

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use api::resource::Resource;
use serde_json::Value;

/// Larger files are refused: they are not manifests.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// More objects than this in one run are refused.
const MAX_OBJECTS: usize = 10_000;
/// Lists may hold lists, so deep.
const MAX_LIST_DEPTH: usize = 4;

/// One object, and where it stands.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it was read.
    pub place: Place,
    /// Its kind, as the server serves it.
    pub resource: Arc<Resource>,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The object itself.
    pub value: Value,
}

impl Object {
    /// `StatefulSet "web"`, as messages name it.
    pub fn title(&self) -> String {
        format!("{} {:?}", self.resource.kind, self.name)
    }
}

/// A file and the line where a document begins in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// 1-based line of the document's first line.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// An object as it stands in a file, of whatever kind.
#[derive(Clone, Debug)]
pub struct Document {
    /// Where it was read.
    pub place: Place,
    /// Its apiVersion.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// The object itself.
    pub value: Value,
}

impl Document {
    /// `StatefulSet "web"`, as messages name it.
    pub fn title(&self) -> String {
        match self.value.pointer("/metadata/name").and_then(Value::as_str) {
            Some(name) => format!("{} {name:?}", self.kind),
            None => self.kind.clone(),
        }
    }
}

/// Reads all files, in order. Directories stand for the `.yaml`, `.yml` and `.json` files in them.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    for path in expand(paths)? {
        let text = read_text(&path)?;
        found.extend(parse(&path, &text)?);
        if found.len() > MAX_OBJECTS {
            bail!("more than {MAX_OBJECTS} objects in one run; apply them in several");
        }
    }
    Ok(found)
}

fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
            .with_context(|| format!("{}: cannot be listed", path.display()))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"))
            .collect();
        inside.sort();
        if inside.is_empty() {
            bail!("{}: no .yaml, .yml or .json file in this directory", path.display());
        }
        files.extend(inside);
    }
    Ok(files)
}

fn read_text(path: &Path) -> Result<String> {
    let named = || if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| format!("{}: cannot be read", named()))?)
    };
    let mut bytes = Vec::new();
    source.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("{}: cannot be read", named()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        bail!("{}: more than {MAX_FILE_BYTES} bytes are too many for a manifest", named());
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| anyhow!("{}: not UTF-8 text (byte {})", named(), e.utf8_error().valid_up_to()))?;
    // Some editors put a byte order mark in front.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The objects of one file's text.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    for part in parts(text) {
        let place = Place { file: file.to_owned(), line: part.line };
        // File modes are written as `0644`.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let value: Value = match serde_saphyr::from_str_with_options(part.text, options) {
            Ok(value) => value,
            Err(error) => bail!("{}", yaml_error(file, &part, &error)),
        };
        if value.is_null() {
            continue;
        }
        collect(&place, value, 0, &mut found)?;
    }
    Ok(found)
}

/// One document; a list stands for its items.
fn collect(place: &Place, value: Value, depth: usize, found: &mut Vec<Document>) -> Result<()> {
    if !value.is_object() {
        bail!("{place}: a manifest is a mapping with apiVersion, kind and metadata; this document is not");
    }
    let api_version = text_field(&value, place, "apiVersion")?;
    let kind = text_field(&value, place, "kind")?;
    // `kubectl get -o yaml` writes v1 List; clients write lists of one kind, such as ConfigMapList.
    let is_list = kind == "List" || (kind.ends_with("List") && value.get("items").is_some_and(Value::is_array));
    if !is_list {
        found.push(Document { place: place.clone(), api_version, kind, value });
        return Ok(());
    }
    let Value::Object(mut list) = value else { unreachable!("checked above") };
    let Some(Value::Array(items)) = list.remove("items") else {
        bail!("{place}: {kind}: items: must be a list of objects");
    };
    if depth >= MAX_LIST_DEPTH {
        bail!("{place}: {kind}: lists within lists within lists; write the objects out");
    }
    for mut item in items {
        // Items of a typed list need not repeat what the list says.
        if let (Some(of), Some(item)) = (kind.strip_suffix("List").filter(|of| !of.is_empty()), item.as_object_mut()) {
            item.entry("apiVersion").or_insert_with(|| api_version.clone().into());
            item.entry("kind").or_insert_with(|| of.into());
        }
        collect(place, item, depth + 1, found)?;
    }
    Ok(())
}

fn text_field(value: &Value, place: &Place, field: &str) -> Result<String> {
    match value.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::String(_)) | None => {
            let name = value.pointer("/metadata/name").and_then(Value::as_str);
            let whose = name.map_or_else(String::new, |name| format!(" (of object {name:?})"));
            bail!("{place}: {field}: is required{whose}")
        }
        Some(other) => bail!("{place}: {field}: must be a string, not {other}"),
    }
}

/// One document of a YAML stream, unread.
struct Part<'a> {
    /// 1-based line in the file on which `text` begins.
    text_line: usize,
    /// 1-based line of its first content.
    line: usize,
    text: &'a str,
}

/// The documents of a YAML stream that are not blank. A `---` or `...` at the start of a line ends a
/// document wherever it stands, also inside a block scalar (YAML 1.2, 9.1).
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare == "..." || bare.starts_with("--- ") || bare.starts_with("---\t") {
            found.push((start_line, &text[start..offset]));
            // `--- # comment` and `--- {a: b}`: what follows the marker belongs to the new document.
            start = offset + 3;
            start_line = index + 1;
        }
        offset += line.len();
    }
    found.push((start_line, &text[start..]));
    found
        .into_iter()
        .filter(|(_, document)| !document.trim().is_empty())
        .map(|(text_line, text)| Part { text_line, line: text_line + lines_before_content(text), text })
        .collect()
}

fn lines_before_content(text: &str) -> usize {
    text.lines().take_while(|line| line.trim().is_empty() || line.trim_start().starts_with('#')).count()
}

/// One line for a YAML error: file, line and column, what is wrong, what to do.
fn yaml_error(file: &Path, document: &Part<'_>, error: &serde_saphyr::Error) -> String {
    let location = error.location();
    let text = error.without_snippet().to_string();
    let what = text.lines().next().unwrap_or_default().trim();
    // The location is said in front, in the file's own lines; the parser counts from the document's.
    let what = what.split(" at line ").next().unwrap_or(what);
    // What a programmer would set is nothing that a manifest's author can.
    let what = what.split(", set DuplicateKeyPolicy").next().unwrap_or(what);
    let (line, column) = location.map_or((document.line, 1), |at| {
        (document.text_line + usize::try_from(at.line()).unwrap_or(1) - 1, usize::try_from(at.column()).unwrap_or(1))
    });
    format!("{}:{line}:{column}: not valid YAML: {what}; correct the text there", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<Document>> {
        parse(Path::new("m.yaml"), text)
    }

    fn error_of(text: &str) -> String {
        parse_text(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn documents_know_their_lines_and_empty_ones_are_none() {
        let text = "# head\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\n---\n# nothing\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n---\n";
        let found = parse_text(text).expect("is right");
        let seen: Vec<_> = found.iter().map(|d| (d.title(), d.place.line)).collect();
        assert_eq!(seen, [("ConfigMap \"a\"".to_owned(), 3), ("ConfigMap \"b\"".to_owned(), 11)]);
    }

    #[test]
    fn a_list_stands_for_its_items() {
        let text = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}"#;
        assert_eq!(parse_text(text).expect("is right")[0].title(), "Secret \"s\"");
        let typed = "apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n";
        let found = parse_text(typed).expect("is right");
        assert_eq!(found.iter().map(Document::title).collect::<Vec<_>>(), ["ConfigMap \"a\"", "ConfigMap \"b\""]);
        assert_eq!(found[1].value["apiVersion"], "v1");
        let deep = format!("{}{}", r#"{"apiVersion":"v1","kind":"List","items":["#.repeat(9), "]}".repeat(9));
        assert!(error_of(&deep).contains("lists within lists"), "{}", error_of(&deep));
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let error = error_of("apiVersion: v1\nkind: [ConfigMap\nmetadata: {name: a}\n");
        assert!(error.starts_with("m.yaml:"), "{error}");
        assert!(error.contains("not valid YAML"), "{error}");
    }

    #[test]
    fn a_duplicate_key_is_refused() {
        let error = error_of("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: x}\ndata: {b: y}\n");
        assert!(error.contains("duplicate"), "{error}");
    }

    #[test]
    fn file_modes_are_octal_and_quoted_numbers_stay_text() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nmode: 0755\nport: \"8080\"\nold: '0644'\n";
        let value = &parse_text(text).expect("is right")[0].value;
        assert_eq!((&value["mode"], &value["port"], &value["old"]), (&493.into(), &"8080".into(), &"0644".into()));
    }

    #[test]
    fn a_file_of_many_lines_is_read_line_by_line() {
        let one =
            |n: usize| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c{n}\ndata:\n  a: \"1\"\n---\n");
        let text: String = (0..5_000).map(one).collect();
        let found = parse_text(&text).expect("is right");
        assert_eq!((found.len(), found[4_999].place.line), (5_000, 4_999 * 7 + 1));
    }
}
