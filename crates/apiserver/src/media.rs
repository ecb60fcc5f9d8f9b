//! Media types: what a body is written in, and what a client wants to read.

use api::decode::MediaType;
use api::resource::Resource;
use api::status::{Details, Status};

use crate::errors::Outcome;

/// What bodies and answers may be written in.
pub(crate) const READ: [&str; 3] = ["application/json", "application/yaml", api::protobuf::MEDIA_TYPE];

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

/// What an answer is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Notation {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' binary form.
    Protobuf,
}

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The shape.
    pub(crate) shape: Shape,
    /// Whether the shape is named as that of a list, or of one object; `None` where it fits both.
    pub(crate) list: Option<bool>,
    /// What it is written in.
    pub(crate) notation: Notation,
    /// Whether the shape is wanted as meta.k8s.io/v1beta1 names it, which is no other otherwise.
    pub(crate) beta: bool,
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
    /// How much it is wanted, in thousandths.
    quality: u16,
}

impl Clause {
    /// The value of a parameter, empty if it is absent.
    fn get(&self, name: &str) -> &str {
        self.parameters.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str())
    }

    /// The notation that it names; anything at all is JSON. (`application/*` is nothing that upstream's router knows.)
    fn notation(&self) -> Option<Notation> {
        match self.media.as_str() {
            "application/json" | "*/*" => Some(Notation::Json),
            "application/yaml" => Some(Notation::Yaml),
            api::protobuf::MEDIA_TYPE => Some(Notation::Protobuf),
            _ => None,
        }
    }

    /// More than one type may be meant: such alternatives come after the others of the same quality.
    fn is_open(&self) -> bool {
        self.media.ends_with('*')
    }
}

/// The best alternative of `accept` that can be answered; `binary` says whether the kind has a binary form. 406 if
/// there is none.
pub(crate) fn wanted(accept: &str, binary: bool) -> Outcome<Wanted> {
    if accept.trim().is_empty() {
        return Ok(Wanted { shape: Shape::Object, list: None, notation: Notation::Json, beta: false });
    }
    let mut known_media = false;
    for clause in clauses(accept) {
        let Some(notation) = clause.notation() else { continue };
        known_media = true;
        let beta = clause.get("v") == "v1beta1" && notation != Notation::Protobuf;
        let known = clause.get("g") == "meta.k8s.io" && (clause.get("v") == "v1" || beta);
        let (shape, list) = match clause.get("as") {
            "" => (Shape::Object, None),
            "Table" if known && notation != Notation::Protobuf => (Shape::Table, None),
            "PartialObjectMetadata" if known => (Shape::Metadata, Some(false)),
            "PartialObjectMetadataList" if known => (Shape::Metadata, Some(true)),
            _ => continue,
        };
        if notation == Notation::Protobuf && shape == Shape::Object && !binary {
            continue;
        }
        return Ok(Wanted { shape, list, notation, beta: beta && shape != Shape::Object });
    }
    let offered = if binary { &READ[..] } else { &READ[..2] };
    Err(Box::new(if known_media {
        Status::not_acceptable(offered)
    } else {
        Status::new(406, "NotAcceptable", "406: Not Acceptable").with_details(Details::default())
    }))
}

/// What a document without shapes is written in for this client: a Status, a review. JSON if nothing fits.
pub(crate) fn notation(accept: &str) -> Notation {
    clauses(accept).iter().find_map(Clause::notation).unwrap_or_default()
}

/// Whether `accept` has an alternative of this media type whose parameters all are there.
pub(crate) fn accepts(accept: &str, media: &str, parameters: &[(&str, &str)]) -> bool {
    clauses(accept).into_iter().any(|clause| {
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

/// The alternatives, best first: by quality, and as they stand where that is the same.
fn clauses(accept: &str) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = accept.split(',').map(clause).filter(|clause| clause.quality > 0).collect();
    clauses.sort_by_key(|clause| (std::cmp::Reverse(clause.quality), clause.is_open()));
    clauses
}

/// Reads one alternative. A quality that is no number counts as the best.
fn clause(text: &str) -> Clause {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: Vec<(String, String)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(n, v)| (n.trim().to_owned(), v.trim().trim_matches('"').to_owned()))
        .collect();
    let quality = parameters.iter().find(|(n, _)| n == "q").and_then(|(_, v)| v.parse::<f32>().ok());
    let quality = quality.filter(|q| q.is_finite()).map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u16);
    Clause { media, parameters, quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accept: &str) -> Option<Shape> {
        wanted(accept, false).ok().map(|w| w.shape)
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
    fn kinds_with_a_binary_form_are_given_in_it_to_who_prefers_it() {
        let notation =
            |accept: String| wanted(&accept, true).map(|w| (w.notation, w.shape)).map_err(|status| status.code);
        let protobuf = api::protobuf::MEDIA_TYPE;
        assert_eq!(notation(protobuf.to_owned()), Ok((Notation::Protobuf, Shape::Object)));
        assert_eq!(notation(format!("{protobuf},application/json")), Ok((Notation::Protobuf, Shape::Object)));
        assert_eq!(notation(format!("{protobuf};q=0.5, application/json;q=0.9")), Ok((Notation::Json, Shape::Object)));
        assert_eq!(notation(format!("*/*, {protobuf}")), Ok((Notation::Protobuf, Shape::Object)));
        assert_eq!(notation(format!("{protobuf};q=0")), Err(406));
        // Tables are JSON alone.
        let table = ";as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(notation(format!("{protobuf}{table}")), Err(406));
        assert_eq!(notation(format!("{protobuf}{table},application/json{table}")), Ok((Notation::Json, Shape::Table)));
    }

    #[test]
    fn metadata_of_any_kind_has_a_binary_form() {
        let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        assert_eq!(wanted(accept, false).map(|w| w.notation).ok(), Some(Notation::Protobuf));
    }

    #[test]
    fn anything_is_json() {
        assert_eq!(shape(""), Some(Shape::Object));
        assert_eq!(shape("*/*"), Some(Shape::Object));
        assert_eq!(shape("text/html, application/xml;q=0.9, */*;q=0.8"), Some(Shape::Object));
    }
}
