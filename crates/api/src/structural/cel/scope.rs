//! What the names in a rule refer to, looked at before the rule is ever run.

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr};
use kube_cel::cel;

use super::super::{Additional, Kind, Structural};
use super::values::escape;

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 100;
/// Names of types, and of groups of functions.
const WORDS: [&str; 19] = [
    "bool",
    "bytes",
    "double",
    "dyn",
    "duration",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
    "math",
    "sets",
    "optional",
    "base64",
    "lists",
    "strings",
];

/// What is known about the value of an expression.
#[derive(Clone, Copy)]
enum Known<'s> {
    /// It is of this schema.
    Schema(&'s Structural),
    /// Nothing.
    Nothing,
}

/// Looks at an expression; tells whether it uses `oldSelf`.
pub(super) fn check(expression: &IdedExpr, schema: &Structural) -> Result<bool, String> {
    let mut look = Look { uses_old: false, bound: vec![("self".to_owned(), Known::Schema(schema))] };
    look.expression(expression, 0)?;
    Ok(look.uses_old)
}

/// One look through an expression.
struct Look<'s> {
    uses_old: bool,
    bound: Vec<(String, Known<'s>)>,
}

impl<'s> Look<'s> {
    /// One expression and all in it.
    fn expression(&mut self, expression: &IdedExpr, depth: usize) -> Result<Known<'s>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("the expression must not be nested deeper than {MAX_DEPTH} levels"));
        }
        match &expression.expr {
            Expr::Literal(_) => {}
            Expr::Ident(name) => return self.name(name),
            Expr::Select(select) => {
                let operand = self.expression(&select.operand, depth + 1)?;
                return member(operand, &select.field);
            }
            Expr::Call(call) => {
                if let Some(target) = &call.target {
                    let is_group = matches!(&target.expr, Expr::Ident(name)
                        if !self.is_bound(name) && (WORDS.contains(&name.as_str()) || is_library(name)));
                    if !is_group {
                        self.expression(target, depth + 1)?;
                    }
                }
                let mut first = Known::Nothing;
                for (index, argument) in call.args.iter().enumerate() {
                    let known = self.expression(argument, depth + 1)?;
                    if index == 0 {
                        first = known;
                    }
                }
                if call.func_name == "_[_]" {
                    return Ok(inside(first));
                }
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.expression(element, depth + 1)?;
                }
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            self.expression(&entry.key, depth + 1)?;
                            self.expression(&entry.value, depth + 1)?;
                        }
                        EntryExpr::StructField(_) => return Err("objects of types cannot be made here".to_owned()),
                    }
                }
            }
            Expr::Comprehension(loops) => self.comprehension(loops, depth)?,
            Expr::Struct(made) => {
                return Err(format!("undeclared reference to '{}' (in container '')", made.type_name));
            }
            Expr::Unspecified => return Err("the expression is incomplete".to_owned()),
        }
        Ok(Known::Nothing)
    }

    /// A loop that a macro stands for.
    fn comprehension(&mut self, loops: &ComprehensionExpr, depth: usize) -> Result<(), String> {
        let range = self.expression(&loops.iter_range, depth + 1)?;
        self.expression(&loops.accu_init, depth + 1)?;
        let item = match range {
            Known::Schema(schema) if schema.kind == Some(Kind::Array) => inside(range),
            _ => Known::Nothing,
        };
        let before = self.bound.len();
        self.bound.push((loops.accu_var.clone(), Known::Nothing));
        self.bound.push((loops.iter_var.clone(), item));
        self.bound.extend(loops.iter_var2.clone().map(|name| (name, Known::Nothing)));
        for part in [&loops.loop_cond, &loops.loop_step, &loops.result] {
            self.expression(part, depth + 1)?;
        }
        self.bound.truncate(before);
        Ok(())
    }

    /// Whether a name is one of a variable.
    fn is_bound(&self, name: &str) -> bool {
        name == "oldSelf" || self.bound.iter().any(|(bound, _)| bound == name)
    }

    /// What a name refers to.
    fn name(&mut self, name: &str) -> Result<Known<'s>, String> {
        if name == "oldSelf" {
            self.uses_old = true;
            return Ok(Known::Nothing);
        }
        match self.bound.iter().rev().find(|(bound, _)| bound == name) {
            Some((_, known)) => Ok(*known),
            None if WORDS.contains(&name) || name.starts_with('@') => Ok(Known::Nothing),
            None => Err(format!("undeclared reference to '{name}' (in container '')")),
        }
    }
}

/// Groups of functions that are named like functions.
fn is_library(name: &str) -> bool {
    matches!(name, "ip" | "cidr" | "format" | "jsonpatch" | "url" | "quantity" | "semver" | "cel")
}

/// What a field of a value is.
fn member<'s>(of: Known<'s>, field: &str) -> Result<Known<'s>, String> {
    let Known::Schema(schema) = of else { return Ok(Known::Nothing) };
    if let Some((_, inner)) = schema.properties.iter().find(|(name, _)| escape(name) == field) {
        return Ok(Known::Schema(inner));
    }
    match &schema.additional {
        Additional::Schema(inner) => Ok(Known::Schema(inner)),
        Additional::Any => Ok(Known::Nothing),
        _ if schema.preserve_unknown || schema.kind != Some(Kind::Object) => Ok(Known::Nothing),
        _ if matches!(field, "metadata" | "apiVersion" | "kind") => Ok(Known::Nothing),
        _ => Err(format!("undefined field '{field}'")),
    }
}

/// What the items of a list, or the values of a map, are.
fn inside(of: Known<'_>) -> Known<'_> {
    let Known::Schema(schema) = of else { return Known::Nothing };
    match (&schema.items, &schema.additional) {
        (Some(inner), _) => Known::Schema(inner),
        (None, Additional::Schema(inner)) => Known::Schema(inner),
        _ => Known::Nothing,
    }
}
