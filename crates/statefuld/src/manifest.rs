//! Manifests from files: YAML or JSON, many documents a file, every object with the place it came from.
//!
//! Nothing here talks to a server. What can be seen from the text alone is found here, before anything
//! is applied: syntax, duplicate keys, missing or unknown kinds, the same object twice.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use api::resource::{Registry, Resource};
use serde_json::Value;

/// Larger files are refused: they are not manifests.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// More objects than this in one run are refused.
const MAX_OBJECTS: usize = 10_000;

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

/// Reads all files, in order. Directories stand for the `.yaml`, `.yml` and `.json` files in them.
pub fn read(registry: &Registry, paths: &[PathBuf], default_namespace: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for path in expand(paths)? {
        let text = read_text(&path)?;
        objects.extend(parse(registry, &path, &text, default_namespace)?);
        if objects.len() > MAX_OBJECTS {
            bail!("more than {MAX_OBJECTS} objects in one run; apply them in several");
        }
    }
    refuse_duplicates(&objects)?;
    Ok(objects)
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
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("standard input cannot be read");
    }
    let size = std::fs::metadata(path).with_context(|| format!("{}: cannot be read", path.display()))?.len();
    if size > MAX_FILE_BYTES {
        bail!("{}: {size} bytes is too large for a manifest (limit {MAX_FILE_BYTES})", path.display());
    }
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    String::from_utf8(bytes)
        .map_err(|e| anyhow!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()))
}

/// The objects of one file's text.
pub fn parse(registry: &Registry, file: &Path, text: &str, default_namespace: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for document in documents(text) {
        let place = Place { file: file.to_owned(), line: document.line };
        // File modes are written as `0644`.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let value: Value = match serde_saphyr::from_str_with_options(document.text, options) {
            Ok(value) => value,
            Err(error) => bail!("{}", yaml_error(file, &document, &error)),
        };
        if value.is_null() {
            continue;
        }
        collect(registry, &place, value, default_namespace, &mut objects)?;
    }
    Ok(objects)
}

fn collect(
    registry: &Registry,
    place: &Place,
    value: Value,
    default_namespace: &str,
    objects: &mut Vec<Object>,
) -> Result<()> {
    if !value.is_object() {
        bail!("{place}: a manifest is a mapping with apiVersion, kind and metadata; this document is not");
    }
    let api_version = text_field(&value, place, "apiVersion")?;
    let kind = text_field(&value, place, "kind")?;
    if api_version == "v1" && kind == "List" {
        let Value::Object(mut list) = value else { unreachable!("checked above") };
        let Some(Value::Array(items)) = list.remove("items") else {
            bail!("{place}: List: items: must be a list of objects");
        };
        for item in items {
            collect(registry, place, item, default_namespace, objects)?;
        }
        return Ok(());
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some(resource) = registry.find_kind(group, version, &kind) else {
        bail!("{place}: {}", unknown_kind(registry, &api_version, &kind));
    };
    let name = match value.pointer("/metadata/name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(Value::String(_)) | None => {
            bail!("{place}: {kind}: metadata.name: is required; give the object a name")
        }
        Some(other) => bail!("{place}: {kind}: metadata.name: must be a string, not {other}"),
    };
    let namespace = match value.pointer("/metadata/namespace") {
        _ if !resource.namespaced => String::new(),
        Some(Value::String(namespace)) if !namespace.is_empty() => namespace.clone(),
        Some(Value::String(_)) | None => default_namespace.to_owned(),
        Some(other) => bail!("{place}: {kind} {name:?}: metadata.namespace: must be a string, not {other}"),
    };
    objects.push(Object { place: place.clone(), resource, namespace, name, value });
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

fn unknown_kind(registry: &Registry, api_version: &str, kind: &str) -> String {
    let same_kind: Vec<String> = registry
        .all()
        .into_iter()
        .filter(|r| r.kind.eq_ignore_ascii_case(kind))
        .map(|r| format!("{} {}", r.api_version(), r.kind))
        .collect();
    if !same_kind.is_empty() {
        return format!("{api_version} {kind}: not served; write it as {}", same_kind.join(" or "));
    }
    let near = registry
        .all()
        .into_iter()
        .map(|r| (distance(&r.kind.to_lowercase(), &kind.to_lowercase()), r.kind.clone()))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    match near {
        Some((_, near)) => format!("kind {kind:?} ({api_version}) is unknown; did you mean {near}?"),
        None => format!(
            "kind {kind:?} ({api_version}) is not served here; take it out of the file \
             (`kubectl api-resources` lists what is served)"
        ),
    }
}

/// Edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

fn refuse_duplicates(objects: &[Object]) -> Result<()> {
    let mut seen: BTreeMap<(String, String, &str, &str), &Place> = BTreeMap::new();
    for object in objects {
        let key = (
            object.resource.group.to_string(),
            object.resource.kind.to_string(),
            object.namespace.as_str(),
            object.name.as_str(),
        );
        if let Some(first) = seen.insert(key, &object.place) {
            bail!(
                "{}: {} occurs a second time (first at {first}); remove one of the two, or give it another name",
                object.place,
                object.title()
            );
        }
    }
    Ok(())
}

/// One document of a YAML stream.
struct Document<'a> {
    /// 1-based line in the file on which `text` begins.
    text_line: usize,
    /// 1-based line of its first content.
    line: usize,
    text: &'a str,
}

/// The documents of a YAML stream that are not blank. A `---` or `...` at the start of a line ends a
/// document wherever it stands, also inside a block scalar (YAML 1.2, 9.1).
fn documents(text: &str) -> Vec<Document<'_>> {
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
        .map(|(text_line, text)| Document { text_line, line: text_line + lines_before_content(text), text })
        .collect()
}

fn lines_before_content(text: &str) -> usize {
    text.lines().take_while(|line| line.trim().is_empty() || line.trim_start().starts_with('#')).count()
}

/// One line for a YAML error: file, line and column, what is wrong, what to do.
fn yaml_error(file: &Path, document: &Document<'_>, error: &serde_saphyr::Error) -> String {
    let location = error.location();
    let text = error.without_snippet().to_string();
    let what = text.lines().next().unwrap_or_default().trim();
    // The location is said in front, in the file's own lines; the parser counts from the document's.
    let what = what.split(" at line ").next().unwrap_or(what);
    let (line, column) = location.map_or((document.line, 1), |at| {
        (document.text_line + usize::try_from(at.line()).unwrap_or(1) - 1, usize::try_from(at.column()).unwrap_or(1))
    });
    format!("{}:{line}:{column}: not valid YAML: {what}; correct the text there", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<Object>> {
        let registry = Registry::builtin();
        let objects = parse(&registry, Path::new("m.yaml"), text, "default")?;
        refuse_duplicates(&objects)?;
        Ok(objects)
    }

    fn error_of(text: &str) -> String {
        parse_text(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn documents_know_their_lines() {
        let text = "# head\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n";
        let objects = parse_text(text).expect("is right");
        assert_eq!(objects.iter().map(|o| (o.name.as_str(), o.place.line)).collect::<Vec<_>>(), [("a", 3), ("b", 9)]);
        assert_eq!(objects[0].namespace, "default");
    }

    #[test]
    fn a_list_stands_for_its_items() {
        let text = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}"#;
        assert_eq!(parse_text(text).expect("is right")[0].title(), "Secret \"s\"");
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
    fn an_unknown_kind_gets_the_nearest_name() {
        let error = error_of("apiVersion: apps/v1\nkind: StatefulSets\nmetadata: {name: a}\n");
        assert_eq!(error, "m.yaml:1: kind \"StatefulSets\" (apps/v1) is unknown; did you mean StatefulSet?");
        let error = error_of("apiVersion: apps/v1beta1\nkind: StatefulSet\nmetadata: {name: a}\n");
        assert!(error.contains("write it as apps/v1 StatefulSet"), "{error}");
    }

    #[test]
    fn the_same_object_twice_is_refused() {
        let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        let error = error_of(&format!("{one}---\n{one}"));
        assert!(error.contains("occurs a second time (first at m.yaml:1)"), "{error}");
    }

    #[test]
    fn file_modes_are_octal() {
        let objects =
            parse_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nmode: 0755\n").expect("is right");
        assert_eq!(objects[0].value["mode"], 0o755);
    }

    #[test]
    fn a_missing_name_is_named() {
        let error = error_of("apiVersion: v1\nkind: ConfigMap\n");
        assert!(error.contains("metadata.name: is required"), "{error}");
    }
}
