//! Programs that pay for what they do.
//!
//! The expression is rewritten once: what makes or copies a value is put inside a call of [`PAY`], and the condition
//! of each loop inside a call of [`ROUND`]. Both take from a budget, and fail for good when it is spent.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr};
use cel::objects::OptionalValue;
use cel::parser::Parser;
use cel::{Context, ExecutionError, FunctionContext, Value};
use kube_cel::{KubeCelExt, cel};

use super::super::Structural;
use super::scope;

/// Evaluates its argument and pays for its size.
const PAY: &str = "@pay";
/// Evaluates its argument and pays for a round of a loop.
const ROUND: &str = "@round";
/// Evaluates its argument, a call, and pays for the product of the sizes of what it is called with.
const PRODUCT: &str = "@product";
/// Deepest nesting that the parser follows.
const PARSE_DEPTH: u16 = 64;
/// Stack of the thread that reads rules: their parser calls itself.
const STACK_BYTES: usize = 64 << 20;
/// Price of a call that compiles an expression of its own.
const EXPRESSION_PRICE: u64 = 2000;
/// So many bytes of text, or copied members, cost one.
const BYTES_PER_UNIT: u64 = 16;

/// Operators whose results are small and whose operands are paid for already.
const CHEAP: [&str; 17] = [
    "_?_:_",
    "_&&_",
    "_||_",
    "!_",
    "_-_",
    "_*_",
    "_/_",
    "_%_",
    "_==_",
    "_!=_",
    "_>=_",
    "_<=_",
    "_>_",
    "_<_",
    "-_",
    "@in",
    "@not_strictly_false",
];
/// Functions whose work is the product of the sizes of what they get.
const SQUARE: [&str; 8] = ["contains", "intersects", "equivalent", "distinct", "replace", "join", "format", "range"];
/// Functions that compile a regular expression.
const EXPRESSIONS: [&str; 3] = ["matches", "find", "findAll"];

/// A compiled expression.
pub(super) struct Program {
    expression: IdedExpr,
    /// Whether it looks at what the value was.
    pub(super) uses_old: bool,
}

/// What an expression comes to.
pub(super) enum Answer {
    Yes,
    No,
    Text(String),
}

/// Why there is no answer.
pub(super) enum Failure {
    /// The budget is spent.
    Spent,
    /// The expression failed.
    Evaluation(String),
}

thread_local! {
    /// What the program under way may still spend.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    /// The functions that there are; making them takes longer than most rules.
    static FUNCTIONS: Context<'static> = functions();
}

impl Program {
    /// Reads a text. The error is a sentence.
    pub(super) fn compile(text: &str, schema: &Structural) -> Result<Self, String> {
        let read = || -> Result<Program, String> {
            let parser = Parser::new().max_recursion_depth(PARSE_DEPTH).enable_optional_syntax(true);
            let expression = parser.parse(text).map_err(|error| format!("ERROR: {error}"))?;
            let uses_old = scope::check(&expression, schema)?;
            let mut bound = vec!["self".to_owned(), "oldSelf".to_owned()];
            Ok(Program { expression: rewrite(expression, &mut bound), uses_old })
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let joined = std::thread::scope(|scope| Some(thread.spawn_scoped(scope, read).ok()?.join()));
        match joined {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err("the expression cannot be read: simplify it".to_owned()),
            None => Err("the expression cannot be read just now: no thread could be started".to_owned()),
        }
    }

    /// Evaluates it within `limit`; takes what was spent from `left`.
    pub(super) fn run(
        &self,
        own: &Value,
        old: Option<&Value>,
        optional_old: bool,
        limit: u64,
        left: &mut u64,
    ) -> Result<Answer, Failure> {
        LEFT.set(limit);
        let run = || {
            FUNCTIONS.with(|functions| {
                let mut context = functions.new_inner_scope();
                context.add_variable_from_value("self", own.clone());
                if self.uses_old {
                    context.add_variable_from_value(
                        "oldSelf",
                        match (old, optional_old) {
                            (Some(old), false) => old.clone(),
                            (Some(old), true) => Value::Opaque(Arc::new(OptionalValue::of(old.clone()))),
                            (None, _) => Value::Opaque(Arc::new(OptionalValue::none())),
                        },
                    );
                }
                Value::resolve(&self.expression, &context)
            })
        };
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let rest = LEFT.get();
        *left = left.saturating_sub(limit - rest.min(limit));
        // An operator may have swallowed the failure of one side: the budget tells.
        if rest == 0 {
            return Err(Failure::Spent);
        }
        match outcome {
            Ok(Ok(Value::Bool(true))) => Ok(Answer::Yes),
            Ok(Ok(Value::Bool(false))) => Ok(Answer::No),
            Ok(Ok(Value::String(text))) => Ok(Answer::Text(text.to_string())),
            Ok(Ok(_)) => Err(Failure::Evaluation("the rule must evaluate to a bool".to_owned())),
            Ok(Err(error)) => Err(Failure::Evaluation(sentence(&error))),
            Err(_) => Err(Failure::Evaluation("the interpreter gave up".to_owned())),
        }
    }
}

/// An error without the whole of the values that it is about.
fn sentence(error: &ExecutionError) -> String {
    const MAX_CHARS: usize = 200;
    error.to_string().chars().take(MAX_CHARS).collect()
}

/// Takes from the budget.
fn pay(price: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get();
    LEFT.set(left.saturating_sub(price));
    if price >= left { Err(ExecutionError::function_error("cost", "call cost exceeds limit")) } else { Ok(()) }
}

/// What a value of this size costs.
fn weight(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 / BYTES_PER_UNIT,
        Value::Bytes(bytes) => bytes.len() as u64 / BYTES_PER_UNIT,
        Value::List(items) => items.len() as u64 / BYTES_PER_UNIT + items.iter().map(weight).sum::<u64>(),
        Value::Map(map) => map.map.len() as u64 / BYTES_PER_UNIT + map.map.values().map(weight).sum::<u64>(),
        _ => 0,
    }
}

/// How large a value is where work grows with it; numbers count as what they are.
fn size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Bytes(bytes) => bytes.len() as u64,
        Value::List(items) => items.len() as u64 + items.iter().map(|i| weight(i) * BYTES_PER_UNIT).sum::<u64>(),
        Value::Map(map) => map.map.len() as u64,
        Value::Int(number) => number.unsigned_abs(),
        Value::UInt(number) => *number,
        _ => 1,
    }
}

/// The functions of the language, of Kubernetes, and those that take from the budget.
fn functions() -> Context<'static> {
    let mut context = Context::default();
    context.register_all();
    let evaluate = |ftx: &FunctionContext<'_, '_>| match ftx.args.first() {
        Some(argument) => Value::resolve(argument, ftx.ptx),
        None => Err(ExecutionError::MissingArgumentOrTarget),
    };
    let paying: cel_function::Boxed = Box::new(move |ftx| {
        pay(1)?;
        let value = evaluate(ftx)?;
        pay(weight(&value))?;
        Ok(value)
    });
    let round: cel_function::Boxed = Box::new(move |ftx| {
        pay(1)?;
        evaluate(ftx)
    });
    let product: cel_function::Boxed = Box::new(move |ftx| {
        let Some(Expr::Call(call)) = ftx.args.first().map(|argument| &argument.expr) else {
            return evaluate(ftx);
        };
        let is_group =
            |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if ftx.ptx.get_variable(name).is_none());
        let mut price = 1u64;
        for part in call.target.iter().map(AsRef::as_ref).filter(|target| !is_group(target)).chain(&call.args) {
            price = price.saturating_mul(size(&Value::resolve(part, ftx.ptx)?).saturating_add(1));
        }
        if EXPRESSIONS.contains(&call.func_name.as_str()) {
            price = EXPRESSION_PRICE;
        }
        if call.func_name == "format" {
            check_format(call, ftx)?;
        }
        pay(price / BYTES_PER_UNIT + 1)?;
        let value = evaluate(ftx)?;
        pay(weight(&value))?;
        Ok(value)
    });
    context.add_function(PAY, paying);
    context.add_function(ROUND, round);
    context.add_function(PRODUCT, product);
    context
}

/// A format asks for no more digits than a number has.
fn check_format(call: &CallExpr, ftx: &FunctionContext<'_, '_>) -> Result<(), ExecutionError> {
    const MAX_DIGITS: usize = 3;
    let Some(target) = &call.target else { return Ok(()) };
    let Value::String(text) = Value::resolve(target, ftx.ptx)? else { return Ok(()) };
    let digits = text.split('%').map(|part| part.chars().take_while(|c| c.is_ascii_digit() || *c == '.').count());
    if digits.max().unwrap_or(0) > MAX_DIGITS + 1 {
        return Err(ExecutionError::function_error("format", "a precision must have at most 3 digits"));
    }
    Ok(())
}

/// The type of functions as the interpreter keeps them.
mod cel_function {
    use kube_cel::cel::{FunctionContext, ResolveResult};

    /// A function that evaluates its arguments itself.
    pub(super) type Boxed = Box<dyn Fn(&mut FunctionContext<'_, '_>) -> ResolveResult + Send + Sync>;
}

/// Puts an expression inside a call.
fn inside(function: &str, expression: IdedExpr) -> IdedExpr {
    let id = expression.id;
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args: vec![expression] }) }
}

/// An expression that pays. `bound` are the names of variables around it.
fn rewrite(expression: IdedExpr, bound: &mut Vec<String>) -> IdedExpr {
    let IdedExpr { id, expr } = expression;
    let whole = |expr| IdedExpr { id, expr };
    match expr {
        Expr::Ident(name) if name.starts_with('@') => whole(Expr::Ident(name)),
        Expr::Ident(name) if bound.contains(&name) => inside(PAY, whole(Expr::Ident(name))),
        Expr::Select(mut select) => {
            select.operand = Box::new(operand(*select.operand, bound));
            let is_test = select.test;
            let select = whole(Expr::Select(select));
            if is_test { select } else { inside(PAY, select) }
        }
        Expr::Call(mut call) => {
            let is_index = call.func_name == "_[_]";
            call.target = call.target.map(|target| {
                Box::new(match &target.expr {
                    Expr::Ident(name) if !bound.contains(name) => *target,
                    _ => rewrite(*target, bound),
                })
            });
            let arguments = std::mem::take(&mut call.args).into_iter().enumerate();
            call.args = arguments
                .map(|(i, a)| if is_index && i == 0 { operand(a, bound) } else { rewrite(a, bound) })
                .collect();
            let name = call.func_name.as_str();
            let outer = match name {
                _ if CHEAP.contains(&name) => None,
                _ if SQUARE.contains(&name) || EXPRESSIONS.contains(&name) => Some(PRODUCT),
                _ => Some(PAY),
            };
            let call = whole(Expr::Call(call));
            match outer {
                Some(outer) => inside(outer, call),
                None => call,
            }
        }
        Expr::List(mut list) => {
            list.elements = list.elements.into_iter().map(|element| rewrite(element, bound)).collect();
            whole(Expr::List(list))
        }
        Expr::Map(mut map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    entry.key = rewrite(std::mem::take(&mut entry.key), bound);
                    entry.value = rewrite(std::mem::take(&mut entry.value), bound);
                }
            }
            whole(Expr::Map(map))
        }
        Expr::Comprehension(mut loops) => {
            let loops_ = &mut *loops;
            loops_.iter_range = inside(PAY, rewrite(std::mem::take(&mut loops_.iter_range), bound));
            loops_.accu_init = rewrite(std::mem::take(&mut loops_.accu_init), bound);
            let before = bound.len();
            bound.push(loops_.iter_var.clone());
            bound.extend(loops_.iter_var2.clone());
            loops_.loop_cond = inside(ROUND, rewrite(std::mem::take(&mut loops_.loop_cond), bound));
            loops_.loop_step = rewrite(std::mem::take(&mut loops_.loop_step), bound);
            loops_.result = rewrite(std::mem::take(&mut loops_.result), bound);
            bound.truncate(before);
            whole(Expr::Comprehension(loops))
        }
        other => whole(other),
    }
}

/// What a member is selected of: a variable is not copied for that.
fn operand(expression: IdedExpr, bound: &mut Vec<String>) -> IdedExpr {
    match expression.expr {
        Expr::Ident(_) => expression,
        _ => rewrite(expression, bound),
    }
}
