//! Media types: what a body is written in, and what a client wants to read.

use api::decode::MediaType;
use api::resource::Resource;
use api::status::{Details, Status};

use crate::errors::Outcome;

/// What bodies may be written in.
const READ: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// In which shape a client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As they are.
    Object,
    /// A table of columns, as kubectl prints.
    Table,
    /// Their metadata alone.
    Metadata,
}

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The shape.
    pub(crate) shape: Shape,
    /// Whether the shape is named as that of a list, or of one object; `None` where it fits both.
    pub(crate) list: Option<bool>,
    /// Written in YAML instead of JSON.
    pub(crate) yaml: bool,
}

impl Wanted {
    /// 406 if the shape named is that of a list and the answer is none, or the other way round.
    pub(crate) fn check(&self, resource: &Resource, list: bool) -> Outcome<()> {
        let message = match (self.list, list) {
            (Some(false), true) => {
                let kind = &resource.list_kind;
                format!("you requested PartialObjectMetadata, but the requested object is a list (*core.{kind})")
            }
            (Some(true), false) => {
                let kind = &resource.kind;
                format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list (*core.{kind})"
                )
            }
            _ => return Ok(()),
        };
        Err(Box::new(Status::new(406, "NotAcceptable", message)))
    }
}

/// One alternative of an Accept header.
struct Clause {
    media: String,
    parameters: Vec<(String, String)>,
}

/// The first alternative of `accept` that can be answered. 406 if there is none.
pub(crate) fn wanted(accept: &str) -> Outcome<Wanted> {
    if accept.trim().is_empty() {
        return Ok(Wanted { shape: Shape::Object, list: None, yaml: false });
    }
    let mut known_media = false;
    for clause in clauses(accept) {
        let yaml = clause.media == "application/yaml";
        if !yaml && !matches!(clause.media.as_str(), "application/json" | "*/*") {
            known_media |= clause.media == "application/vnd.kubernetes.protobuf";
            continue;
        }
        known_media = true;
        let get = |name: &str| clause.parameters.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
        let known = get("g") == "meta.k8s.io" && get("v") == "v1";
        let (shape, list) = match get("as") {
            "" => (Shape::Object, None),
            "Table" if known => (Shape::Table, None),
            "PartialObjectMetadata" if known => (Shape::Metadata, Some(false)),
            "PartialObjectMetadataList" if known => (Shape::Metadata, Some(true)),
            _ => continue,
        };
        return Ok(Wanted { shape, list, yaml });
    }
    Err(Box::new(if known_media {
        Status::not_acceptable(&READ)
    } else {
        Status::new(406, "NotAcceptable", "406: Not Acceptable").with_details(Details::default())
    }))
}

/// Whether `accept` has an alternative of this media type whose parameters all are there.
pub(crate) fn accepts(accept: &str, media: &str, parameters: &[(&str, &str)]) -> bool {
    clauses(accept).any(|clause| {
        clause.media == media
            && parameters.iter().all(|(n, v)| clause.parameters.iter().any(|(cn, cv)| cn == n && cv == v))
    })
}

/// What a body is written in; JSON where nothing is said. 415 for what cannot be read.
pub(crate) fn written(content_type: &str) -> Outcome<MediaType> {
    match bare(content_type).as_str() {
        "" | "application/json" => Ok(MediaType::Json),
        "application/yaml" => Ok(MediaType::Yaml),
        api::protobuf::MEDIA_TYPE => Ok(MediaType::Protobuf),
        _ => Err(Box::new(Status::unsupported_media_type(&READ))),
    }
}

/// A media type without parameters, in lower case.
pub(crate) fn bare(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The alternatives in the order in which they stand.
fn clauses(accept: &str) -> impl Iterator<Item = Clause> + '_ {
    accept.split(',').map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(n, v)| (n.trim().to_owned(), v.trim().trim_matches('"').to_owned()))
            .collect();
        Clause { media, parameters }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accept: &str) -> Option<Shape> {
        wanted(accept).ok().map(|w| w.shape)
    }

    #[test]
    fn what_kubectl_sends_is_a_table() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(shape(accept), Some(Shape::Table));
    }

    #[test]
    fn protobuf_first_falls_back_to_json() {
        assert_eq!(shape("application/vnd.kubernetes.protobuf,application/json"), Some(Shape::Object));
        assert_eq!(shape("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(
            shape(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            ),
            Some(Shape::Metadata)
        );
    }

    #[test]
    fn anything_is_json() {
        assert_eq!(shape(""), Some(Shape::Object));
        assert_eq!(shape("*/*"), Some(Shape::Object));
        assert_eq!(shape("text/html, application/xml;q=0.9, */*;q=0.8"), Some(Shape::Object));
    }
}
