//! The project's own habits.
fn main() {}
